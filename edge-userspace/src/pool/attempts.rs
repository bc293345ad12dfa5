//! A pool at run time, and the order in which a connection tries its backends.
//!
//! Backends that are up come first, picked by the pool's method; then backups; then those that are down,
//! since a state may be wrong and a connection attempt wakes some tunnels. Drained and full ones are never tried.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use smallvec::SmallVec;

use super::{
    backend::Backend,
    balance::{Balancer, Candidate},
    condition::BackendState,
};
use crate::spec::{HealthSpec, PoolSpec, ProxyProtocol, ProxyTlvs, Warm};

/// The time to connect when no backend is up. The refusal should come soon, but only after a second SYN,
/// which Linux sends after one second, has had a chance.
pub const LAST_RESORT_TIMEOUT: Duration = Duration::from_millis(1500);

/// A pool: its configuration and its backends. Immutable; a reload makes a new one over the same backends.
#[derive(Debug)]
pub struct Pool {
    name: Arc<str>,
    balancer: Balancer,
    proxy_protocol: ProxyProtocol,
    proxy_tlvs: ProxyTlvs,
    proxy_align: u8,
    /// Whether a header of it has been too long for all its TLVs.
    left_tlvs_out: AtomicBool,
    connect_timeout: Duration,
    warm: Warm,
    health: HealthSpec,
    backends: Box<[Arc<Backend>]>,
}

impl Pool {
    /// A pool over backends that [`Backends`](super::Backends) keeps.
    pub(super) fn new(spec: &PoolSpec, backends: Box<[Arc<Backend>]>) -> Self {
        Self {
            name: Arc::clone(&spec.name),
            balancer: Balancer::new(spec.balance, backends.len()),
            proxy_protocol: spec.proxy_protocol,
            proxy_tlvs: spec.proxy_tlvs,
            proxy_align: spec.proxy_align,
            left_tlvs_out: AtomicBool::new(false),
            connect_timeout: spec.connect_timeout,
            warm: spec.warm,
            health: spec.health,
            backends,
        }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The PROXY header that its backends want.
    pub fn proxy_protocol(&self) -> ProxyProtocol {
        self.proxy_protocol
    }

    /// The TLVs in a header of version 2.
    pub fn proxy_tlvs(&self) -> ProxyTlvs {
        self.proxy_tlvs
    }

    /// Whether it is the first time that TLVs are left out of a header to its backends.
    pub fn leaves_tlvs_out(&self) -> bool {
        !self.left_tlvs_out.swap(true, Relaxed)
    }

    /// The length that a header of version 2 is padded to a multiple of, in bytes.
    pub fn proxy_align(&self) -> u8 {
        self.proxy_align
    }

    /// Time for a connection to a backend, all attempts together.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    /// Idle connections kept ready to each backend.
    pub fn warm(&self) -> Warm {
        self.warm
    }

    /// The health check of its backends.
    pub fn health(&self) -> &HealthSpec {
        &self.health
    }

    /// Its backends, in the order of the configuration.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// The backends to try for a connection of `client`, best first, each once. They are picked on demand, so
    /// the usual single attempt costs a single pick.
    pub fn attempts(&self, client: IpAddr) -> Attempts<'_> {
        let words = self.backends.len().div_ceil(64);
        Attempts {
            pool: self,
            client,
            tried: SmallVec::from_elem(0, words),
            rank: Rank::Up,
            left: self.backends.len(),
            resorted: None,
        }
    }
}

/// The order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Up,
    UpBackup,
    Down,
    DownBackup,
}

const RANKS: [Rank; 4] = [Rank::Up, Rank::UpBackup, Rank::Down, Rank::DownBackup];

impl Rank {
    fn of(backend: &Backend) -> Option<Self> {
        match (backend.state(), backend.is_backup()) {
            (BackendState::Up | BackendState::Unchecked, false) => Some(Self::Up),
            (BackendState::Up | BackendState::Unchecked, true) => Some(Self::UpBackup),
            (BackendState::Down, false) => Some(Self::Down),
            (BackendState::Down, true) => Some(Self::DownBackup),
            (BackendState::Drained, _) => None,
        }
    }
}

/// The backends that one connection tries, by [`Pool::attempts`].
#[derive(Debug)]
pub struct Attempts<'a> {
    pool: &'a Pool,
    client: IpAddr,
    /// One bit a backend.
    tried: SmallVec<[u64; 2]>,
    rank: Rank,
    left: usize,
    /// When the first backend was tried that is down.
    resorted: Option<Duration>,
}

impl Attempts<'_> {
    /// Whether the last backend yielded is down, and was so only tried for want of a better one.
    pub fn is_last_resort(&self) -> bool {
        self.rank >= Rank::Down
    }

    /// The time that the attempt just yielded may take, `elapsed` after the first one began: a fair part of
    /// what is left while there are others to try, so that a silent backend does not use up the time of those
    /// that would answer. Zero when the time is over.
    pub fn time(&mut self, elapsed: Duration) -> Duration {
        /// More parts than this would leave each too short for a second SYN.
        const PARTS: usize = 3;
        let mut whole = self.pool.connect_timeout;
        if self.is_last_resort() && !self.is_only_way() {
            whole = whole.min(*self.resorted.get_or_insert(elapsed) + LAST_RESORT_TIMEOUT);
        }
        let others = (0..self.pool.backends.len()).filter(|&index| self.rank_of(index).is_some());
        let parts = 1 + others.take(PARTS - 1).count();
        whole.saturating_sub(elapsed) / u32::try_from(parts).unwrap_or(1)
    }

    /// Whether there is only one backend and only clients' connections show its state: a failure of the last
    /// is no reason to give the next less time.
    fn is_only_way(&self) -> bool {
        matches!(self.pool.backends(), [backend] if backend.is_only_way())
    }

    /// Whether a backend that was not tried yet is up.
    pub(super) fn has_up(&self) -> bool {
        (0..self.pool.backends.len()).any(|index| self.rank_of(index).is_some_and(|rank| rank < Rank::Down))
    }

    /// The rank of a backend that is still to be tried.
    fn rank_of(&self, index: usize) -> Option<Rank> {
        let tried = self.tried[index / 64] & (1 << (index % 64)) != 0;
        let backend = &self.pool.backends[index];
        if tried || backend.places().are_full() { None } else { Rank::of(backend) }
    }

    fn pick(&self, rank: Rank) -> Option<usize> {
        self.pool.balancer.pick(self.pool.backends.len(), self.client, |index| {
            // One that came up while others were tried is welcome, hence not `==`.
            let backend =
                self.rank_of(index).filter(|&found| found <= rank).map(|_| &self.pool.backends[index])?;
            Some(Candidate {
                weight: backend.effective_weight(),
                connections: backend.connections(),
                hash: backend.hash(),
            })
        })
    }
}

