//! Connects to a Unix socket, and finds out whether a program has one open without connecting.
//!
//! `connect` succeeds or fails at once: the file is missing, no program has the socket open any more, or its mode keeps
//! this user out. If the program's backlog is full, it fails with `EAGAIN` (unix(7)), and no event reports free room;
//! such a connection is tried again until its time is over.
//!
//! The socket is wrapped in tokio's [`TcpStream`], like every other backend's, so that the same code carries both.
//! TCP's socket options fail on it; their callers allow for that.

use std::{io, time::Duration};

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::ConnectError;
use crate::spec::UnixPath;

/// How long to wait for room in a full backlog before the next attempt.
const PAUSE: Duration = Duration::from_millis(20);

/// Connects to the socket within `limit`.
pub(super) async fn connect(path: &UnixPath, limit: Duration) -> Result<TcpStream, ConnectError> {
    let failed = |error| ConnectError::Unix { path: path.clone(), error };
    let deadline = Instant::now() + limit;
    loop {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None).map_err(failed)?;
        match SockAddr::unix(path.as_str()).and_then(|address| socket.connect(&address)) {
            Ok(()) => return TcpStream::from_std(socket.into()).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() + PAUSE < deadline => {
                sleep(PAUSE).await;
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Whether a program has the socket open and this user may connect to it. The program does not notice: when a
/// datagram socket connects to a stream socket, the kernel checks path and permission as for a connection, and then
/// fails with `EPROTOTYPE` because the types differ (`unix_find_other` in `net/unix/af_unix.c`).
pub fn look(path: &UnixPath) -> Result<(), ConnectError> {
    let failed = |error| ConnectError::Unix { path: path.clone(), error };
    let socket = Socket::new(Domain::UNIX, Type::DGRAM.nonblocking(), None).map_err(failed)?;
    match SockAddr::unix(path.as_str()).and_then(|address| socket.connect(&address)) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(()),
        // It is a datagram socket itself.
        Ok(()) => Err(failed(io::Error::from_raw_os_error(libc::EPROTOTYPE))),
        Err(error) => Err(failed(error)),
    }
}

/// The meaning of an error of `connect`, and what to do about it.
pub(super) fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "there is no such file where edged looks: is its program running, and is the path \
                               outside of /home, /root and /tmp, which edged.service hides?"
            .to_owned(),
        Some(libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG) => format!("the path leads nowhere: {error}"),
        Some(libc::ECONNREFUSED) => "no program listens on it: the file was left behind, or is no socket; restart the \
                                     program that it belongs to"
            .to_owned(),
        Some(libc::EACCES | libc::EPERM) => "edged may not connect: its user needs write permission on the socket and \
                                             search permission (x) on every directory of the path, for example as a member \
                                             of the socket's group (`usermod -aG GROUP edge`, then restart edged)"
            .to_owned(),
        Some(libc::EAGAIN) => "its backlog is full: restart its program or raise its backlog".to_owned(),
        Some(libc::EPROTOTYPE) => "it is of another type: let its program use a stream socket".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    fn path(directory: &tempfile::TempDir, name: &str) -> UnixPath {
        UnixPath::of_target(&format!("unix:{}", directory.path().join(name).display())).unwrap().unwrap()
    }

    async fn both(path: &UnixPath) -> [Result<(), String>; 2] {
        let connected = connect(path, Duration::from_millis(100)).await.map(drop);
        [connected, look(path)].map(|outcome| outcome.map_err(|error| error.to_string()))
    }

    #[tokio::test]
    async fn a_look_finds_what_a_connection_would_and_is_not_seen() {
        let directory = tempfile::tempdir().unwrap();
        let live = UnixListener::bind(directory.path().join("live")).unwrap();
        live.set_nonblocking(true).unwrap();
        assert_eq!(look(&path(&directory, "live")).map_err(|error| error.to_string()), Ok(()));
        assert_eq!(live.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody connected");
        assert_eq!(both(&path(&directory, "live")).await, [Ok(()), Ok(())]);

        drop(UnixListener::bind(directory.path().join("stale")).unwrap());
        std::fs::write(directory.path().join("file"), "").unwrap();
        let _datagrams = UnixDatagram::bind(directory.path().join("datagrams")).unwrap();
        for (name, expected) in [
            ("missing", "no such file"),
            ("stale", "no program listens"),
            ("file", "no program listens"),
            ("datagrams", "another type"),
        ] {
            for outcome in both(&path(&directory, name)).await {
                let error = outcome.unwrap_err();
                assert!(error.starts_with("unix:/") && error.contains(expected), "{name}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn a_full_backlog_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(directory.path().join("busy")).unwrap()).unwrap();
        socket.listen(0).unwrap();
        let busy = path(&directory, "busy");
        // One more than the backlog is taken.
        let _first = connect(&busy, Duration::ZERO).await.unwrap();
        let error = connect(&busy, Duration::from_millis(50)).await.unwrap_err().to_string();
        assert!(error.contains("backlog is full"), "{error}");
        let second = tokio::spawn(async move { connect(&busy, Duration::from_secs(20)).await.map(drop) });
        tokio::task::yield_now().await;
        socket.accept().unwrap();
        second.await.unwrap().unwrap();
    }
}
