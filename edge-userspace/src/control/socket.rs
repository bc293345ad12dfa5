//! The control socket in the file system: its access rights, and the handling of one that was left behind.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::net::sockopt;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::group;

/// Root and the members of the group [`group::NAME`], who may steer the daemon without being root.
const MODE: u32 = 0o660;
const BACKLOG: i32 = 128;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error(
        "another edged{} answers on {}: stop it, or set daemon.control to another path",
        process.map(|process| format!(" (process {process})")).unwrap_or_default(),
        path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
        /// Its process, where the kernel says it.
        process: Option<u32>,
    },
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
    /// Listens at `path`, for root and, if it exists, the group `edge`.
    ///
    /// Replaces a socket on which nobody answers. Creates the directory if it is missing.
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
        if let Some(group) = group::edge()
            && let Err(error) = std::os::unix::fs::chown(path, None, Some(group))
        {
            tracing::warn!(%error, "the control socket cannot be given to the group {}: only its owner can use it", group::NAME);
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
        Ok(other) => {
            let process = sockopt::socket_peercred(&other).ok();
            let process = process.and_then(|peer| peer.pid.as_raw_nonzero().get().try_into().ok());
            Err(BindError::InUse { path: path.to_owned(), process })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("unlink"))
        }
        Err(error) => Err(failed("connect")(error)),
    }
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
        assert!(matches!(ControlSocket::bind(&path), Err(BindError::InUse { process: Some(_), .. })));

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
}
