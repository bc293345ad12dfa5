//! The listening sockets of the running listeners: bound, left with the service manager too, handed to the workers,
//! closed when a reload drops them.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsFd as _,
    sync::Arc,
};

use sd_notify::NotifyState;
use socket2::SockRef;

use super::worker::{Binding, Workers};
use crate::{
    hash::fnv1a,
    listener::{self, BindError, ListenerSpec},
};

/// Which addresses are being listened on.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: HashSet<Binding>,
    /// Passed by the service manager and not claimed by a listener yet (`LISTEN_FDS`): bound by itself, or by an edged
    /// before this one.
    inherited: Vec<TcpListener>,
    /// Addresses whose sockets the service manager may have kept for somebody else than who has them now.
    stale: BTreeSet<SocketAddr>,
}

/// Sockets that a new configuration needs, bound before anything changes.
#[derive(Debug)]
pub(super) struct Prepared {
    wanted: HashSet<Binding>,
    fresh: Vec<(Binding, Vec<TcpListener>)>,
}

impl Sockets {
    pub(super) fn new(inherited: Vec<TcpListener>) -> Self {
        let stale = inherited.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        Self { open: HashSet::new(), inherited, stale }
    }

    /// Binds what these listeners need and what is not open yet. On an error nothing has changed.
    pub(super) fn prepare(
        &mut self,
        listeners: &[ListenerSpec],
        workers: usize,
    ) -> Result<Prepared, BindError> {
        let addresses: HashSet<SocketAddr> =
            listeners.iter().flat_map(|spec| spec.bind.iter().copied()).collect();
        let mut prepared = Prepared { wanted: HashSet::new(), fresh: Vec::new() };
        for spec in listeners {
            for &address in &spec.bind {
                let binding = Binding { listener: Arc::clone(&spec.name), address };
                if !self.open.contains(&binding) {
                    // A listener that only got another name keeps its port busy until it is closed: SO_REUSEPORT
                    // lets the new one in beside it.
                    let renamed = self.open.iter().any(|open| open.address == address);
                    let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
                    let sockets = match self.claim(address, workers) {
                        Some(sockets) => sockets,
                        None => listener::bind(address, workers, addresses.contains(&any_v4), renamed)?,
                    };
                    prepared.fresh.push((binding.clone(), sockets));
                }
                prepared.wanted.insert(binding);
            }
        }
        Ok(prepared)
    }

    /// Listens as prepared, and closes what is not wanted any more.
    pub(super) fn commit(&mut self, prepared: Prepared, workers: &Workers) {
        self.stale.extend(self.open.difference(&prepared.wanted).map(|binding| binding.address));
        // Before the new ones: they may have the addresses of old ones.
        for address in std::mem::take(&mut self.stale) {
            forget(address);
        }
        for (binding, sockets) in prepared.fresh {
            keep(binding.address, &sockets);
            workers.listen(&binding, sockets);
        }
        for binding in self.open.difference(&prepared.wanted) {
            workers.close(binding);
        }
        self.open = prepared.wanted;
        for unclaimed in self.inherited.drain(..) {
            let address = unclaimed.local_addr().map_or_else(|_| "?".into(), |address| address.to_string());
            tracing::warn!(address, "the service manager passed a socket that no listener binds: closed");
        }
    }

    /// What the service manager passed for this address, one for each worker: where there are fewer, some share one.
    fn claim(&mut self, address: SocketAddr, workers: usize) -> Option<Vec<TcpListener>> {
        let is_for = |socket: &mut TcpListener| socket.local_addr().is_ok_and(|local| local == address);
        let passed: Vec<_> = self.inherited.extract_if(.., is_for).collect();
        if passed.is_empty() {
            return None;
        }
        adopt(passed, workers)
            .inspect_err(|error| tracing::warn!(%address, %error, "a passed socket cannot be used"))
            .ok()
    }
}

fn adopt(mut sockets: Vec<TcpListener>, workers: usize) -> io::Result<Vec<TcpListener>> {
    for socket in &sockets {
        socket.set_nonblocking(true)?;
        listener::tune(&SockRef::from(socket))?;
    }
    while sockets.len() < workers {
        sockets.push(sockets[0].try_clone()?);
    }
    // One that nobody accepts from would swallow clients.
    sockets.truncate(workers);
    Ok(sockets)
}

/// Leaves copies with the service manager, which passes them to the next edged: meanwhile the kernel goes on to queue
/// clients. Without one, or with one that keeps no descriptors, nothing happens (`sd_pid_notify_with_fds(3)`).
fn keep(address: SocketAddr, sockets: &[TcpListener]) {
    for socket in sockets {
        let states = [NotifyState::FdStore, NotifyState::FdName(&name(address))];
        if let Err(error) = sd_notify::notify_with_fds(&states, &[socket.as_fd()]) {
            tracing::warn!(%address, %error, "a listening socket cannot be left with the service manager");
        }
    }
}

/// Has the service manager close its copies for this address.
fn forget(address: SocketAddr) {
    let states = [NotifyState::FdStoreRemove, NotifyState::FdName(&name(address))];
    if let Err(error) = sd_notify::notify(&states) {
        tracing::warn!(%address, %error, "the service manager cannot be told to close a listening socket");
    }
}

/// A name for the service manager, which takes no colon.
fn name(address: SocketAddr) -> String {
    format!("edge-{:016x}", fnv1a(&address.to_string()))
}
