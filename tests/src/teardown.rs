//! The resources to remove when a lab ends. The list is kept outside the [`Lab`](crate::Lab), so that a
//! signal handler and the next run can remove what a case left behind.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, Once},
};

use rustix::process::{Pid, test_kill_process};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{lock::lock, netns, wireguard};

/// Resources of a lab that remain on the machine.
#[derive(Debug, Default)]
pub(crate) struct Remains {
    pub(crate) sockets: Vec<PathBuf>,
    pub(crate) namespaces: Vec<String>,
    pub(crate) directory: Option<PathBuf>,
}

static LABS: Mutex<BTreeMap<String, Remains>> = Mutex::new(BTreeMap::new());

fn labs() -> MutexGuard<'static, BTreeMap<String, Remains>> {
    lock(&LABS)
}

/// Notes what belongs to the lab `tag`, before it is made.
pub(crate) fn note(tag: &str, change: impl FnOnce(&mut Remains)) {
    watch_signals();
    change(labs().entry(tag.to_owned()).or_default());
}

/// Forgets the lab without removing it: it is meant to outlive the process.
pub(crate) fn forget(tag: &str) {
    labs().remove(tag);
}

/// Removes all that belongs to the lab `tag`.
pub(crate) fn remove(tag: &str) {
    let remains = labs().remove(tag);
    if let Some(remains) = remains {
        remains.remove();
    }
}

impl Remains {
    pub(crate) fn remove(&self) {
        for name in &self.namespaces {
            netns::remove(name);
        }
        // A killed wireguard-go leaves its socket behind, on which the next one of that name could not
        // listen.
        for socket in &self.sockets {
            let _ = fs::remove_file(socket);
        }
        if let Some(directory) = &self.directory {
            unmount_below(directory);
            // A process that is just dying may still write there.
            let gone = |path: &Path| !path.exists() || fs::remove_dir_all(path).is_ok();
            if !gone(directory) && !gone(directory) {
                eprintln!("lab: {} could not be removed whole", directory.display());
            }
        }
    }
}

/// Unmounts what is mounted in a directory, also where programs still have files open there.
fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The fifth field is the mount point (proc_pid_mountinfo(5)).
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.filter(|point| point.starts_with(directory) && *point != directory) {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Removes labs of processes that no longer run. `prefix` is that of the namespaces; the tag behind it begins
/// with the process's id.
pub(crate) fn sweep(prefix: &str, directories: &Path) {
    for name in netns::with_prefix(prefix) {
        if is_stale(&name, prefix) {
            netns::remove(&name);
        }
    }
    for path in stale(directories, prefix) {
        unmount_below(&path);
        let _ = fs::remove_dir_all(path);
    }
    for path in stale(Path::new(wireguard::SOCKETS), wireguard::PREFIX) {
        let _ = fs::remove_file(path);
    }
}

fn stale(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let stale = |name: &OsStr| name.to_str().is_some_and(|name| is_stale(name, prefix));
    entries.flatten().filter(|entry| stale(&entry.file_name())).map(|entry| entry.path()).collect()
}

fn is_stale(name: &str, prefix: &str) -> bool {
    let tag = name.strip_prefix(prefix).unwrap_or_default();
    let pid = tag.split('-').next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// From the first lab on, the signals that end a process remove its labs first.
fn watch_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut signals = match Signals::new([SIGINT, SIGTERM, SIGHUP]) {
            Ok(signals) => signals,
            Err(error) => {
                eprintln!("lab: interrupted labs will be removed by the next run only: {error}");
                return;
            }
        };
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                // Locked until the end of the process: a case whose programs are killed here must not finish,
                // and end the process, before everything is removed.
                let mut labs = labs();
                for remains in std::mem::take(&mut *labs).values() {
                    remains.remove();
                }
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_dead_processes_left_is_stale() {
        let own = std::process::id();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        assert!(!is_stale(&format!("edge-lab-{own}-0-home"), "edge-lab-"));
        assert!(is_stale(&format!("edge-lab-{dead}-0-home"), "edge-lab-"));
        assert!(!is_stale("edge-lab-demo-home", "edge-lab-"));
        assert!(!is_stale("another", "edge-lab-"));
    }
}
