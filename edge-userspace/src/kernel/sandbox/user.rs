//! Becoming another user, and giving it what is to be its own.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use rustix::{
    fs::{AtFlags, Gid, OFlags, Uid, chownat},
    thread::{set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

/// The user that the daemon becomes if it was started as root.
pub const USER: &str = "edge";

/// An account, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    uid: u32,
    gid: u32,
    /// Groups that it is a member of besides.
    groups: Vec<u32>,
}

impl Account {
    /// The account [`USER`], where this process may become it and the machine has it.
    pub fn find() -> Option<Self> {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/etc/passwd"), &read("/etc/group"), USER)
    }

    /// Reads the texts of passwd(5) and group(5). The C library's lookup would need `unsafe` and, if linked
    /// statically, would read no more than these files.
    fn parse(passwd: &str, group: &str, name: &str) -> Option<Self> {
        let (uid, gid): (u32, u32) = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            Some((fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?))
        })?;
        let (mut own, mut groups) = (None, Vec::new());
        for line in group.lines() {
            let mut fields = line.split(':');
            let (Some(called), Some(id)) = (fields.next(), fields.nth(1).and_then(|id| id.parse().ok()))
            else {
                continue;
            };
            if called == name {
                own = Some(id);
            } else if fields.next().is_some_and(|members| members.split(',').any(|member| member == name)) {
                groups.push(id);
            }
        }
        // Whose members steer the daemon and read its log: the group of the same name.
        let gid = own.unwrap_or(gid);
        // Root by another name is nobody to become.
        (uid != 0).then_some(Self { uid, gid, groups })
    }

    /// Its number.
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// Switches to the user for good, keeping this thread's permitted capabilities. Must be called while it
    /// is the only thread.
    pub(super) fn become_it(&self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let groups: Vec<_> = self.groups.iter().map(|&group| Gid::from_raw(group)).collect();
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_keep_capabilities(true)?;
        set_thread_res_uid(uid, uid, uid)?;
        set_keep_capabilities(false)?;
        Ok(())
    }

    /// Creates the directory if it is missing, and gives it and root's plain files in it to this account: an
    /// edged that ran as root left them so. Files that this process cannot open already belong to another
    /// user.
    pub fn own_directory(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(path)?;
        unless_closed(self.own_existing_directory(path))
    }

    fn own_existing_directory(&self, path: &Path) -> io::Result<()> {
        let directory = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::DIRECTORY | OFlags::NOFOLLOW).bits().cast_signed())
            .open(path)?;
        self.give(&directory)?;
        for entry in fs::read_dir(path)?.flatten() {
            if entry.file_type()?.is_file() {
                self.own_file(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Gives an existing file of root's to this account. A file that is reached through a symbolic link or
    /// has another name is left alone: the owner of the directory must not get another user's file this way.
    pub fn own_file(&self, path: &Path) -> io::Result<()> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::PATH | OFlags::NOFOLLOW).bits().cast_signed())
            .open(path);
        match opened {
            Ok(file) if file.metadata()?.is_file() && file.metadata()?.nlink() == 1 => self.give(&file),
            Err(error) if error.kind() != io::ErrorKind::NotFound => unless_closed(Err(error)),
            _ => Ok(()),
        }
    }

    /// The same, and makes the file where it is missing.
    pub fn own_new_file(&self, path: &Path) -> io::Result<()> {
        match OpenOptions::new().write(true).create_new(true).mode(0o640).open(path) {
            Ok(file) => {
                // Whatever the umask of the process.
                file.set_permissions(fs::Permissions::from_mode(0o640))?;
                self.give(&file)
            }
            Err(_) => self.own_file(path),
        }
    }

    fn give(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.uid() != 0 {
            return Ok(());
        }
        let (uid, gid) = (Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)));
        Ok(chownat(file, c"", uid, gid, AtFlags::EMPTY_PATH)?)
    }
}

fn unless_closed(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nedger:x:7:7::/:/bin/false\nbroken\n\
        edge:x:998:997:edge:/var/lib/edge:/usr/sbin/nologin\ntoor:x:0:0::/:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nedge:x:997:alice\nssl-cert:x:110:www-data,edge\nbroken\nlogs:x:5:edger\n";

    #[test]
    fn accounts_are_found_by_name() {
        let edge = Account::parse(PASSWD, GROUP, "edge").unwrap();
        assert_eq!(edge, Account { uid: 998, gid: 997, groups: vec![110] });
        let renumbered = GROUP.replace("logs", "edge");
        assert_eq!(Account::parse(PASSWD, &renumbered, "edge").unwrap().gid, 5, "the group goes by its name");
        assert_eq!(Account::parse(PASSWD, GROUP, "toor"), None, "root by another name");
        assert_eq!(Account::parse(PASSWD, GROUP, "nobody"), None);
        assert_eq!(Account::parse(PASSWD, GROUP, "broken"), None);
    }

    #[test]
    fn files_of_root_are_given_and_links_are_not_followed() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: giving files away needs root");
            return;
        }
        let account = Account { uid: 65_001, gid: 65_002, groups: Vec::new() };
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "root's").unwrap();
        let state = outside.path().join("state");
        fs::create_dir(&state).unwrap();
        fs::write(state.join("state.toml"), "").unwrap();
        std::os::unix::fs::symlink(&secret, state.join("linked")).unwrap();
        fs::hard_link(&secret, state.join("named-twice")).unwrap();
        account.own_directory(&state).unwrap();
        let owner = |path: &Path| fs::metadata(path).unwrap().uid();
        assert_eq!(owner(&state), 65_001);
        assert_eq!(owner(&state.join("state.toml")), 65_001);
        assert_eq!(owner(&secret), 0, "neither by a symbolic link nor by a second name");
        let log = state.join("access.log");
        account.own_new_file(&log).unwrap();
        assert_eq!((owner(&log), fs::metadata(&log).unwrap().mode() & 0o777), (65_001, 0o640));
        let directory = outside.path().join("new/state");
        account.own_directory(&directory).unwrap();
        assert_eq!(owner(&directory), 65_001);
    }
}
