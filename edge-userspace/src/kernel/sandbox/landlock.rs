//! Landlock: the part of the file system that a process still sees, whatever user it runs as.
//!
//! Best effort: Linux 5.13 introduced it, 6.12 also restricts signals and abstract sockets.

use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};

/// The newest version of Landlock whose rights are spoken of here.
const VERSION: ABI = ABI::V6;

/// The allowed accesses by path. Missing paths are left out.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// Files and directories to read.
    pub(super) read: Vec<PathBuf>,
    /// Directories in which plain files, directories and sockets may be created, changed and removed, and
    /// files that may be written.
    pub(super) change: Vec<PathBuf>,
    /// Whether abstract Unix sockets of others may be used: some service managers listen on one.
    pub(super) abstract_sockets: bool,
}

/// Lets this thread, and those that it starts, see no more than that, for good.
pub(super) fn enter(view: &View) -> Result<RulesetStatus, RulesetError> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let change = read
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeSock
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(VERSION))?
        .scope(if view.abstract_sockets { Scope::Signal.into() } else { Scope::from_all(VERSION) })?
        .create()?;
    for (paths, access) in [(&view.read, read), (&view.change, change)] {
        for path in paths {
            if let Ok(opened) = PathFd::new(path) {
                let access = if path.is_dir() { access } else { access & AccessFs::from_file(VERSION) };
                rules = rules.add_rule(PathBeneath::new(opened, access))?;
            }
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::ErrorKind};

    use super::*;

    #[test]
    fn what_is_not_in_view_cannot_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let [seen, own, other] = ["seen", "own", "other"].map(|name| directory.path().join(name));
        for path in [&seen, &own, &other] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("file"), "text").unwrap();
        }
        let missing = directory.path().join("missing");
        // Threads have domains of their own.
        std::thread::spawn(move || {
            let change = vec![own.clone(), "/dev/null".into()];
            let view = View { read: vec![seen.clone(), missing], change, abstract_sockets: false };
            if enter(&view).unwrap() == RulesetStatus::NotEnforced {
                eprintln!("skipped: no Landlock in this kernel");
                return;
            }
            let denied = |result: std::io::Result<()>| {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
            };
            assert_eq!(fs::read_to_string(seen.join("file")).unwrap(), "text");
            denied(fs::write(seen.join("file"), "other"));
            denied(fs::write(seen.join("new"), ""));
            fs::write(own.join("file.new"), "other").unwrap();
            fs::rename(own.join("file.new"), own.join("file")).unwrap();
            fs::remove_file(own.join("file")).unwrap();
            fs::write("/dev/null", "").unwrap();
            denied(fs::read(other.join("file")).map(drop));
            denied(fs::rename(other.join("file"), own.join("file")));
            denied(std::os::unix::fs::symlink("/etc/passwd", own.join("link")));
        })
        .join()
        .unwrap();
    }
}
