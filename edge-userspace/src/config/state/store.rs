//! Keeping the state: written before it is answered for, kept twice, recovered without loss.
//!
//! A change is written to a new file, made durable and renamed over the old one, first for the backup and then for
//! the file itself. Whatever moment the power goes, each of the two is whole, and both hold every change that was
//! answered for.
//!
//! A directory that cannot be written to (a disk that is full or read-only, a file system that is not mounted yet) stops
//! no start as long as it can be read: only changes at run time are refused until it can be.

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

/// A state directory, held against any other process until it is dropped.
///
/// All calls wait for the disk; an event loop hands them to a thread.
#[derive(Debug)]
pub struct StateStore {
    dir: PathBuf,
    /// The lock goes with the descriptor. `None` where there was no file to lock, and none could be made.
    lock: Option<fs::File>,
}

/// What [`StateStore::open`] finds.
#[derive(Debug)]
pub struct Opened {
    /// Keeps the directory.
    pub store: StateStore,
    /// What was kept.
    pub state: State,
    /// What was mended on the way, for the log and the status.
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
    /// Takes the directory, makes it where it is not there, and reads what was kept in it.
    ///
    /// # Errors
    ///
    /// [`StateError::Busy`] while another process has it. Where both copies are damaged, that is an error and never
    /// an empty state.
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

    /// Keeps a state: when this returns, it survives the loss of power.
    ///
    /// # Errors
    ///
    /// The state that was kept before still is.
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
    /// The value; `None` after an error that only says that nothing can be written now. Others are passed on.
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

/// Takes the lock of the directory, and writes in it whose it is. Where nothing can be written, says so too; then there
/// is a lock only where there is a file to lock.
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
            // Who it is only helps: where it cannot be read, the refusal stands without it.
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
mod tests {
    use super::{super::tests::state, *};

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn with(state: &State) -> Self {
            let dir = Self(tempfile::tempdir().unwrap());
            dir.open().unwrap().store.save(state).unwrap();
            dir
        }

        fn open(&self) -> Result<Opened, StateError> {
            StateStore::open(self.0.path())
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        /// What an error or a recovery says, with `DIR` for the directory.
        fn said(&self, what: &impl ToString) -> String {
            what.to_string().replace(self.0.path().to_str().unwrap(), "DIR")
        }
    }

    #[test]
    fn what_is_saved_is_there_again() {
        let dir = Dir(tempfile::tempdir().unwrap());
        let mut opened = StateStore::open(&dir.path("not/yet/there")).unwrap();
        assert_eq!((&opened.state, &opened.recovery), (&State::default(), &None));
        opened.store.save(&state()).unwrap();
        drop(opened);
        let opened = StateStore::open(&dir.path("not/yet/there")).unwrap();
        assert_eq!((opened.state, opened.recovery), (state(), None));
    }

    #[test]
    fn a_file_cut_at_any_byte_is_recovered() {
        // One of each: every byte costs some waits for the disk.
        let mut kept = state();
        kept.routes.truncate(1);
        kept.drained.truncate(1);
        kept.blocks.truncate(1);
        let dir = Dir::with(&kept);
        let whole = fs::read(dir.path(FILE)).unwrap();
        assert_eq!(whole, fs::read(dir.path(BACKUP)).unwrap());
        for length in 0..whole.len() {
            fs::write(dir.path(FILE), &whole[..length]).unwrap();
            let opened = dir.open().unwrap();
            assert_eq!(opened.state, kept, "cut at {length}");
            // Without the last newline nothing is missing.
            let mended = length + 1 < whole.len();
            assert_eq!(opened.recovery.is_some(), mended, "cut at {length}");
            for kept in opened.recovery.into_iter().filter_map(|recovery| recovery.kept) {
                assert_eq!(fs::read(&kept).unwrap(), whole[..length], "cut at {length}");
                fs::remove_file(kept).unwrap();
            }
            if mended {
                assert_eq!(fs::read(dir.path(FILE)).unwrap(), whole, "cut at {length}");
            }
            fs::write(dir.path(BACKUP), &whole).unwrap();
        }
    }

    #[test]
    fn a_recovery_says_what_happened() {
        let dir = Dir::with(&state());
        fs::write(dir.path(FILE), "version = 1\n[[route]]\nhost = \"a.test\"\n# end\n").unwrap();
        let recovery = dir.open().unwrap().recovery.unwrap();
        let said = dir.said(&recovery);
        let (said, time) = said.rsplit_once('-').unwrap();
        assert_eq!(
            said,
            "DIR/state.toml was damaged (DIR/state.toml:2:1: no `to` in [[route]]; add for example to = \
             \"100.64.0.2\") and was made anew from DIR/state.toml.bak; nothing that edgectl did is lost, and \
             the damaged file is kept as DIR/state.toml.broken"
        );
        assert!(time.parse::<u64>().is_ok(), "{time}");
        assert_eq!(dir.open().unwrap().recovery, None, "mended once for all");

        fs::remove_file(dir.path(FILE)).unwrap();
        let opened = dir.open().unwrap();
        assert_eq!(opened.state, state());
        assert_eq!(
            dir.said(&opened.recovery.unwrap()),
            "DIR/state.toml was not there and was made anew from DIR/state.toml.bak; nothing that edgectl did is lost"
        );
    }

    #[test]
    fn two_damages_in_one_second_are_both_kept() {
        let dir = Dir::with(&state());
        for _ in 0..3 {
            fs::write(dir.path(FILE), "").unwrap();
            dir.open().unwrap();
        }
        let kept = dir.names().iter().filter(|name| name.starts_with("state.toml.broken-")).count();
        assert_eq!(kept, 3);
    }

