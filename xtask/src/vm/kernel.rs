//! Debian's kernels for machines in clouds, unpacked beside the builds, and what starts on them.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    command::{output, run},
    setup::apt::Apt,
};

/// Depends on the newest kernel of its suite.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// Modules needed to reach the host's files; the others are loaded from there.
const FIRST_MODULES: &[&str] = &["virtio_pci", "virtiofs", "overlay"];

/// A kernel by the name that users give it, and the suite that has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Release {
    pub(super) name: &'static str,
    suite: &'static str,
}

/// The kernels that can be chosen.
pub(super) const RELEASES: &[Release] =
    &[Release { name: "6.1", suite: "bookworm" }, Release { name: "6.12", suite: "trixie" }];

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As `uname -r` says it.
    version: String,
    /// Everything about it.
    pub(super) folder: PathBuf,
}

impl Kernel {
    /// Unpacks the kernel below `folder`, unless it is there already.
    pub(super) fn provide(release: Release, folder: &Path) -> Result<Self> {
        let folder = folder.join(release.name);
        fs::create_dir_all(&folder)?;
        let root = folder.join("root");
        if !root.is_dir() {
            println!("unpacking the kernel of Debian {}", release.suite);
            let apt = Apt::of(release.suite, &folder.join("apt"))?;
            let dependencies = apt.dependencies(PACKAGE)?;
            let image = dependencies.iter().find(|name| name.starts_with("linux-image-"));
            let image = image.with_context(|| format!("{PACKAGE} depends on no kernel: {dependencies:?}"))?;
            let unpacked = apt.unpack(&[image])?;
            if !unpacked.join("lib").exists() {
                symlink("usr/lib", unpacked.join("lib"))?;
            }
            run(Command::new("depmod").arg("-b").arg(&unpacked).arg(version(&unpacked)?))?;
            apt.keep(&root)?;
        }
        Ok(Self { version: version(&root)?, folder })
    }

    /// The kernel image that the emulator boots.
    pub(super) fn image(&self) -> PathBuf {
        self.root().join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// The modules, to be mounted where they are looked for.
    pub(super) fn modules(&self) -> PathBuf {
        self.root().join("lib/modules")
    }

    /// Packs the first file system: busybox, modules and `init`.
    pub(super) fn initramfs(&self, init: &str) -> Result<PathBuf> {
        let tree = self.folder.join("initramfs");
        let _ = fs::remove_dir_all(&tree);
        for part in ["bin", "dev", "proc", "sys", "modules", "lower", "upper", "root"] {
            fs::create_dir_all(tree.join(part))?;
        }
        fs::copy("/bin/busybox", tree.join("bin/busybox")).context("copying busybox")?;
        fs::write(tree.join("init"), init)?;
        fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
        for (number, module) in self.first_modules()?.iter().enumerate() {
            // The names keep the order in which they need each other.
            let copy = tree.join("modules").join(format!("{number:02}.ko"));
            if module.extension().is_some_and(|extension| extension == "xz") {
                let unpacked = Command::new("xz").arg("-dc").arg(module).output().context("starting xz")?;
                ensure!(unpacked.status.success(), "unpacking {}", module.display());
                fs::write(copy, unpacked.stdout)?;
            } else {
                fs::copy(module, copy).with_context(|| format!("copying {}", module.display()))?;
            }
        }
        let packed = self.folder.join("initramfs.cpio");
        run(Command::new("sh")
            .current_dir(&tree)
            .args(["-c", "find . | busybox cpio -o -H newc >\"$0\" 2>/dev/null"])
            .arg(&packed))?;
        Ok(packed)
    }

    /// The files of [`FIRST_MODULES`] and their dependencies, in order, except built-in ones.
    fn first_modules(&self) -> Result<Vec<PathBuf>> {
        let mut command = Command::new("modprobe");
        command.arg("-d").arg(self.root()).args(["-S", &self.version, "--show-depends", "-a"]);
        let text = output(command.args(FIRST_MODULES))?;
        let mut files: Vec<PathBuf> = Vec::new();
        for line in text.lines() {
            if let Some(file) = line.trim().strip_prefix("insmod ").map(PathBuf::from)
                && !files.contains(&file)
            {
                files.push(file);
            }
        }
        Ok(files)
    }

    fn root(&self) -> PathBuf {
        self.folder.join("root")
    }
}

/// The version of the one kernel in a folder.
fn version(root: &Path) -> Result<String> {
    let boot = root.join("boot");
    let names = fs::read_dir(&boot).with_context(|| format!("reading {}", boot.display()))?;
    let version = names.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("vmlinuz-")?.to_owned())
    });
    version.with_context(|| format!("{} has no kernel", boot.display()))
}