impl Iterator for Attempts<'_> {
    type Item = Arc<Backend>;

    fn next(&mut self) -> Option<Arc<Backend>> {
        if self.left == 0 {
            return None;
        }
        for rank in RANKS.into_iter().filter(|&rank| rank >= self.rank) {
            if let Some(index) = self.pick(rank) {
                self.rank = rank;
                self.left -= 1;
                self.tried[index / 64] |= 1 << (index % 64);
                return Some(Arc::clone(&self.pool.backends[index]));
            }
        }
        self.left = 0;
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pool::{Backends, Obstacle},
        spec::{BackendSpec, Balance},
    };

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn pool(balance: Balance, backends: &[(&str, u32, bool)]) -> Pool {
        let backends = backends
            .iter()
            .map(|&(to, weight, backup)| BackendSpec {
                weight,
                backup,
                ..BackendSpec::new(to.parse().unwrap())
            })
            .collect();
        Backends::default().pool(&PoolSpec { balance, ..PoolSpec::new("home", backends) })
    }

    fn order(pool: &Pool) -> Vec<String> {
        pool.attempts(CLIENT).map(|backend| backend.to().to_string()).collect()
    }

    #[test]
    fn each_backend_is_tried_once_the_best_first() {
        for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::Random, Balance::SourceHash]
        {
            let pool = pool(
                balance,
                &[
                    ("10.0.0.1", 1, true),
                    ("10.0.0.2", 1, false),
                    ("10.0.0.3", 0, false),
                    ("10.0.0.4", 1, false),
                ],
            );
            pool.backends()[3].obstacle(Obstacle::Tunnel, Some("gone"));
            assert_eq!(order(&pool), ["10.0.0.2", "10.0.0.1", "10.0.0.4"], "{balance:?}");
            pool.backends()[1].drain();
            assert_eq!(order(&pool), ["10.0.0.1", "10.0.0.4"], "{balance:?}");
            pool.backends()[0].drain();
            pool.backends()[3].drain();
            assert!(order(&pool).is_empty());
        }
    }

    #[test]
    fn every_one_of_many_is_reached() {
        let names: Vec<_> = (0..200).map(|n| format!("10.0.0.{n}")).collect();
        let specs: Vec<_> = names.iter().map(|name| (name.as_str(), 1, false)).collect();
        let mut order = order(&pool(Balance::Random, &specs));
        order.sort_unstable();
        order.dedup();
        assert_eq!(order.len(), 200);
    }

    #[test]
    fn a_silent_backend_leaves_time_for_the_next() {
        let pool = pool(Balance::RoundRobin, &[("10.0.0.1", 1, false), ("10.0.0.2", 1, false)]);
        let mut attempts = pool.attempts(CLIENT);
        attempts.next();
        assert_eq!(attempts.time(Duration::ZERO), Duration::from_millis(2500));
        attempts.next();
        assert_eq!(attempts.time(Duration::from_secs(1)), Duration::from_secs(4));
        assert_eq!(attempts.time(Duration::from_secs(6)), Duration::ZERO);
        assert!(!attempts.is_last_resort());
    }

    #[test]
    fn when_all_are_down_they_are_tried_but_not_for_long() {
        let pool = pool(Balance::RoundRobin, &[("10.0.0.1", 1, false), ("10.0.0.2", 1, false)]);
        for backend in pool.backends() {
            backend.obstacle(Obstacle::Tunnel, Some("gone"));
        }
        let mut attempts = pool.attempts(CLIENT);
        assert!(attempts.next().is_some() && attempts.is_last_resort());
        assert_eq!(attempts.time(Duration::from_secs(1)), LAST_RESORT_TIMEOUT / 2);
        pool.backends()[1].obstacle(Obstacle::Tunnel, None);
        pool.backends()[0].obstacle(Obstacle::Tunnel, None);
        assert!(attempts.next().is_some(), "one that came back meanwhile counts");
        assert_eq!(attempts.time(Duration::from_secs(2)), Duration::from_millis(500));
        assert!(attempts.next().is_none());
    }

    #[test]
    fn a_backend_that_came_back_gets_less_at_first() {
        let pool = pool(Balance::RoundRobin, &[("10.0.0.1", 1, false), ("10.0.0.2", 1, false)]);
        let back = &pool.backends()[1];
        back.obstacle(Obstacle::Tunnel, Some("gone"));
        back.obstacle(Obstacle::Tunnel, None);
        let picks = (0..100).filter(|_| Arc::ptr_eq(&pool.attempts(CLIENT).next().unwrap(), back)).count();
        assert!((1..25).contains(&picks), "{picks}");
    }
}
