//! Keeps the state: written before a change is acknowledged, stored twice, recovered without loss.
//!
//! A change is written to a new file, made durable and renamed over the old one, first for the backup and
//! then for the file itself. If the power fails at any moment, each of the two is whole, and both hold every
//! change that was acknowledged.
//!
//! A directory that cannot be written to (a disk that is full or read-only, a file system that is not mounted
//! yet) prevents no start as long as it can be read. Only changes at run time are refused until it is
//! writable.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{FlockOperation, flock};

use super::{Recovery, State, StateError, Unusable};

const FILE: &str = "state.toml";
const BACKUP: &str = "state.toml.bak";
const LOCK: &str = "lock";
/// Behind the name of a file that is being written.
const NEW: &str = "new";

/// A state directory, locked against all other processes until it is dropped.
///
/// All calls wait for the disk, so an event loop must run them on another thread.
#[derive(Debug)]
pub struct StateStore {
    dir: PathBuf,
    /// The lock ends with the descriptor. `None` if there was no file to lock and none could be created.
    lock: Option<fs::File>,
}

/// The result of [`StateStore::open`].
#[derive(Debug)]
pub struct Opened {
    /// Keeps the directory.
    pub store: StateStore,
    /// The state on disk.
    pub state: State,
    /// The repair, if one was needed, for the log and the status.
    pub recovery: Option<Recovery>,
    /// Why nothing can be kept at the moment.
    pub obstacle: Option<StateError>,
}

/// One of the two copies, as it was found.
enum Copy {
    Missing,
    Good { text: String, state: State },
    Broken(String),
}

impl StateStore {
    /// Locks the directory, creates it if it is missing, and reads the state in it.
    ///
    /// # Errors
    ///
    /// [`StateError::Busy`] while another process has it. If both copies are damaged, that is an error and
    /// never an empty state.
    pub fn open(dir: &Path) -> Result<Opened, StateError> {
        let mut obstacle = Obstacle(None);
        let lock = match obstacle.pass(make(dir))? {
            Some(()) => {
                let (lock, unwritable) = lock(dir)?;
                obstacle.0 = unwritable;
                lock
            }
            None => None,
        };
        let store = Self { dir: dir.to_owned(), lock };
        let (file, backup) = (store.dir.join(FILE), store.dir.join(BACKUP));
        let (state, recovery) = match (read(&file)?, read(&backup)?) {
            (Copy::Missing, Copy::Missing) => (State::default(), None),
            (Copy::Good { text, state }, copy) => {
                let recovery = match copy {
                    Copy::Good { text: same, .. } if same == text => None,
                    // The file was edited by hand, or the machine stopped between the two.
                    Copy::Good { .. } | Copy::Missing => {
                        obstacle.pass(store.restore(&backup, &text))?;
                        None
                    }
                    Copy::Broken(reason) => {
                        obstacle.pass(store.recover(&backup, Some(reason), &text, &file))?
                    }
                };
                (state, recovery)
            }
            (Copy::Missing, Copy::Good { text, state }) => {
                (state, obstacle.pass(store.recover(&file, None, &text, &backup))?)
            }
            (Copy::Broken(reason), Copy::Good { text, state }) => {
                (state, obstacle.pass(store.recover(&file, Some(reason), &text, &backup))?)
            }
            (one, other) => {
                let (one, other) = (one.damage(&file), other.damage(&backup));
                return Err(StateError::Unreadable { path: file, file: one, backup: other });
            }
        };
        Ok(Opened { store, state, recovery, obstacle: obstacle.0 })
    }

    /// Stores a state: when this returns, it survives a power failure.
    ///
    /// # Errors
    ///
    /// The previous state is still stored.
    pub fn save(&mut self, state: &State) -> Result<(), StateError> {
        let text = state.to_text()?;
        if self.lock.is_none() {
            make(&self.dir)?;
            let (lock, unwritable) = lock(&self.dir)?;
            self.lock = lock;
            if let Some(error) = unwritable {
                return Err(error);
            }
        }
        // The backup first: where it fails, the file that counts is as it was.
        replace(&self.dir.join(BACKUP), &text)?;
        replace(&self.dir.join(FILE), &text)?;
        self.sync()
    }

