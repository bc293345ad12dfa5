//! Faults of the state on disk, and repairs: texts for the log and the status.

use std::{fmt, io, path::PathBuf};

/// Damage that was repaired without loss. Displays what happened, and where the damaged file is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The file that was damaged.
    pub file: PathBuf,
    /// The fault; `None` if the file did not exist.
    pub reason: Option<String>,
    /// Where it was moved.
    pub kept: Option<PathBuf>,
    /// The copy from which it was made anew.
    pub from: PathBuf,
}

/// Why the state cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A call that failed.
    #[error("cannot {action} {}: {}", path.display(), why(source))]
    Io {
        /// The attempted action.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory is another's.
    #[error(
        "another edged{} keeps its state in {}; stop it, or give this one a `state_dir` of its own",
        process.as_ref().map(|process| format!(" (process {process})")).unwrap_or_default(),
        dir.display()
    )]
    Busy {
        /// The directory.
        dir: PathBuf,
        /// The other's process id, where it said it.
        process: Option<String>,
    },
    /// Written by a later version.
    #[error(
        "{} has layout {version}, which a later edged wrote; install that version again, or move the file away",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its layout.
        version: u32,
    },
    /// Neither the file nor its backup can be used. Nothing was changed.
    #[error(
        "neither {} nor its backup can be read; mend one of them, or move both away to start without the routes, \
         drained backends and blocks made at run time\n{file}\n{backup}",
        path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The fault of the file.
        file: String,
        /// The fault of the backup.
        backup: String,
    },
    /// The thread that writes ended before it was done, as when the daemon ends.
    #[error("the state was not written: {0}")]
    Interrupted(io::Error),
    /// The state cannot be written as TOML.
    #[error("the state cannot be written as TOML: {0}")]
    Unwritable(#[from] toml::ser::Error),
}

impl StateError {
    /// Whether the only problem is that nothing can be written now: a full or read-only disk, or missing
    /// rights.
    pub fn is_unwritable(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        matches!(self, Self::Io { action, source, .. } if *action != "read" && matches!(
            source.kind(),
            PermissionDenied | QuotaExceeded | ReadOnlyFilesystem | StorageFull
        ))
    }
}

/// The cause of the failure, and the remedy.
fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull => "the disk is full; make room on it".to_owned(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up; make room, or raise it".to_owned(),
        _ => format!("{error}; `state_dir` in [daemon] must be a directory that edged may write to"),
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (file, from) = (self.file.display(), self.from.display());
        match &self.reason {
            None => write!(f, "{file} was not there")?,
            Some(reason) => write!(f, "{file} was damaged ({reason})")?,
        }
        write!(f, " and was made anew from {from}; nothing that edgectl did is lost")?;
        self.kept
            .iter()
            .try_for_each(|kept| write!(f, ", and the damaged file is kept as {}", kept.display()))
    }
}
