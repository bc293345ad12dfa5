//! The listening sockets of the running listeners: bound, also left with the service manager, handed to the
//! workers, closed when a reload drops them. A failed bind is retried.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsFd as _,
    sync::Arc,
};

use sd_notify::NotifyState;
use socket2::SockRef;

use super::{
    troubles::Trouble,
    worker::{Binding, Workers},
};
use crate::{
    hash::fnv1a,
    listener::{self, BindError},
    spec::ListenerSpec,
};

/// Which addresses are being listened on.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: HashSet<Binding>,
    /// Wanted, and not to be had when they were last tried.
    failed: HashMap<Binding, BindError>,
    /// Passed by the service manager and not yet claimed by a listener (`LISTEN_FDS`): bound by the manager,
    /// or by an earlier edged.
    inherited: Vec<TcpListener>,
    /// Addresses whose sockets the service manager may have kept for a previous owner.
    stale: BTreeSet<SocketAddr>,
}

/// Sockets that a new configuration needs, bound before anything changes.
#[derive(Debug)]
pub(super) struct Prepared {
    wanted: HashSet<Binding>,
    fresh: Vec<(Binding, Vec<TcpListener>)>,
    failed: HashMap<Binding, BindError>,
}

/// The fate of an address that cannot be bound now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Demand {
    /// The others are served meanwhile: at the start, an edge with one listener is better than none.
    Some,
    /// It is an error, unless it was so before: a reload changes all or nothing.
    All,
}

impl Sockets {
    pub(super) fn new(inherited: Vec<TcpListener>) -> Self {
        let stale = inherited.iter().filter_map(|socket| socket.local_addr().ok()).collect();
        Self { inherited, stale, ..Self::default() }
    }

    /// Binds what these listeners need and what is not open yet. On an error nothing has changed.
    pub(super) fn prepare(
        &mut self,
        listeners: &[ListenerSpec],
        workers: usize,
        demand: Demand,
    ) -> Result<Prepared, BindError> {
        let mut prepared = Prepared { wanted: HashSet::new(), fresh: Vec::new(), failed: HashMap::new() };
        for (binding, v6_only) in bindings(listeners) {
            if !self.open.contains(&binding) {
                let address = binding.address;
                // A listener that was only renamed keeps its port busy until it is closed: SO_REUSEPORT lets
                // the new one in beside it.
                let renamed = self.open.iter().any(|open| open.address == address);
                let bound = match self.claim(address, workers) {
                    Some(sockets) => Ok(sockets),
                    None => listener::bind(address, workers, v6_only, renamed),
                };
                match bound {
                    Ok(sockets) => prepared.fresh.push((binding.clone(), sockets)),
                    Err(error)
                        if error.may_pass()
                            && (demand == Demand::Some || self.failed.contains_key(&binding)) =>
                    {
                        prepared.failed.insert(binding, error);
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            prepared.wanted.insert(binding);
        }
        Ok(prepared)
    }

    /// Tries again what could not be bound; says whether there is something new.
    pub(super) fn retry(&mut self, listeners: &[ListenerSpec], workers: &Workers) -> bool {
        let mut opened = false;
        for (binding, v6_only) in bindings(listeners) {
            // To find out who has it takes a walk through all processes: not again and again.
            if !self.failed.contains_key(&binding) || listener::is_taken(binding.address, v6_only) {
                continue;
            }
            match listener::bind(binding.address, workers.count(), v6_only, false) {
                Ok(sockets) => {
                    self.failed.remove(&binding);
                    forget(binding.address);
                    keep(binding.address, &sockets);
                    workers.listen(&binding, sockets);
                    self.open.insert(binding);
                    opened = true;
                }
                Err(error) => {
                    self.failed.insert(binding, error);
                }
            }
        }
        opened
    }

    /// Where clients are not accepted, or cannot come, now.
    pub(super) fn troubles(&self) -> Vec<(Binding, Trouble)> {
        let closed = self.failed.iter();
        let closed = closed.map(|(binding, error)| (binding.clone(), Trouble::Closed(error.to_string())));
        let away = self.open.iter().filter(|binding| {
            let ip = binding.address.ip();
            !ip.is_unspecified() && !listener::is_local(binding.address)
        });
        closed.chain(away.map(|binding| (binding.clone(), Trouble::Away))).collect()
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
        self.failed = prepared.failed;
        for unclaimed in self.inherited.drain(..) {
            let address = unclaimed.local_addr().map_or_else(|_| "?".into(), |address| address.to_string());
            tracing::warn!(address, "the service manager passed a socket that no listener binds: closed");
        }
    }

    /// The sockets that the service manager passed for this address, one per worker; workers share them if
    /// there are fewer.
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

/// Every address of these listeners, and whether it is for IPv6 only: `[::]` beside `0.0.0.0` is.
fn bindings(listeners: &[ListenerSpec]) -> impl Iterator<Item = (Binding, bool)> {
    let addresses: HashSet<SocketAddr> =
        listeners.iter().flat_map(|spec| spec.bind.iter().copied()).collect();
    listeners.iter().flat_map(|spec| spec.bind.iter().map(|address| (Arc::clone(&spec.name), *address))).map(
        move |(listener, address)| {
            let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            (Binding { listener, address }, addresses.contains(&any_v4))
        },
    )
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

/// Leaves copies with the service manager, which passes them to the next edged: the kernel continues to queue
/// clients meanwhile. Without a manager, or with one that keeps no descriptors, nothing happens
/// (`sd_pid_notify_with_fds(3)`).
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
