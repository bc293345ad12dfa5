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

    /// The text of an error or a recovery, with `DIR` for the directory.
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
    // An unreadable file may hold routes.
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
