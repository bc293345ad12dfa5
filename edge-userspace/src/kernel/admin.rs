//! Which threads have `CAP_NET_ADMIN`, and what an attacker could do with it.
//!
//! The daemon keeps this capability for `TCP_REPAIR` and larger send buffers. The same capability would let
//! an attacker who controls the daemon change routes, addresses and the firewall through netlink. For a
//! change by netlink the kernel requires it of the sending thread and, unless the message names a
//! destination, of the thread that opened the socket (`__netlink_ns_capable`, `net/netlink/af_netlink.c`).
//! There are therefore two kinds of threads:
//!
//! - One thread, and the worker threads that it starts, have the capability. They may neither open netlink
//!   sockets nor send anything with an address (seccomp).
//! - All others lack it, and open the netlink sockets.
//!
//! Whichever thread and socket an attacker combines, one of the two conditions fails.

use std::{
    io,
    sync::{OnceLock, mpsc},
    thread,
};

use super::sandbox;

type Job = Box<dyn FnOnce() + Send>;

static ADMIN: OnceLock<mpsc::Sender<Job>> = OnceLock::new();

/// Runs `action` on the thread with the capability, and waits; on this one where nothing was given up.
pub fn run<T: Send + 'static>(action: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let Some(admin) = ADMIN.get() else { return Ok(action()) };
    let (answer, answered) = mpsc::sync_channel(1);
    let job: Job = Box::new(move || {
        let _ = answer.send(action());
    });
    let gone = || io::Error::other("the thread with CAP_NET_ADMIN has ended");
    admin.send(job).map_err(|_| gone())?;
    answered.recv().map_err(|_| gone())
}

/// Starts a thread that has the capability.
pub fn spawn(builder: thread::Builder, action: impl FnOnce() + Send + 'static) -> io::Result<()> {
    run(move || builder.spawn(action))?.map(drop)
}

/// Starts the thread, which is confined when this returns; the caller gives the capability up then.
pub(super) fn start() -> io::Result<()> {
    let (admin, jobs) = mpsc::channel::<Job>();
    let (ready, is_ready) = mpsc::sync_channel(1);
    thread::Builder::new().name("net-admin".into()).spawn(move || {
        let confined = sandbox::confine_admin();
        let is_confined = confined.is_ok();
        let _ = ready.send(confined);
        if is_confined {
            for job in jobs {
                job();
            }
        }
    })?;
    is_ready.recv().map_err(io::Error::other)??;
    let _ = ADMIN.set(admin);
    Ok(())
}
