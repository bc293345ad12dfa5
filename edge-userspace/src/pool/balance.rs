//! Which of several candidates a new connection goes to.
//!
//! Pure: it sees indices, weights and counts through a closure and keeps only its own turn. A pick allocates
//! nothing; round-robin and least-connections take a short lock or one atomic, the others none.

use std::{
    net::IpAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::identity::BackendId;
use crate::{
    lock::lock,
    source::source_of,
    spec::{BackendHost, Balance},
};

/// One unit of configured weight. Finer steps exist so that slow start can give a part of it.
pub(super) const FULL: u64 = 256;
/// From coming up again to its full share.
const SLOW_START: Duration = Duration::from_secs(10);
/// The share that a backend starts with: a tenth.
const SLOW_START_FIRST: u64 = FULL / 10;

/// The share, of [`FULL`], that a backend takes `since` it came up again: a straight line.
pub(super) fn slow_start(since: Duration) -> u64 {
    if since >= SLOW_START {
        return FULL;
    }
    let grown = since.as_millis() * u128::from(FULL - SLOW_START_FIRST) / SLOW_START.as_millis();
    SLOW_START_FIRST + u64::try_from(grown).unwrap_or(FULL)
}

/// The properties of a candidate that a pick uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Its share, in units of 1/[`FULL`] of a configured weight; never picked at 0.
    pub(super) weight: u64,
    /// Its live connections.
    pub(super) connections: u64,
    /// Its place for source-hash, by [`backend_hash`].
    pub(super) hash: u64,
}

/// A balancing method and its turn.
#[derive(Debug)]
pub(super) enum Balancer {
    /// Smooth weighted round-robin, as in nginx: each pick adds its weight to every candidate's credit and
    /// takes the sum from the winner's, so that weights 5, 1, 1 give `a a b a c a a` and never five in a row.
    RoundRobin(Mutex<Box<[i64]>>),
    /// Ties are broken in turn, or the first backend would get all of a quiet pool.
    LeastConnections(AtomicUsize),
    Random,
    SourceHash,
}

impl Balancer {
    /// A balancer over candidates `0..len`.
    pub(super) fn new(balance: Balance, len: usize) -> Self {
        match balance {
            Balance::RoundRobin => Self::RoundRobin(Mutex::new(vec![0; len].into_boxed_slice())),
            Balance::LeastConnections => Self::LeastConnections(AtomicUsize::new(0)),
            Balance::Random => Self::Random,
            Balance::SourceHash => Self::SourceHash,
        }
    }

    /// The index picked among `0..len`, where `candidate` answers `None` for those that may not be picked.
    pub(super) fn pick(
        &self,
        len: usize,
        client: IpAddr,
        candidate: impl Fn(usize) -> Option<Candidate>,
    ) -> Option<usize> {
        let candidate = |index| candidate(index).filter(|found| found.weight > 0);
        match self {
            Self::RoundRobin(credits) => round_robin(&mut lock(credits), candidate),
            Self::LeastConnections(turn) => least_connections(turn.fetch_add(1, Relaxed), len, candidate),
            Self::Random => two_choices(len, candidate),
            Self::SourceHash => rendezvous(client_hash(client), len, candidate),
        }
    }
}

fn round_robin(credits: &mut [i64], candidate: impl Fn(usize) -> Option<Candidate>) -> Option<usize> {
    let mut total = 0;
    let mut best: Option<usize> = None;
    for index in 0..credits.len() {
        let Some(found) = candidate(index) else { continue };
        // At most 2^32 of weight times FULL, and the sum over a pool: far from the end of an i64.
        let weight = i64::try_from(found.weight).unwrap_or(i64::MAX >> 16);
        total += weight;
        credits[index] += weight;
        if best.is_none_or(|best| credits[index] > credits[best]) {
            best = Some(index);
        }
    }
    credits[best?] -= total;
    best
}

/// Whether `a` is less loaded than `b` once it has one more connection.
fn lighter(a: &Candidate, b: &Candidate) -> bool {
    // (a.connections + 1) / a.weight < (b.connections + 1) / b.weight, without division.
    let load = |of: &Candidate, other: &Candidate| u128::from(of.connections + 1) * u128::from(other.weight);
    load(a, b) < load(b, a)
}

fn least_connections(
    turn: usize,
    len: usize,
    candidate: impl Fn(usize) -> Option<Candidate>,
) -> Option<usize> {
    let start = turn.checked_rem(len)?;
    let mut best: Option<(usize, Candidate)> = None;
    for index in (start..len).chain(0..start) {
        let Some(found) = candidate(index) else { continue };
        if best.is_none_or(|(_, best)| lighter(&found, &best)) {
            best = Some((index, found));
        }
    }
    best.map(|(index, _)| index)
}

fn two_choices(len: usize, candidate: impl Fn(usize) -> Option<Candidate>) -> Option<usize> {
    let (first, a) = weighted_random(len, &candidate)?;
    let other = weighted_random(len, |index| candidate(index).filter(|_| index != first));
    // By weight in the draw, and by load for its weight in the comparison. Equal loads leave it at the draw, so
    // that a quiet pool follows the weights too.
    let load = |of: &Candidate, beside: &Candidate| u128::from(of.connections) * u128::from(beside.weight);
    Some(match other {
        Some((second, b)) if load(&b, &a) < load(&a, &b) => second,
        _ => first,
    })
}

