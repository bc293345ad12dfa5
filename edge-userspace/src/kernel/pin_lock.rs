//! One daemon per directory of pins: two would take each other's maps, links and flows.
//!
//! The directory itself is locked (flock(2) accepts any descriptor), because a BPF filesystem has no ordinary
//! files. The kernel releases the lock when the process ends, for whatever reason.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock, major, minor},
    io::Errno,
};

use super::pin;

/// Another daemon has the pins.
#[derive(Debug, thiserror::Error)]
#[error(
    "another edged{} has its maps and programs pinned in {}; stop it, or give this one a directory of its own with --pins",
    process.map(|process| format!(" (process {process})")).unwrap_or_default(),
    path.display()
)]
pub struct PinsBusy {
    /// The directory.
    path: PathBuf,
    /// The other's process, where the kernel says it.
    process: Option<u32>,
}

/// The right to a directory of pins, until it is dropped.
#[derive(Debug)]
pub struct PinLock {
    _directory: File,
}

/// Locks the directory of pins for this process, and creates it if it is missing. `None` if nothing can be
/// pinned, which is a finding of [`Kernel::open`](super::Kernel::open).
///
/// # Errors
///
/// Another process has it.
pub fn lock_pins(root: &Path) -> Result<Option<PinLock>, PinsBusy> {
    if pin::ensure_mounted(root).is_err() || fs::create_dir_all(root).is_err() {
        return Ok(None);
    }
    lock(root)
}

fn lock(path: &Path) -> Result<Option<PinLock>, PinsBusy> {
    let Ok(directory) = File::open(path) else { return Ok(None) };
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(PinsBusy { path: path.to_owned(), process: holder(&directory) }),
        // Where it cannot be locked, two daemons are no worse off than they were.
        _ => Ok(Some(PinLock { _directory: directory })),
    }
}

fn holder(file: &File) -> Option<u32> {
    let found = file.metadata().ok()?;
    find(&fs::read_to_string("/proc/locks").ok()?, major(found.dev()), minor(found.dev()), found.ino())
}

/// The holder of an inode's flock, in the text of `proc_locks(5)`:
/// `1: FLOCK  ADVISORY  WRITE 4711 00:1f:42 0 EOF`. 0 stands for a process of another PID namespace.
fn find(locks: &str, major: u32, minor: u32, inode: u64) -> Option<u32> {
    let wanted = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        (fields.next()? == "FLOCK").then_some(())?;
        let process: u32 = fields.nth(2)?.parse().ok()?;
        (fields.next()? == wanted && process != 0).then_some(process)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_belongs_to_one_and_to_the_next_when_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let first = lock(directory.path()).unwrap().unwrap();
        let refused = lock(directory.path()).unwrap_err().to_string();
        let own = format!("another edged (process {}) has its maps", std::process::id());
        assert!(refused.starts_with(&own) && refused.contains("--pins"), "{refused}");
        drop(first);
        assert!(lock(directory.path()).unwrap().is_some());
        assert!(lock(&directory.path().join("absent")).unwrap().is_none());
    }

    #[test]
    fn the_kernels_list_is_read() {
        let locks = "1: POSIX  ADVISORY  WRITE 1 00:1f:42 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 2 00:1f:42 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 0 00:1f:41 0 EOF\n4: FLOCK  ADVISORY  WRITE 4711 00:1f:42 0 EOF\n";
        assert_eq!(find(locks, 0, 0x1f, 42), Some(4711));
        assert_eq!(find(locks, 0, 0x1f, 41), None);
        assert_eq!(find("", 0, 0x1f, 42), None);
    }
}
