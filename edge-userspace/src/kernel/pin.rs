//! Where maps and links are pinned, so that they outlive the daemon and the next one finds them.
//!
//! The path holds the version of the layout: `/sys/fs/bpf/edge/v2/shield/…`. What another version left is
//! refused, not guessed.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use edge_common::LAYOUT;
use rustix::mount::{MountFlags, mount};

use super::KernelError;

/// The directory of pins unless told otherwise.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/edge";

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The directory of this layout's pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    directory: PathBuf,
}

impl Pins {
    /// Opens or makes the directory below `root`; mounts the BPF filesystem at its usual place where it is
    /// missing.
    pub(super) fn open(root: &Path) -> Result<Self, KernelError> {
        ensure_mounted(root)?;
        let ours = format!("v{LAYOUT}");
        let directory = root.join(&ours);
        fs::create_dir_all(&directory).map_err(failed("creating", &directory))?;
        let entries = fs::read_dir(root).map_err(failed("reading", root))?;
        let foreign =
            entries.flatten().map(|entry| entry.file_name()).find(|name| *name != OsString::from(&ours));
        match foreign {
            Some(name) => Err(KernelError::OtherLayout { path: root.join(name) }),
            None => Ok(Self { directory }),
        }
    }

    /// The directory of one object's pins, made if need be.
    pub(super) fn of(&self, object: &str) -> Result<PathBuf, KernelError> {
        let directory = self.directory.join(object);
        fs::create_dir_all(&directory).map_err(failed("creating", &directory))?;
        Ok(directory)
    }
}

/// Removes all pins of all layouts below `root`. A program that is attached through a pinned link alone is
/// thereby detached; a running daemon holds what it has until it ends.
///
/// Returns whether there was anything.
pub fn uninstall(root: &Path) -> Result<bool, KernelError> {
    if !root.exists() {
        return Ok(false);
    }
    fs::remove_dir_all(root).map_err(failed("removing", root))?;
    Ok(true)
}

/// Whether `path`, or the nearest directory above it that exists, is on a BPF filesystem.
pub(super) fn is_on_bpf_filesystem(path: &Path) -> bool {
    let nearest = path.ancestors().find(|path| path.exists());
    nearest.and_then(|path| rustix::fs::statfs(path).ok()).is_some_and(|found| {
        // The width of f_type differs between architectures and C libraries.
        u64::try_from(found.f_type).is_ok_and(|magic| magic & 0xffff_ffff == BPF_FS_MAGIC)
    })
}

pub(super) fn ensure_mounted(root: &Path) -> Result<(), KernelError> {
    if is_on_bpf_filesystem(root) {
        return Ok(());
    }
    let usual = Path::new("/sys/fs/bpf");
    let error = |source| KernelError::NoBpfFilesystem { path: root.to_owned(), source };
    if !root.starts_with(usual) {
        return Err(error(io::Error::other("the directory of pins lies elsewhere")));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", usual, "bpf", flags, c"mode=0700").map_err(|source| error(source.into()))
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::File { call, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_holds_no_pins() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!is_on_bpf_filesystem(directory.path()));
        let error = Pins::open(&directory.path().join("edge")).unwrap_err();
        assert!(matches!(error, KernelError::NoBpfFilesystem { .. }), "{error}");
        assert!(!uninstall(&directory.path().join("edge")).unwrap());
    }
}