fn weighted_random(len: usize, candidate: impl Fn(usize) -> Option<Candidate>) -> Option<(usize, Candidate)> {
    // A reservoir of one: each candidate replaces the held one with probability weight / weights so far.
    let mut total = 0;
    let mut held = None;
    for index in 0..len {
        let Some(found) = candidate(index) else { continue };
        total += found.weight;
        if fastrand::u64(0..total) < found.weight {
            held = Some((index, found));
        }
    }
    held
}

/// Weighted rendezvous hashing: every candidate draws a number from the client and itself, the highest wins.
/// One that leaves gives only its own clients away, one that joins takes its share alone.
#[expect(clippy::cast_precision_loss, reason = "weights are below 2^40")]
fn rendezvous(client: u64, len: usize, candidate: impl Fn(usize) -> Option<Candidate>) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for index in 0..len {
        let Some(found) = candidate(index) else { continue };
        // An exponential variate with rate `weight` is smallest with probability weight / sum of weights.
        let score = unit(mix(client ^ found.hash)).ln() / found.weight as f64;
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, index));
        }
    }
    best.map(|(_, index)| index)
}

/// A number in (0, 1) from the upper 52 bits.
#[expect(clippy::cast_precision_loss, reason = "52 bits and a half are what an f64 holds")]
fn unit(bits: u64) -> f64 {
    ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64
}

/// The finalizer of `SplitMix64`: every bit of the input flips each bit of the output with probability one half.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The key of a client: that of its source, since hosts change the rest of an IPv6 address by the hour (RFC 8981).
fn client_hash(client: IpAddr) -> u64 {
    match source_of(client) {
        IpAddr::V4(v4) => mix(u64::from(v4.to_bits())),
        IpAddr::V6(v6) => mix((v6.to_bits() >> 64) as u64 ^ (1 << 63)),
    }
}

/// A backend's key for source-hash: the same on every start and on every edge with the same configuration.
pub(super) fn backend_hash(id: &BackendId) -> u64 {
    let mut hash = 0;
    let mut add = |bytes: &[u8]| {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = mix(hash ^ u64::from_le_bytes(word));
        }
        hash = mix(hash ^ bytes.len() as u64);
    };
    match &id.to.host {
        BackendHost::Ip(IpAddr::V4(v4)) => add(&v4.octets()),
        BackendHost::Ip(IpAddr::V6(v6)) => add(&v6.octets()),
        BackendHost::Name(name) => add(name.as_str().as_bytes()),
        BackendHost::Unix(path) => add(path.as_str().as_bytes()),
        BackendHost::Label(template) => add(template.to_string().as_bytes()),
    }
    add(&id.to.port.unwrap_or(0).to_le_bytes());
    add(id.device.as_deref().unwrap_or_default().as_bytes());
    hash
}

#[cfg(test)]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "counts of a test are small"
)]
mod tests {
    use std::{
        cell::RefCell,
        net::{Ipv4Addr, Ipv6Addr},
    };

    use super::*;

    const PICKS: usize = 100_000;
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn hash(index: usize) -> u64 {
        backend_hash(&BackendId {
            pool: "p".into(),
            to: format!("100.64.0.{}:443", index + 1).parse().unwrap(),
            device: None,
        })
    }

    fn idle(weights: &[u64]) -> impl Fn(usize) -> Option<Candidate> + Copy {
        move |index| Some(Candidate { weight: weights[index] * FULL, connections: 0, hash: hash(index) })
    }

