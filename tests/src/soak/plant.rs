//! The daemon's environment, which a run can disturb: a small disk, a cgroup with a memory limit, and a
//! clock.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    Lab,
    wait::{self, SOON},
};

/// A small file system for state and access log.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one in the lab's directory.
    pub(super) fn mount(lab: &Lab, mebibytes: u32) -> Result<Self> {
        let path = lab.directory().join("disk");
        fs::create_dir_all(&path)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0777"), "edge-soak"]).arg(&path);
        let output = mount.output().context("running mount (package mount)")?;
        ensure!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Self { path })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves no room on it while `during` runs.
    pub(super) fn full<T>(&self, during: impl FnOnce() -> Result<T>) -> Result<T> {
        let filler = self.path.join("filler");
        let mut dd = Command::new("dd");
        dd.args(["if=/dev/zero", "bs=4096"]).arg(format!("of={}", filler.display()));
        let output = dd.output().context("running dd")?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(complaint.contains("No space left"), "the disk did not fill: {complaint}");
        let outcome = during();
        fs::remove_file(&filler)?;
        outcome
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The daemon may still be ending.
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A cgroup with a limit of memory, of either version.
#[derive(Debug)]
pub(super) struct Cgroup {
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Cgroup {
    /// Makes one below that of this process. The error says why the machine does not allow it.
    pub(super) fn create(name: &str) -> Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let one = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            controllers.split(',').any(|controller| controller == "memory").then_some(path)
        });
        let (root, version) = match one {
            Some(path) => (format!("/sys/fs/cgroup/memory{path}"), Version::One),
            None => ("/sys/fs/cgroup".to_owned(), Version::Two),
        };
        let root = PathBuf::from(root);
        if version == Version::Two {
            // Only the root may have processes and children with controllers both.
            fs::write(root.join("cgroup.subtree_control"), "+memory")
                .context("no memory controller for children of the root cgroup")?;
        }
        let directory = root.join(name);
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        let cgroup = Self { directory, version };
        cgroup.limit(None).context("the cgroup takes no limit of memory")?;
        Ok(cgroup)
    }

    /// The command that runs the daemon in it, see [`EdgedPlan::by`](crate::EdgedPlan::by).
    pub(super) fn runner(&self) -> [String; 4] {
        let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        ["sh".into(), "-c".into(), script.into(), self.directory.display().to_string()]
    }

    /// Allows so many bytes beyond what is used now, or any number.
    pub(super) fn limit(&self, beyond: Option<u64>) -> Result<()> {
        let file = self.of("memory.limit_in_bytes", "memory.max");
        let text = match (beyond, self.version) {
            (Some(beyond), _) => (self.used()? + beyond).to_string(),
            (None, Version::One) => "-1".to_owned(),
            (None, Version::Two) => "max".to_owned(),
        };
        fs::write(&file, &text).with_context(|| format!("writing {text} to {}", file.display()))
    }

    /// Bytes in use, caches of files included.
    pub(super) fn used(&self) -> Result<u64> {
        number(&self.of("memory.usage_in_bytes", "memory.current"))
    }

    /// Bytes that the kernel holds for it: sockets, maps, slab.
    pub(super) fn kernel(&self) -> Result<u64> {
        match self.version {
            Version::One => number(&self.directory.join("memory.kmem.usage_in_bytes")),
            Version::Two => {
                let stat = fs::read_to_string(self.directory.join("memory.stat"))?;
                let value = |name: &str| -> Option<u64> {
                    stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
                };
                value("kernel ").or_else(|| value("slab ")).context("memory.stat says nothing of the kernel")
            }
        }
    }

    fn of(&self, one: &str, two: &str) -> PathBuf {
        self.directory.join(if self.version == Version::One { one } else { two })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let removed = wait::until_ok("the daemon's cgroup to be empty", SOON, || {
            for pid in fs::read_to_string(self.directory.join("cgroup.procs"))?.lines() {
                if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
            Ok(fs::remove_dir(&self.directory)?)
        });
        if let Err(error) = removed {
            eprintln!("soak: {} stays: {error:#}", self.directory.display());
        }
    }
}

fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim().parse()?)
}

/// The wall clock of the daemon alone, by libfaketime; the machine's own clock stays.
#[derive(Debug)]
pub(super) struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// The clock, or why it cannot be had.
    pub(super) fn find(disk: &Disk) -> Result<Self> {
        let found = fs::read_dir("/usr/lib")?.flatten().map(|entry| entry.path()).chain(["/usr/lib".into()]);
        let mut libraries = found.map(|path| path.join("faketime/libfaketimeMT.so.1"));
        let library = libraries.find(|path| path.exists()).context("apt-get install libfaketime")?;
        let clock = Self { library, file: disk.path().join("state/clock") };
        fs::create_dir_all(disk.path().join("state"))?;
        clock.set(0)?;
        Ok(clock)
    }

    /// Puts it so many seconds off the machine's.
    pub(super) fn set(&self, seconds: i64) -> Result<()> {
        fs::write(&self.file, format!("{seconds:+}\n"))
            .with_context(|| format!("writing {}", self.file.display()))
    }

    /// The daemon's environment variables. Monotonic time stays the kernel's, as after any step of the wall
    /// clock.
    pub(super) fn environment(&self) -> [(&'static str, String); 5] {
        [
            ("LD_PRELOAD", self.library.display().to_string()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.display().to_string()),
            ("FAKETIME_CACHE_DURATION", "1".into()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("NO_FAKE_STAT", "1".into()),
        ]
    }
}
