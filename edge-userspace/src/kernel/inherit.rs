//! Listening sockets that the service manager bound for us (`sd_listen_fds(3)`).
#![expect(unsafe_code, reason = "a descriptor that came by number has to be taken into ownership")]

use std::{
    net::TcpListener,
    os::fd::{FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::net::{SocketType, sockopt};

/// Takes the stream sockets passed by `LISTEN_FDS`; empty where there are none, and at every later call.
pub fn inherited_listeners() -> Vec<TcpListener> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let passed = match sd_notify::listen_fds() {
        Ok(passed) => passed,
        Err(error) => {
            tracing::warn!(%error, "LISTEN_FDS is not as sd_listen_fds(3) says: ignored");
            return Vec::new();
        }
    };
    passed
        .filter_map(|descriptor| {
            // SAFETY: `listen_fds` gives descriptors only if LISTEN_PID names this process, and then the service
            // manager opened them for it: nobody else in it knows them, and TAKEN lets only one call take them.
            let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
            let listens = sockopt::socket_type(&socket) == Ok(SocketType::STREAM)
                && sockopt::socket_acceptconn(&socket) == Ok(true);
            if !listens {
                tracing::warn!(descriptor, "passed by LISTEN_FDS, but no listening stream socket: closed");
            }
            listens.then(|| TcpListener::from(socket))
        })
        .collect()
}