    fn nth_client(n: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + n as u32).into()
    }

    fn counts(balance: Balance, weights: &[u64]) -> Vec<usize> {
        let balancer = Balancer::new(balance, weights.len());
        let mut counts = vec![0; weights.len()];
        for n in 0..PICKS {
            counts[balancer.pick(weights.len(), nth_client(n), idle(weights)).unwrap()] += 1;
        }
        counts
    }

    /// Pearson's statistic against the shares that `weights` promise.
    fn chi_square(counts: &[usize], weights: &[u64]) -> f64 {
        let total: u64 = weights.iter().sum();
        let expected = |weight: u64| PICKS as f64 * weight as f64 / total as f64;
        let cells = counts.iter().zip(weights).filter(|(_, weight)| **weight > 0);
        cells.map(|(&count, &weight)| (count as f64 - expected(weight)).powi(2) / expected(weight)).sum()
    }

    /// 99.99 % of draws with three degrees of freedom stay below.
    const CRITICAL_3: f64 = 21.1;

    #[test]
    fn shares_follow_the_weights() {
        for weights in [[1, 1, 1, 1], [1, 2, 3, 4], [100, 1, 1, 10]] {
            let counts = counts(Balance::SourceHash, &weights);
            assert!(chi_square(&counts, &weights) < CRITICAL_3, "{weights:?} gave {counts:?}");
        }
        fastrand::seed(7);
        for weights in [[1, 1, 1, 1], [1, 2, 3, 4]] {
            let counts = counts(Balance::Random, &weights);
            assert!(chi_square(&counts, &weights) < CRITICAL_3, "{weights:?} gave {counts:?}");
        }
    }

    #[test]
    fn round_robin_is_exact_and_smooth() {
        assert_eq!(counts(Balance::RoundRobin, &[1, 2, 3, 4]), [10_000, 20_000, 30_000, 40_000]);
        let balancer = Balancer::new(Balance::RoundRobin, 3);
        let turns: Vec<_> = (0..7).map(|_| balancer.pick(3, CLIENT, idle(&[5, 1, 1])).unwrap()).collect();
        assert_eq!(turns, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn weight_zero_is_never_picked() {
        for balance in [Balance::RoundRobin, Balance::LeastConnections, Balance::Random, Balance::SourceHash]
        {
            assert_eq!(counts(balance, &[0, 1, 0])[1], PICKS, "{balance:?}");
            assert_eq!(Balancer::new(balance, 2).pick(2, CLIENT, idle(&[0, 0])), None);
            assert_eq!(Balancer::new(balance, 0).pick(0, CLIENT, |_| None), None);
        }
    }

    /// Connections that never end: the counts themselves must follow the weights.
    fn filled(balance: Balance, weights: &[u64], connections: u64) -> Vec<u64> {
        let balancer = Balancer::new(balance, weights.len());
        let live = RefCell::new(vec![0; weights.len()]);
        for _ in 0..connections {
            let picked = balancer.pick(weights.len(), CLIENT, |index| {
                Some(Candidate { connections: live.borrow()[index], ..idle(weights)(index)? })
            });
            live.borrow_mut()[picked.unwrap()] += 1;
        }
        live.into_inner()
    }

    #[test]
    fn least_connections_levels_by_weight() {
        assert_eq!(filled(Balance::LeastConnections, &[1, 1, 1], 3000), [1000; 3]);
        assert_eq!(filled(Balance::LeastConnections, &[1, 2, 3], 6000), [1000, 2000, 3000]);
        // A quiet pool: every connection ends before the next one comes.
        let quiet = counts(Balance::LeastConnections, &[1, 1, 1, 1]);
        assert_eq!(quiet, [PICKS / 4; 4]);
    }

    #[test]
    fn two_choices_stay_level() {
        let live = filled(Balance::Random, &[1; 8], 80_000);
        let (least, most) = (live.iter().min().unwrap(), live.iter().max().unwrap());
        // A single random choice would spread by hundreds here.
        assert!(most - least < 20, "{live:?}");
        let live = filled(Balance::Random, &[4, 1], 50_000);
        assert!(live[0].abs_diff(40_000) < 20, "{live:?}");
    }

    #[test]
    fn source_hash_moves_only_the_clients_of_the_one_that_left() {
        let weights = [1, 2, 1, 4];
        let balancer = Balancer::new(Balance::SourceHash, 4);
        let mut moved_to = [0; 4];
        for n in 0..PICKS {
            let client = nth_client(n);
            let before = balancer.pick(4, client, idle(&weights)).unwrap();
            let after =
                balancer.pick(4, client, |index| idle(&weights)(index).filter(|_| index != 1)).unwrap();
            match before {
                1 => moved_to[after] += 1,
                _ => assert_eq!(before, after, "{client} had no reason to move"),
            }
        }
        // And they spread over the others by weight: 1 : 1 : 4.
        let all: usize = moved_to.iter().sum();
        assert!(moved_to[0].abs_diff(all / 6) < all / 50, "{moved_to:?}");
        assert!(moved_to[3].abs_diff(all * 4 / 6) < all / 50, "{moved_to:?}");
    }

    #[test]
    fn a_growing_weight_only_attracts() {
        let balancer = Balancer::new(Balance::SourceHash, 2);
        let pick = |client, share| {
            let shares = [FULL, share];
            balancer
                .pick(2, client, |index| {
                    Some(Candidate { weight: shares[index], connections: 0, hash: hash(index) })
                })
                .unwrap()
        };
        for client in (0..1000).map(nth_client) {
            let path: Vec<_> = (0..=10).map(|s| pick(client, slow_start(Duration::from_secs(s)))).collect();
            assert!(path.is_sorted(), "{client} moved back: {path:?}");
        }
    }

    #[test]
    fn one_household_is_one_source() {
        let of = |text: &str| client_hash(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:aaaa:bbbb:cccc:dddd"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(client_hash(Ipv6Addr::UNSPECIFIED.into()), of("0.0.0.0"));
    }

    #[test]
    fn slow_start_is_a_ramp() {
        assert_eq!(slow_start(Duration::ZERO), SLOW_START_FIRST);
        assert_eq!(slow_start(SLOW_START), FULL);
        let ramp: Vec<_> = (0..=10).map(|s| slow_start(Duration::from_secs(s))).collect();
        assert!(ramp.windows(2).all(|pair| pair[0] < pair[1]), "{ramp:?}");
    }
}
