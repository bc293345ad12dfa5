//! Evaluates answers of name servers: which addresses in which order, and when to resolve again. Pure;
//! [`resolve`](super::resolve) sends the queries.

use std::{cmp::Reverse, net::IpAddr, time::Duration};

use crate::{pool::Endpoint, spec::HostName};

/// The shortest time between two questions, for records with a TTL of 0.
const TTL_FLOOR: Duration = Duration::from_secs(1);
/// The longest: a mistyped TTL of a week should not keep a home unreachable for a week.
const TTL_CEILING: Duration = Duration::from_hours(1);
/// The longest time between two questions while there is no answer.
const RETRY_CEILING: Duration = Duration::from_secs(30);
/// Addresses kept of one name; more would only lengthen a failure.
const MAX_ADDRESSES: usize = 16;

/// The answer about one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// The addresses; none if the name has none of this family.
    Known(Vec<IpAddr>),
    /// No answer: the servers did not reply, or said that something is wrong with them.
    Unknown,
}

impl Family {
    /// Whether it is known that there is none.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Known(found) if found.is_empty())
    }

    /// The known addresses.
    pub(super) fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Known(found) => found,
            Self::Unknown => &[],
        }
    }
}

/// The last good answers about a name.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The full name that had them.
    name: Option<HostName>,
    v6: Vec<IpAddr>,
    v4: Vec<IpAddr>,
}

impl Memory {
    /// Takes new answers for `name` and returns the addresses to use, in order. A family without an answer
    /// keeps the last one of the same name.
    pub(super) fn update(&mut self, name: &HostName, v6: Family, v4: Family) -> Vec<IpAddr> {
        if self.name.as_ref() != Some(name) {
            *self = Self { name: Some(name.clone()), ..Self::default() };
        }
        for (kept, found) in [(&mut self.v6, v6), (&mut self.v4, v4)] {
            if let Family::Known(found) = found {
                *kept = found;
            }
        }
        self.addresses()
    }

    /// The addresses to use while there is no other answer. A name that has lost all its addresses keeps them
    /// too: more likely the zone is broken than home has moved nowhere.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        interleave(&self.v6, &self.v4)
    }
}

/// The order in which addresses are tried (RFC 8305 §4): the families in turn, IPv6 first, each in the order
/// given.
pub(super) fn interleave(v6: &[IpAddr], v4: &[IpAddr]) -> Vec<IpAddr> {
    let longest = v6.len().max(v4.len());
    let ordered = (0..longest).flat_map(|at| v6.get(at).into_iter().chain(v4.get(at)));
    ordered.copied().take(MAX_ADDRESSES).collect()
}

/// A target of an SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) priority: u16,
    pub(super) weight: u16,
    pub(super) port: u16,
    /// The host's name.
    pub(super) target: String,
}

/// Whether a name is that of a service, `_service._tcp.name`, found by SRV (RFC 2782).
pub(super) fn is_service(name: &str) -> bool {
    name.starts_with('_') && name.split('.').nth(1).is_some_and(|label| label.eq_ignore_ascii_case("_tcp"))
}

/// The order in which the targets of a service are tried (RFC 2782): by priority, then at random by weight.
/// `random` draws from 0 to 1. A target of "." means that there is no such service.
pub(super) fn order_services(mut services: Vec<Service>, mut random: impl FnMut() -> f64) -> Vec<Service> {
    services.retain(|service| !matches!(service.target.as_str(), "" | "."));
    services.sort_by_cached_key(|service| {
        // An exponential variate whose rate is the weight; weight 0 has "a very small chance" of going first.
        let rate = f64::from(service.weight).max(0.01);
        let draw = -random().max(f64::MIN_POSITIVE).ln() / rate;
        // Finite and not negative, hence ordered as its bits are.
        (service.priority, draw.to_bits(), Reverse(service.weight))
    });
    services
}

/// Puts the addresses of a service's targets together, in the order of the targets.
pub(super) fn endpoints(targets: impl IntoIterator<Item = (u16, Vec<IpAddr>)>) -> Vec<Endpoint> {
    let all = targets
        .into_iter()
        .flat_map(|(port, ips)| ips.into_iter().map(move |ip| Endpoint { ip, port: Some(port) }));
    all.take(MAX_ADDRESSES).collect()
}

