//! Local ports of connections to backends. They have a separate range, because no socket reserves the port of
//! a flow, and the flow would carry off the answers to anybody else who connected from it.
//!
//! A port is reserved per backend. Ports are handed out round-robin, so that one is reused as late as
//! possible, when the peer has left TIME-WAIT.
//!
//! For each backend a source holds at most as many ports as are still free, and its network at most twice as
//! many. A single source gets half of all ports if nobody else wants any, two together get two thirds, and
//! one is always left for a newcomer.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    lock::lock,
    source::{network_of, source_of},
};

/// How many ports a network may hold for each that is free.
const NETWORK_SHARE: u32 = 2;

/// Which ports are taken, by backend.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    /// The first that is taken towards a backend, counted from the start of the range.
    first: u16,
    taken: Mutex<HashMap<SocketAddr, Taken>>,
}

/// Of one backend: a bit a port.
#[derive(Debug)]
struct Taken {
    by_sockets: Box<[u64]>,
    by_flows: Box<[u64]>,
    /// Whose each taken port is, by its place in the range.
    owners: HashMap<u16, Owner>,
    /// How many ports each source and each network holds.
    held: HashMap<Holder, u32>,
    next: u16,
}

/// Whom a port is counted for.
#[derive(Clone, Copy, Debug)]
struct Owner {
    source: IpAddr,
    network: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Source(IpAddr),
    Network(IpAddr),
}

impl Owner {
    fn of(client: IpAddr) -> Self {
        Self { source: source_of(client), network: network_of(client) }
    }

    fn holders(self) -> [Holder; 2] {
        [Holder::Source(self.source), Holder::Network(self.network)]
    }
}

/// A port that a socket has; given back when dropped.
#[derive(Debug)]
pub struct PortLease {
    ports: Arc<Ports>,
    backend: SocketAddr,
    port: u16,
}

impl PortLease {
    /// The port.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        self.ports.change(self.backend, self.port, |taken, at| taken.give_back(at, false));
    }
}

