//! The control socket in the file system: who may use it, and what happens to one that was left behind.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr, Socket, Type};

/// Root and the members of [`GROUP`].
const MODE: u32 = 0o660;
/// Whose members may steer the daemon without being root.
const GROUP: &str = "edge";
const BACKLOG: i32 = 128;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error("another edged answers on {0}: stop it, or set daemon.control to another path")]
    InUse(PathBuf),
    /// The path is taken by something that must not be deleted.
    #[error("{0} exists and is not a socket: remove it, or set daemon.control to another path")]
    NotASocket(PathBuf),
    /// The kernel refused.
    #[error("{call} for the control socket {path}: {source}")]
    Io {
        /// The call that failed.
        call: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A listening control socket; its file goes with it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl ControlSocket {
    /// Listens at `path`, for root and the group `edge` where there is one.
    ///
    /// A socket on which nobody answers is replaced. The directory is made if it is not there.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let failed = |call| move |source| BindError::Io { call, path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed("mkdir"))?;
        }
        remove_stale(path)?;

        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed("socket"))?;
        // unix_bind() takes the mode of the socket's inode: there is no moment with wider rights.
        rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(MODE))
            .map_err(io::Error::from)
            .map_err(failed("fchmod"))?;
        socket.bind(&SockAddr::unix(path).map_err(failed("bind"))?).map_err(failed("bind"))?;
        if let Some(group) = group_id(&fs::read_to_string("/etc/group").unwrap_or_default(), GROUP)
            && let Err(error) = std::os::unix::fs::chown(path, None, Some(group))
        {
            tracing::warn!(%error, "the control socket cannot be given to the group {GROUP}: only its owner can use it");
        }
        // After chown(), and because the umask took bits away at bind().
        fs::set_permissions(path, fs::Permissions::from_mode(MODE)).map_err(failed("chmod"))?;
        socket.listen(BACKLOG).map_err(failed("listen"))?;
        socket.set_nonblocking(true).map_err(failed("fcntl"))?;
        let inode = fs::metadata(path).map_err(failed("stat"))?.ino();
        Ok(Self { listener: socket.into(), path: path.to_owned(), inode })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A second handle to the same listening socket, for the runtime.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Another daemon may have put its own in this place.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |call| move |source| BindError::Io { call, path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("stat")(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("unlink"))
        }
        Err(error) => Err(failed("connect")(error)),
    }
}

/// The number of a group in the text of group(5). The C library's lookup would need `unsafe` and, linked
/// statically, would find no more than this file.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let first = ControlSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, MODE);
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::InUse(_))));

        let left_behind = directory.path().join("left.sock");
        drop(UnixListener::bind(&left_behind).unwrap());
        assert!(left_behind.exists());
        drop(ControlSocket::bind(&left_behind).unwrap());
        assert!(!left_behind.exists(), "the file goes with the socket");

        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn what_is_not_a_socket_is_not_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_socket_of_another_daemon_in_the_same_place_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let first = ControlSocket::bind(&path).unwrap();
        fs::rename(&path, directory.path().join("moved.sock")).unwrap();
        let second = ControlSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }

    #[test]
    fn groups_are_found_by_name() {
        let groups = "root:x:0:\nedgers:x:7:\nedge:x:998:alice,bob\nbroken\n";
        assert_eq!(group_id(groups, "edge"), Some(998));
        assert_eq!(group_id(groups, "broken"), None);
        assert_eq!(group_id(groups, "nobody"), None);
    }
}