/// When to ask again.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    failures: u32,
}

impl Schedule {
    /// The wait after an answer that is valid for `ttl`, or after a failure: then 1, 2, 4 seconds and so on.
    pub(super) fn next(&mut self, ttl: Option<Duration>) -> Duration {
        if let Some(ttl) = ttl {
            self.failures = 0;
            return ttl.clamp(TTL_FLOOR, TTL_CEILING);
        }
        let wait = Duration::from_secs(1 << self.failures.min(5));
        self.failures += 1;
        wait.min(RETRY_CEILING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips<const N: usize>(texts: [&str; N]) -> Vec<IpAddr> {
        texts.map(|text| text.parse().unwrap()).to_vec()
    }

    #[test]
    fn families_take_turns() {
        let ordered =
            interleave(&ips(["2001:db8::1", "2001:db8::2"]), &ips(["10.0.0.1", "10.0.0.2", "10.0.0.3"]));
        assert_eq!(ordered, ips(["2001:db8::1", "10.0.0.1", "2001:db8::2", "10.0.0.2", "10.0.0.3"]));
        let many = vec![IpAddr::from([10, 0, 0, 1]); 1000];
        assert_eq!(interleave(&[], &many).len(), MAX_ADDRESSES);
    }

    #[test]
    fn the_last_good_answer_is_kept() {
        let mut memory = Memory::default();
        let name: HostName = "nas.lan".parse().unwrap();
        let (v6, v4) = (ips(["2001:db8::1"]), ips(["10.0.0.1"]));
        let both = ips(["2001:db8::1", "10.0.0.1"]);
        assert_eq!(memory.update(&name, Family::Known(v6.clone()), Family::Known(v4.clone())), both);
        assert_eq!(memory.update(&name, Family::Unknown, Family::Unknown), both);
        let moved = ips(["10.0.0.9"]);
        assert_eq!(
            memory.update(&name, Family::Unknown, Family::Known(moved.clone())),
            ips(["2001:db8::1", "10.0.0.9"])
        );
        assert_eq!(memory.update(&name, Family::Known(Vec::new()), Family::Known(moved.clone())), moved);
        assert_eq!(memory.addresses(), moved);
        memory.update(&name, Family::Known(v6), Family::Unknown);
        let other = "nas.home.example".parse().unwrap();
        assert_eq!(
            memory.update(&other, Family::Unknown, Family::Known(v4.clone())),
            v4,
            "another machine's"
        );
    }

    #[test]
    fn services_are_told_by_their_name() {
        assert!(is_service("_https._tcp.home.example"));
        for name in ["https._tcp.home.example", "_https.home.example", "_https._udp.home.example", "_https"] {
            assert!(!is_service(name), "{name}");
        }
    }

    #[test]
    fn services_go_by_priority_then_by_weight() {
        let service =
            |priority, weight, target: &str| Service { priority, weight, port: 443, target: target.into() };
        let all =
            vec![service(20, 0, "spare"), service(10, 3, "big"), service(10, 1, "small"), service(5, 0, ".")];
        let mut rng = fastrand::Rng::with_seed(1);
        let mut big_first = 0;
        for _ in 0..10_000 {
            let ordered = order_services(all.clone(), || rng.f64());
            assert_eq!((ordered.len(), &*ordered[2].target), (3, "spare"));
            big_first += u32::from(ordered[0].target == "big");
        }
        assert!(big_first.abs_diff(7500) < 200, "{big_first}");
    }

    #[test]
    fn it_asks_again_when_the_answer_ends_and_more_slowly_while_there_is_none() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.next(Some(Duration::from_mins(5))), Duration::from_mins(5));
        assert_eq!(schedule.next(Some(Duration::ZERO)), TTL_FLOOR);
        assert_eq!(schedule.next(Some(Duration::MAX)), TTL_CEILING);
        let waits: Vec<_> = (0..7).map(|_| schedule.next(None).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        schedule.next(Some(Duration::from_secs(9)));
        assert_eq!(schedule.next(None), Duration::from_secs(1));
    }
}