impl Ports {
    /// Ports of this range.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self { range, first: 0, taken: Mutex::default() }
    }

    /// The same, from the middle of the range on: as far as possible from the ports of a recently started
    /// daemon whose flows cannot be read.
    #[must_use]
    pub fn from_the_middle(self) -> Self {
        Self { first: (self.range.end() - self.range.start()) / 2, ..self }
    }

    /// Whether a local port is one of these.
    pub fn contains(&self, port: u16) -> bool {
        self.range.contains(&port)
    }

    /// The range.
    pub const fn range(&self) -> &RangeInclusive<u16> {
        &self.range
    }

    /// A free port towards a backend for a connection of this client. `None` if there is none, or if the
    /// client's source or network holds its share.
    pub fn lease(self: &Arc<Self>, backend: SocketAddr, client: IpAddr) -> Option<PortLease> {
        let size = self.range.end() - self.range.start() + 1;
        let owner = Owner::of(client);
        let mut all = self.lock();
        let taken = all.entry(backend).or_insert_with(|| Taken::new(size, self.first));
        if !taken.has_room_for(owner, size) {
            return None;
        }
        let at = (0..size).map(|step| taken.after(step, size)).find(|at| !taken.is_taken(*at))?;
        taken.next = (at + 1) % size;
        taken.take(at, false, owner);
        Some(PortLease { ports: Arc::clone(self), backend, port: self.range.start() + at })
    }

    /// The port belongs to a flow from now on, even after the socket is gone. It is counted for this client
    /// unless it was leased for another one.
    pub fn take_for_flow(&self, backend: SocketAddr, port: u16, client: IpAddr) {
        self.change(backend, port, |taken, at| taken.take(at, true, Owner::of(client)));
    }

    /// The flow is gone.
    pub fn give_back(&self, backend: SocketAddr, port: u16) {
        self.change(backend, port, |taken, at| taken.give_back(at, true));
    }

    fn change(&self, backend: SocketAddr, port: u16, change: impl FnOnce(&mut Taken, u16)) {
        if !self.contains(port) {
            return;
        }
        let size = self.range.end() - self.range.start() + 1;
        let mut all = self.lock();
        let taken = all.entry(backend).or_insert_with(|| Taken::new(size, self.first));
        change(taken, port - self.range.start());
        // Backends come and go with their addresses.
        if taken.owners.is_empty() && taken.next == self.first {
            all.remove(&backend);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Taken>> {
        lock(&self.taken)
    }
}

impl Taken {
    fn new(size: u16, next: u16) -> Self {
        let words = usize::from(size).div_ceil(64);
        let none = || vec![0; words].into_boxed_slice();
        Self { by_sockets: none(), by_flows: none(), owners: HashMap::new(), held: HashMap::new(), next }
    }

    fn after(&self, step: u16, size: u16) -> u16 {
        let at = u32::from(self.next) + u32::from(step);
        u16::try_from(at % u32::from(size)).unwrap_or(0)
    }

    fn place(at: u16) -> (usize, u64) {
        (usize::from(at / 64), 1 << (at % 64))
    }

    fn is_taken(&self, at: u16) -> bool {
        let (word, bit) = Self::place(at);
        (self.by_sockets[word] | self.by_flows[word]) & bit != 0
    }

    fn bits(&mut self, by_flow: bool) -> &mut [u64] {
        if by_flow { &mut self.by_flows } else { &mut self.by_sockets }
    }

    /// Whether this owner may take one port more.
    fn has_room_for(&self, owner: Owner, size: u16) -> bool {
        let free = usize::from(size).saturating_sub(self.owners.len());
        let free = u32::try_from(free).unwrap_or(u32::MAX);
        let held = |holder| self.held.get(&holder).copied().unwrap_or(0);
        let [source, network] = owner.holders().map(held);
        source < free && network < NETWORK_SHARE * free
    }

    fn take(&mut self, at: u16, by_flow: bool, owner: Owner) {
        let (word, bit) = Self::place(at);
        self.bits(by_flow)[word] |= bit;
        if let Entry::Vacant(entry) = self.owners.entry(at) {
            entry.insert(owner);
            for holder in owner.holders() {
                *self.held.entry(holder).or_insert(0) += 1;
            }
        }
    }

    fn give_back(&mut self, at: u16, by_flow: bool) {
        let (word, bit) = Self::place(at);
        self.bits(by_flow)[word] &= !bit;
        if self.is_taken(at) {
            return;
        }
        for holder in self.owners.remove(&at).into_iter().flat_map(Owner::holders) {
            if let Entry::Occupied(mut entry) = self.held.entry(holder) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 443))
    }

    /// A client of a network of its own.
    fn client(network: u8) -> IpAddr {
        [192, 0, network, 1].into()
    }

    #[test]
    fn a_port_is_taken_towards_one_backend_until_socket_and_flow_are_gone() {
        let ports = Arc::new(Ports::new(20_000..=20_002));
        let first = ports.lease(backend(1), client(1)).unwrap();
        assert_eq!(first.port(), 20_000);
        assert_eq!(ports.lease(backend(2), client(1)).unwrap().port(), 20_000);
        let others: Vec<_> = (2..4).map(|number| ports.lease(backend(1), client(number)).unwrap()).collect();
        assert!(ports.lease(backend(1), client(4)).is_none());
        ports.take_for_flow(backend(1), 20_000, client(1));
        drop(first);
        assert!(ports.lease(backend(1), client(4)).is_none());
        ports.give_back(backend(1), 20_000);
        assert_eq!(ports.lease(backend(1), client(4)).unwrap().port(), 20_000);
        drop(others);
    }

    #[test]
    fn a_port_comes_again_as_late_as_possible() {
        let ports = Arc::new(Ports::new(65_533..=65_535));
        let given: Vec<_> = (0..4).map(|_| ports.lease(backend(1), client(1)).unwrap().port()).collect();
        assert_eq!(given, [65_533, 65_534, 65_535, 65_533]);
    }

    /// Takes as many ports as there are for these clients, who take turns.
    fn take_all(ports: &Arc<Ports>, clients: &[IpAddr], leases: &mut Vec<PortLease>) -> usize {
        let before = leases.len();
        loop {
            let new: Vec<_> = clients.iter().filter_map(|of| ports.lease(backend(1), *of)).collect();
            if new.is_empty() {
                return leases.len() - before;
            }
            leases.extend(new);
        }
    }

    #[test]
    fn a_source_holds_no_more_than_it_leaves() {
        let ports = Arc::new(Ports::new(10_001..=11_000));
        let mut leases = Vec::new();
        assert_eq!(take_all(&ports, &[client(1)], &mut leases), 500);
        assert_eq!(take_all(&ports, &[client(2)], &mut leases), 250);
        drop(leases);
        let mut leases = Vec::new();
        assert_eq!(take_all(&ports, &[client(1), client(2)], &mut leases), 667);
        assert!(ports.lease(backend(1), client(3)).is_some());
        assert!(ports.lease(backend(2), client(1)).is_some(), "towards another backend");
        // A returned port may be used again.
        leases.truncate(600);
        assert_eq!(take_all(&ports, &[client(1), client(2)], &mut leases), 67);
        drop(leases);
        assert!(ports.lock()[&backend(1)].held.is_empty());
    }

    #[test]
    fn nor_does_a_network_however_many_sources_it_has() {
        let ports = Arc::new(Ports::new(10_001..=11_000));
        let of_network = |subnet: u16| IpAddr::from([0x2001, 0xdb8, 7, subnet, 0, 0, 0, 1]);
        let many: Vec<_> = (0..200).map(of_network).collect();
        let mut leases = Vec::new();
        assert_eq!(take_all(&ports, &many, &mut leases), 667);
        assert!(ports.lease(backend(1), of_network(999)).is_none());
        assert!(ports.lease(backend(1), client(1)).is_some());
    }

    #[test]
    fn flows_count_for_their_clients_after_a_restart() {
        let ports = Arc::new(Ports::new(10_001..=10_010));
        for port in 10_001..=10_005 {
            ports.take_for_flow(backend(1), port, client(1));
        }
        assert!(ports.lease(backend(1), client(1)).is_none());
        assert!(ports.lease(backend(1), client(2)).is_some());
        ports.give_back(backend(1), 10_001);
        assert!(ports.lease(backend(1), client(1)).is_some());
    }

    #[test]
    fn the_first_ones_are_left_to_a_daemon_whose_flows_cannot_be_read() {
        let ports = Arc::new(Ports::new(20_000..=20_004).from_the_middle());
        let given: Vec<_> = (0..6).map(|_| ports.lease(backend(1), client(1)).unwrap().port()).collect();
        assert_eq!(given, [20_002, 20_003, 20_004, 20_000, 20_001, 20_002]);
    }

    #[test]
    fn ports_of_others_do_not_matter() {
        let ports = Ports::new(20_000..=20_002);
        ports.take_for_flow(backend(1), 40_000, client(1));
        assert!(ports.lock().is_empty() && !ports.contains(40_000));
    }
}
