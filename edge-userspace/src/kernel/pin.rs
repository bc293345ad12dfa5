//! The places where maps and links are pinned, so that they outlive the daemon and the next one finds them.
//!
//! The path holds the version of the layout and a fingerprint of its meaning:
//! `/sys/fs/bpf/edge/v3-0123abcd/flow/…`. Pins of other versions stay beside it: see [`older`](super::older).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use edge_common::{LAYOUT, MEANING};
use rustix::mount::{MountFlags, mount};

use super::KernelError;

/// The directory of pins unless told otherwise.
pub const DEFAULT_PINS: &str = "/sys/fs/bpf/edge";

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// The directory of this layout's pins.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    directory: PathBuf,
}

/// The directory of another layout's pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OtherLayout {
    /// Its name, such as `v2`.
    pub(super) name: String,
    pub(super) directory: PathBuf,
}

impl Pins {
    /// Opens or creates the directory below `root`; mounts the BPF filesystem at its usual place if it is
    /// missing.
    pub(super) fn open(root: &Path) -> Result<Self, KernelError> {
        ensure_mounted(root)?;
        let directory = root.join(own_name());
        fs::create_dir_all(&directory).map_err(failed("creating", &directory))?;
        Ok(Self { root: root.to_owned(), directory })
    }

    /// Layouts that daemons of other versions left, sorted by name.
    pub(super) fn others(&self) -> Result<Vec<OtherLayout>, KernelError> {
        let entries = fs::read_dir(&self.root).map_err(failed("reading", &self.root))?;
        let mut others: Vec<_> = entries
            .flatten()
            .map(|entry| OtherLayout {
                name: entry.file_name().to_string_lossy().into_owned(),
                directory: entry.path(),
            })
            .filter(|other| other.directory != self.directory)
            .collect();
        others.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(others)
    }

    /// Takes over the pins of an object from one of these layouts, if this layout has none yet: for an object
    /// whose maps have not changed since.
    pub(super) fn inherit(&self, object: &str, alike: &[&str]) -> Result<(), KernelError> {
        let own = self.directory.join(object);
        for other in self.others()?.iter().filter(|other| alike.contains(&&*other.name)) {
            let theirs = other.directory.join(object);
            if theirs.is_dir() && !own.exists() {
                // One step, in which nothing is let go of.
                fs::rename(&theirs, &own).map_err(failed("taking over", &theirs))?;
                tracing::info!(object, layout = other.name, "took over what an earlier version pinned");
                // Unless other objects are still there.
                let _ = fs::remove_dir(&other.directory);
            }
        }
        Ok(())
    }

    /// The directory of one object's pins, made if need be.
    pub(super) fn of(&self, object: &str) -> Result<PathBuf, KernelError> {
        let directory = self.directory.join(object);
        fs::create_dir_all(&directory).map_err(failed("creating", &directory))?;
        Ok(directory)
    }
}

/// The name of the directory of this layout's pins.
fn own_name() -> String {
    format!("v{LAYOUT}-{MEANING:08x}")
}

/// A pin that is already gone counts as removed.
pub(super) fn removed(path: &Path, outcome: io::Result<()>) -> Result<(), KernelError> {
    match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Removes all pins of all layouts below `root`. This detaches programs that are attached only through a
/// pinned link; a running daemon keeps its own until it ends.
///
/// Returns whether there were any.
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