    #[test]
    fn an_edited_file_counts_and_its_backup_follows() {
        let dir = Dir::with(&state());
        let edited = State { routes: Vec::new(), ..state() };
        fs::write(dir.path(FILE), edited.to_text().unwrap()).unwrap();
        let opened = dir.open().unwrap();
        assert_eq!((opened.state, opened.recovery), (edited, None));
        assert_eq!(fs::read(dir.path(FILE)).unwrap(), fs::read(dir.path(BACKUP)).unwrap());
    }

    #[test]
    fn a_stop_at_any_moment_of_saving_leaves_the_old_state_or_the_new() {
        let (old, new) = (State::default(), state());
        let text = new.to_text().unwrap();
        let half = &text[..text.len() / 2];
        let stops: [&[(&str, &str)]; 4] = [
            &[("state.toml.bak.new", half)],
            &[("state.toml.bak.new", &text)],
            &[(BACKUP, &text), ("state.toml.new", half)],
            &[(BACKUP, &text), ("state.toml.new", &text)],
        ];
        for written in stops {
            let dir = Dir::with(&old);
            for (name, text) in written {
                fs::write(dir.path(name), text).unwrap();
            }
            let mut opened = dir.open().unwrap();
            assert_eq!((&opened.state, &opened.recovery), (&old, &None), "{written:?}");
            opened.store.save(&new).unwrap();
            drop(opened);
            let names = dir.names();
            assert_eq!(names, ["lock", "state.toml", "state.toml.bak"], "{written:?}");
            assert_eq!(dir.open().unwrap().state, new);
        }
    }

    #[test]
    fn a_damaged_backup_is_made_anew() {
        let dir = Dir::with(&state());
        fs::write(dir.path(BACKUP), "\0\0\0\0").unwrap();
        let opened = dir.open().unwrap();
        assert_eq!(opened.state, state());
        assert_eq!(opened.recovery.unwrap().file, dir.path(BACKUP));
        assert_eq!(fs::read(dir.path(FILE)).unwrap(), fs::read(dir.path(BACKUP)).unwrap());
    }

    #[test]
    fn two_damaged_copies_are_an_error_and_stay_as_they_are() {
        let dir = Dir::with(&state());
        fs::write(dir.path(FILE), "").unwrap();
        fs::remove_file(dir.path(BACKUP)).unwrap();
        let error = dir.open().unwrap_err();
        assert_eq!(
            dir.said(&error),
            "neither DIR/state.toml nor its backup can be read; mend one of them, or move both away to start \
             without the routes, drained backends and blocks made at run time\n\
             DIR/state.toml: its last line, `# end`, is missing: the file is cut off or was edited without it\n\
             DIR/state.toml.bak is not there"
        );
        fs::write(dir.path(BACKUP), b"\xff").unwrap();
        assert!(matches!(dir.open(), Err(StateError::Unreadable { .. })));
        assert_eq!(dir.names(), ["lock", "state.toml", "state.toml.bak"]);
        assert_eq!(fs::read(dir.path(FILE)).unwrap(), b"");
    }

    #[test]
    fn a_later_layout_is_left_alone() {
        let dir = Dir::with(&state());
        fs::write(dir.path(FILE), "version = 2\n# end\n").unwrap();
        let error = dir.open().unwrap_err();
        assert_eq!(
            dir.said(&error),
            "DIR/state.toml has layout 2, which a later edged wrote; install that version again, or \
             move the file away"
        );
        assert_eq!(fs::read(dir.path(FILE)).unwrap(), b"version = 2\n# end\n");
    }

    #[test]
    fn a_directory_belongs_to_one() {
        let dir = Dir::with(&state());
        let opened = dir.open().unwrap();
        assert_eq!(
            dir.said(&dir.open().unwrap_err()),
            format!(
                "another edged (process {}) keeps its state in DIR; stop it, or give this one a \
                 `state_dir` of its own",
                std::process::id()
            )
        );
        drop(opened);
        assert_eq!(dir.open().unwrap().state, state());
    }

    #[test]
    fn a_place_where_nothing_can_be_written_is_told() {
        let dir = Dir::with(&state());
        let error = StateStore::open(&dir.path("state.toml/sub")).unwrap_err();
        assert_eq!(
            dir.said(&error),
            "cannot make the directory DIR/state.toml/sub: Not a directory (os error 20); `state_dir` in [daemon] \
             must be a directory that edged may write to"
        );
    }

    #[test]
    fn what_cannot_be_written_now_is_told_from_what_is_wrong() {
        let error = |action, number| failed(action, Path::new("x"))(io::Error::from_raw_os_error(number));
        for number in [libc::EROFS, libc::ENOSPC, libc::EDQUOT, libc::EACCES] {
            assert!(error("create", number).is_unwritable(), "{number}");
        }
        // What cannot be read may hold routes.
        assert!(!error("read", libc::EACCES).is_unwritable());
        assert!(!error("make the directory", libc::ENOTDIR).is_unwritable());
    }

    #[test]
    fn a_save_that_fails_leaves_what_was_kept() {
        let dir = Dir::with(&state());
        let mut opened = dir.open().unwrap();
        fs::create_dir(dir.path("state.toml.bak.new")).unwrap();
        assert!(matches!(opened.store.save(&State::default()), Err(StateError::Io { action: "create", .. })));
        drop(opened);
        assert_eq!(dir.open().unwrap().state, state());
    }
}