    /// Moves a damaged copy aside and makes it anew from the other.
    fn recover(
        &self,
        path: &Path,
        reason: Option<String>,
        text: &str,
        from: &Path,
    ) -> Result<Recovery, StateError> {
        let mut kept = None;
        if reason.is_some() {
            let aside = aside(path);
            fs::rename(path, &aside).map_err(failed("move aside", path))?;
            kept = Some(aside);
        }
        self.restore(path, text)?;
        Ok(Recovery { file: path.to_owned(), reason, kept, from: from.to_owned() })
    }

    fn restore(&self, path: &Path, text: &str) -> Result<(), StateError> {
        replace(path, text)?;
        self.sync()
    }

    /// Makes renames durable.
    fn sync(&self) -> Result<(), StateError> {
        let dir = fs::File::open(&self.dir).map_err(failed("open", &self.dir))?;
        dir.sync_all().map_err(failed("make durable", &self.dir))
    }
}

/// The first thing that kept the directory from being written to.
struct Obstacle(Option<StateError>);

impl Obstacle {
    /// The value; `None` after an error that only means that nothing can be written now. Other errors are
    /// passed on.
    fn pass<T>(&mut self, result: Result<T, StateError>) -> Result<Option<T>, StateError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_unwritable() => {
                self.0.get_or_insert(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn make(dir: &Path) -> Result<(), StateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o750).create(dir);
    made.map_err(failed("make the directory", dir))
}

/// Puts a text in the place of a file, whole or not at all.
fn replace(path: &Path, text: &str) -> Result<(), StateError> {
    let new = with_ending(path, NEW);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o640);
    let mut file = options.open(&new).map_err(failed("create", &new))?;
    file.write_all(text.as_bytes()).map_err(failed("write", &new))?;
    file.sync_all().map_err(failed("make durable", &new))?;
    fs::rename(&new, path).map_err(failed("replace", path))
}

impl Copy {
    fn damage(self, path: &Path) -> String {
        match self {
            Self::Missing => format!("{} is not there", path.display()),
            Self::Broken(reason) => format!("{}: {reason}", path.display()),
            Self::Good { .. } => format!("{} is whole", path.display()),
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    move |source| StateError::Io { action, path: path.to_owned(), source }
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}

/// Where a damaged file goes: a name with the time that is not taken.
fn aside(path: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut aside = with_ending(path, &format!("broken-{now}"));
    let mut more = 1;
    while aside.exists() {
        more += 1;
        aside = with_ending(path, &format!("broken-{now}-{more}"));
    }
    aside
}

/// Locks the directory and writes the process id into the lock file. If nothing can be written, reports that
/// too; the directory is then locked only if the lock file already exists.
fn lock(dir: &Path) -> Result<(Option<fs::File>, Option<StateError>), StateError> {
    let path = dir.join(LOCK);
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o640);
    let (mut file, unwritable) = match options.open(&path).map_err(failed("open", &path)) {
        Err(error) if error.is_unwritable() => match fs::File::open(&path) {
            Ok(file) => (file, Some(error)),
            Err(_) => return Ok((None, Some(error))),
        },
        opened => (opened?, None),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // The process id is only a help: if it cannot be read, the refusal comes without it.
            let _ = file.take(32).read_to_string(&mut text);
            let process = Some(text.trim().to_owned()).filter(|process| !process.is_empty());
            return Err(StateError::Busy { dir: dir.to_owned(), process });
        }
        Err(error) => return Err(failed("lock", &path)(error.into())),
    }
    // For the one who meets the lock. On a full disk it is held without.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok((Some(file), unwritable))
}

fn read(path: &Path) -> Result<Copy, StateError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Copy::Missing),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let Ok(text) = String::from_utf8(bytes) else {
        return Ok(Copy::Broken("it is not UTF-8 text".to_owned()));
    };
    match State::from_text(&path.display().to_string(), &text) {
        Ok(state) => Ok(Copy::Good { text, state }),
        Err(Unusable::Broken(reason)) => Ok(Copy::Broken(reason)),
        Err(Unusable::Newer(version)) => Err(StateError::Newer { path: path.to_owned(), version }),
    }
}

#[cfg(test)]
mod tests;
