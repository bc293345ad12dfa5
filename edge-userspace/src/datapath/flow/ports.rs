//! Local ports of connections to backends: a range of its own, because a flow has no socket that would keep its port
//! taken, and anybody who connected from it would have the answers carried off by the flow.
//!
//! A port is taken for one backend; to another it is free. Who takes them in turn meets a port again as late as
//! possible, when the other side has forgotten the connection before.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Ports kept for flows unless told otherwise: below those that the kernel gives out by itself
/// (`net.ipv4.ip_local_port_range`), above those that services listen on.
pub const DEFAULT_PORTS: RangeInclusive<u16> = 10_240..=32_767;

/// Which ports are taken, by backend.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    taken: Mutex<HashMap<SocketAddr, Taken>>,
}

/// Of one backend: a bit a port.
#[derive(Debug)]
struct Taken {
    by_sockets: Box<[u64]>,
    by_flows: Box<[u64]>,
    /// How many bits are set in both.
    count: u32,
    next: u16,
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
        Self { range, taken: Mutex::default() }
    }

    /// Whether a local port is one of these.
    pub fn contains(&self, port: u16) -> bool {
        self.range.contains(&port)
    }

    /// The range.
    pub const fn range(&self) -> &RangeInclusive<u16> {
        &self.range
    }

    /// A free port towards a backend, if there is one.
    pub fn lease(self: &Arc<Self>, backend: SocketAddr) -> Option<PortLease> {
        let size = self.range.end() - self.range.start() + 1;
        let mut all = self.lock();
        let taken = all.entry(backend).or_insert_with(|| Taken::new(size));
        let at = (0..size).map(|step| taken.after(step, size)).find(|at| !taken.is_taken(*at))?;
        taken.next = (at + 1) % size;
        taken.take(at, false);
        Some(PortLease { ports: Arc::clone(self), backend, port: self.range.start() + at })
    }

    /// The port belongs to a flow from now on, whatever becomes of the socket.
    pub fn take_for_flow(&self, backend: SocketAddr, port: u16) {
        self.change(backend, port, |taken, at| taken.take(at, true));
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
        let taken = all.entry(backend).or_insert_with(|| Taken::new(size));
        change(taken, port - self.range.start());
        // Backends come and go with their addresses.
        if taken.count == 0 && taken.next == 0 {
            all.remove(&backend);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SocketAddr, Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn new(size: u16) -> Self {
        let words = usize::from(size).div_ceil(64);
        let none = || vec![0; words].into_boxed_slice();
        Self { by_sockets: none(), by_flows: none(), count: 0, next: 0 }
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

    fn take(&mut self, at: u16, by_flow: bool) {
        let (word, bit) = Self::place(at);
        let bits = &mut self.bits(by_flow)[word];
        let is_new = *bits & bit == 0;
        *bits |= bit;
        self.count += u32::from(is_new);
    }

    fn give_back(&mut self, at: u16, by_flow: bool) {
        let (word, bit) = Self::place(at);
        let bits = &mut self.bits(by_flow)[word];
        let was_there = *bits & bit != 0;
        *bits &= !bit;
        self.count -= u32::from(was_there);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 443))
    }

    #[test]
    fn a_port_is_taken_towards_one_backend_until_socket_and_flow_are_gone() {
        let ports = Arc::new(Ports::new(20_000..=20_002));
        let first = ports.lease(backend(1)).unwrap();
        assert_eq!(first.port(), 20_000);
        assert_eq!(ports.lease(backend(2)).unwrap().port(), 20_000);
        let others: Vec<_> = (0..2).map(|_| ports.lease(backend(1)).unwrap()).collect();
        assert!(ports.lease(backend(1)).is_none());
        ports.take_for_flow(backend(1), 20_000);
        drop(first);
        assert!(ports.lease(backend(1)).is_none());
        ports.give_back(backend(1), 20_000);
        assert_eq!(ports.lease(backend(1)).unwrap().port(), 20_000);
        drop(others);
    }

    #[test]
    fn a_port_comes_again_as_late_as_possible() {
        let ports = Arc::new(Ports::new(65_533..=65_535));
        let given: Vec<_> = (0..4).map(|_| ports.lease(backend(1)).unwrap().port()).collect();
        assert_eq!(given, [65_533, 65_534, 65_535, 65_533]);
    }

    #[test]
    fn ports_of_others_do_not_matter() {
        let ports = Ports::new(20_000..=20_002);
        ports.take_for_flow(backend(1), 40_000);
        assert!(ports.lock().is_empty() && !ports.contains(40_000));
    }
}
