//! The sources and backends with which flows are not tried for a while, because flows with them have failed.
//!
//! A failure alone does not show the cause: the client, its line, or the path to the backend. It therefore
//! keeps its own source's connections on sockets; several failing sources of a network do so for the network.
//! A backend is blamed only if flows of several networks fail, while those of hardly any other network work
//! at the same time. Hostile clients can thus deprive themselves of the tier, but not others.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::source::{network_of, source_of};

/// How long a failure is remembered, and its source stays on sockets.
pub(super) const MEMORY: Duration = Duration::from_mins(10);
/// Networks whose flows to one backend have to fail before it is blamed.
const WITNESSES: usize = 3;
/// How many failing networks one network with a working flow outweighs. Above that for all working ones
/// together the backend is blamed: a flow that works for a few does not excuse that it fails for most.
const OUTWEIGHED: usize = 16;
/// How long a flow may have been failing when that is noticed: a little more than the patience of a
/// hand-over. A flow that worked within that time worked at the same time.
const HINDSIGHT: Duration = Duration::from_secs(20);
/// How long a backend is paused at first; twice as long each time it is blamed again, up to [`MEMORY`].
const FIRST_PAUSE: Duration = Duration::from_mins(1);
/// Failing sources that keep their whole network on sockets.
const CROWD: usize = 4;
/// Failing networks that are remembered for each backend, the latest ones.
const FAILING: usize = 1024;
/// Working networks that are remembered for each backend, the latest ones.
const WORKING: usize = 64;
/// Between two looks for what can be forgotten.
const TIDY: Duration = Duration::from_secs(10);

/// Clients whose flows failed within [`MEMORY`], by backend.
#[derive(Debug, Default)]
pub(super) struct Trust {
    backends: HashMap<BackendPath, Doubts>,
    tidied: Option<Instant>,
}

/// A backend's address, and the address family of its clients: a path may fail for one family alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BackendPath {
    /// The backend.
    pub(super) backend: IpAddr,
    /// Whether its clients use IPv4.
    pub(super) is_ipv4: bool,
}

#[derive(Debug, Default)]
struct Doubts {
    /// Failing sources by network, and when each failed last; at most [`CROWD`] of a network.
    failing: HashMap<IpAddr, Vec<(IpAddr, Instant)>>,
    /// Networks with a flow that works, and when that was last seen.
    working: HashMap<IpAddr, Instant>,
    /// Whether flows that work have been looked for since it was suspected.
    is_watched: bool,
    /// Set once the backend was blamed.
    pause: Option<Pause>,
}

#[derive(Clone, Copy, Debug)]
struct Pause {
    until: Instant,
    length: Duration,
}

/// The conclusion about a backend from its failures.
enum Verdict {
    /// They are too few.
    Unknown,
    /// Flows of other networks work.
    Excused,
    /// It is to blame; when a network failed last.
    Blamed { last: Instant },
}

/// Whose flows are not tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distrusted {
    /// Those of one source, or its whole network, to one backend.
    Source,
    /// All to one backend.
    Backend,
}

/// Backends to which flows of several networks have failed.
#[derive(Debug)]
pub struct Suspected(Vec<BackendPath>);

impl Suspected {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a flow between these two is to one of them.
    pub fn includes(&self, client: IpAddr, backend: IpAddr) -> bool {
        self.0.contains(&BackendPath::of(client, backend))
    }
}

impl BackendPath {
    /// The way of this client's flows to this backend.
    pub(super) fn of(client: IpAddr, backend: IpAddr) -> Self {
        Self { backend: backend.to_canonical(), is_ipv4: client.to_canonical().is_ipv4() }
    }
}

impl Trust {
    /// A flow of this client to this backend has failed. Returns whether its source is now distrusted and was
    /// not before.
    pub(super) fn failed(&mut self, client: IpAddr, backend: IpAddr, now: Instant) -> bool {
        self.tidy(now);
        let doubts = self.backends.entry(BackendPath::of(client, backend)).or_default();
        let (source, network) = (source_of(client), network_of(client));
        let was_distrusted = doubts.is_failing(source, network, now);
        if doubts.failing.len() >= FAILING && !doubts.failing.contains_key(&network) {
            let oldest = doubts.failing.iter().min_by_key(|(_, sources)| latest(sources));
            let oldest = oldest.map(|(network, _)| *network);
            oldest.and_then(|network| doubts.failing.remove(&network));
        }
        let sources = doubts.failing.entry(network).or_default();
        sources.retain(|(known, _)| *known != source);
        if sources.len() == CROWD {
            // In the order of their failures.
            sources.remove(0);
        }
        sources.push((source, now));
        !was_distrusted
    }

    /// A flow of this client to this backend was seen to work at this time.
    pub(super) fn worked(&mut self, client: IpAddr, backend: IpAddr, at: Instant) {
        let doubts = self.backends.entry(BackendPath::of(client, backend)).or_default();
        let network = network_of(client);
        if doubts.working.len() >= WORKING && !doubts.working.contains_key(&network) {
            let oldest = doubts.working.iter().min_by_key(|(_, at)| **at).map(|(network, _)| *network);
            oldest.and_then(|network| doubts.working.remove(&network));
        }
        let last = doubts.working.entry(network).or_insert(at);
        *last = at.max(*last);
    }

    /// Of whose flows it matters whether they work: [`Self::judge`] may blame these, or does.
    pub(super) fn suspected(&self) -> Suspected {
        let suspected = self.backends.iter().filter(|(_, doubts)| doubts.is_suspected());
        Suspected(suspected.map(|(way, _)| *way).collect())
    }

    /// Blames these backends, or stops doing so; never on the first suspicion, since it takes two looks to
    /// see a stream move. Must be called after [`Self::worked`] for everything that worked since they were
    /// suspected. Returns the newly blamed ones, and for how long they are paused.
    pub(super) fn judge(&mut self, suspected: &Suspected, now: Instant) -> Vec<(BackendPath, Duration)> {
        self.tidy(now);
        let judge = |way: &BackendPath| Some((*way, self.backends.get_mut(way)?.judge(now)?));
        suspected.0.iter().filter_map(judge).collect()
    }

    /// Whether the client or the backend is distrusted, if this client wants a flow to this backend.
    pub(super) fn doubt(&self, client: IpAddr, backend: IpAddr, now: Instant) -> Option<Distrusted> {
        let doubts = self.backends.get(&BackendPath::of(client, backend))?;
        if doubts.pause.is_some_and(|pause| now < pause.until) {
            return Some(Distrusted::Backend);
        }
        doubts.is_failing(source_of(client), network_of(client), now).then_some(Distrusted::Source)
    }

    fn tidy(&mut self, now: Instant) {
        if self.tidied.is_some_and(|then| now.saturating_duration_since(then) < TIDY) {
            return;
        }
        self.tidied = Some(now);
        self.backends.retain(|_, doubts| {
            doubts.failing.retain(|_, sources| {
                sources.retain(|(_, at)| is_fresh(*at, now));
                !sources.is_empty()
            });
            doubts.working.retain(|_, at| is_fresh(*at, now));
            // A backend that is blamed again within that time is paused for longer.
            doubts.pause = doubts.pause.filter(|pause| is_fresh(pause.until, now));
            doubts.is_watched &= doubts.is_suspected();
            !doubts.failing.is_empty() || !doubts.working.is_empty() || doubts.pause.is_some()
        });
    }
}

impl Doubts {
    fn is_failing(&self, source: IpAddr, network: IpAddr, now: Instant) -> bool {
        self.failing.get(&network).is_some_and(|sources| {
            let fresh = || sources.iter().filter(|(_, at)| is_fresh(*at, now));
            fresh().any(|(known, _)| *known == source) || fresh().count() == CROWD
        })
    }

    fn is_suspected(&self) -> bool {
        self.failing.len() + 1 >= WITNESSES
    }

    fn judge(&mut self, now: Instant) -> Option<Duration> {
        if !std::mem::replace(&mut self.is_watched, true) {
            return None;
        }
        let last = match self.verdict(now) {
            Verdict::Unknown => return None,
            Verdict::Excused => {
                // The next pause is a short one again.
                self.pause = None;
                return None;
            }
            Verdict::Blamed { last } => last,
        };
        let pause = match self.pause {
            None => FIRST_PAUSE,
            Some(pause) if last < pause.until => return None,
            Some(pause) => (pause.length * 2).min(MEMORY),
        };
        self.pause = Some(Pause { until: now + pause, length: pause });
        Some(pause)
    }

    fn verdict(&self, now: Instant) -> Verdict {
        let mut failures: Vec<Instant> = self
            .failing
            .values()
            .filter_map(|sources| latest(sources))
            .filter(|at| is_fresh(*at, now))
            .collect();
        failures.sort_unstable_by(|one, other| other.cmp(one));
        let Some(&witness) = failures.get(WITNESSES - 1) else { return Verdict::Unknown };
        let works = |since: Duration| {
            let others = self.working.iter().filter(|(network, _)| !self.failing.contains_key(*network));
            others.filter(|(_, at)| now.saturating_duration_since(**at) < since).count()
        };
        let at_the_same_time = works(now.saturating_duration_since(witness) + HINDSIGHT);
        let is_outweighed = failures.len() <= OUTWEIGHED * works(MEMORY);
        if at_the_same_time != 0 && is_outweighed {
            Verdict::Excused
        } else {
            Verdict::Blamed { last: failures[0] }
        }
    }
}

fn is_fresh(then: Instant, now: Instant) -> bool {
    now.saturating_duration_since(then) < MEMORY
}

/// When a source of a network failed last.
fn latest(sources: &[(IpAddr, Instant)]) -> Option<Instant> {
    sources.iter().map(|(_, at)| *at).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const SECOND: Duration = Duration::from_secs(1);

    /// A client of a network of its own.
    fn client(network: u16) -> IpAddr {
        let [high, low] = network.to_be_bytes();
        [203, high, low, 7].into()
    }

    fn judge(trust: &mut Trust, now: Instant) -> Vec<(BackendPath, Duration)> {
        let suspected = trust.suspected();
        suspected.0.iter().for_each(|way| trust.backends.get_mut(way).unwrap().is_watched = true);
        trust.judge(&suspected, now)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_source_is_distrusted_alone_however_often_it_fails() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        assert!(trust.failed(address("2001:db8::1"), HOME, now));
        for of_the_same in ["2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8::5"] {
            assert!(!trust.failed(address(of_the_same), HOME, now), "of the same /64");
        }
        assert!(judge(&mut trust, now).is_empty());
        assert_eq!(trust.doubt(address("2001:db8::6"), HOME, now), Some(Distrusted::Source));
        assert_eq!(trust.doubt(address("2001:db8:0:1::1"), HOME, now), None, "another /64");
        assert_eq!(trust.doubt(client(1), HOME, now), None);
        assert_eq!(trust.doubt(address("2001:db8::1"), OTHER, now), None);
        assert_eq!(trust.doubt(address("2001:db8::1"), HOME, now + MEMORY), None);
        assert!(judge(&mut trust, now + MEMORY).is_empty() && trust.backends.is_empty());
    }

    #[test]
    fn sources_of_one_network_take_the_tier_from_it_and_from_nobody_else() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        for subnet in 0..1000 {
            trust.failed(address(&format!("2001:db8:7:{subnet:x}::1")), HOME, now);
            trust.failed([198, 51, 100, u8::try_from(subnet % 256).unwrap()].into(), HOME, now);
        }
        assert!(judge(&mut trust, now).is_empty());
        assert_eq!(trust.doubt(address("2001:db8:7:ffff::1"), HOME, now), Some(Distrusted::Source));
        assert_eq!(trust.doubt(address("2001:db8:8::1"), HOME, now), None);
        assert_eq!(trust.doubt([198, 51, 100, 0].into(), HOME, now), Some(Distrusted::Source));
        assert_eq!(trust.doubt([198, 51, 101, 0].into(), HOME, now), None);
    }

    #[test]
    fn a_backend_that_fails_for_everybody_is_left_alone_for_longer_each_time() {
        let (mut trust, mut now) = (Trust::default(), Instant::now());
        let mut fails = (0..).map(client);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            for _ in 0..WITNESSES {
                assert!(trust.failed(fails.next().unwrap(), HOME, now));
            }
            let blamed = judge(&mut trust, now);
            let [(BackendPath { backend: HOME, is_ipv4: true }, pause)] = blamed[..] else {
                panic!("{blamed:?}");
            };
            assert!(judge(&mut trust, now + SECOND).is_empty(), "told once");
            assert_eq!(trust.doubt(client(999), HOME, now), Some(Distrusted::Backend));
            assert_eq!(trust.doubt(client(999), OTHER, now), None);
            assert_eq!(
                trust.doubt(address("2001:db8::1"), HOME, now),
                None,
                "by the other family it may work"
            );
            now += pause;
            assert!(judge(&mut trust, now).is_empty(), "nobody has failed since");
            assert_eq!(trust.doubt(client(999), HOME, now), None);
            pauses.push(pause.as_secs() / 60);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn what_works_for_others_at_the_same_time_excuses_a_backend() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        // One honest network outweighs sixteen hostile ones, in whatever order they are seen.
        trust.worked(client(999), HOME, now);
        for hostile in 0..16 {
            trust.failed(client(hostile), HOME, now + 10 * SECOND);
        }
        assert!(judge(&mut trust, now + 10 * SECOND).is_empty());
        assert_eq!(trust.doubt(client(998), HOME, now + 10 * SECOND), None);
        assert_eq!(trust.doubt(client(5), HOME, now + 10 * SECOND), Some(Distrusted::Source));
        // That of the hostile ones some works as well does not.
        trust.failed(client(16), HOME, now + 11 * SECOND);
        trust.worked(client(1), HOME, now + 11 * SECOND);
        assert_eq!(judge(&mut trust, now + 11 * SECOND).len(), 1, "seventeen do");
        trust.worked(client(998), HOME, now + 12 * SECOND);
        assert!(judge(&mut trust, now + 12 * SECOND).is_empty());
        assert_eq!(trust.doubt(client(997), HOME, now + 12 * SECOND), None, "trusted again at once");
    }

    #[test]
    fn what_worked_before_does_not_excuse_a_way_that_has_failed_since() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        for honest in 900..950 {
            trust.worked(client(honest), HOME, now);
        }
        let later = now + HINDSIGHT + SECOND;
        for network in 0..3 {
            trust.failed(client(network), HOME, later);
        }
        assert_eq!(judge(&mut trust, later).len(), 1);
    }

    #[test]
    fn fewer_witnesses_do_not_suffice() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        for network in 1..WITNESSES {
            trust.failed(client(u16::try_from(network).unwrap()), HOME, now);
        }
        assert!(judge(&mut trust, now).is_empty());
        trust.failed(client(999), OTHER, now);
        assert!(judge(&mut trust, now).is_empty());
    }

    #[test]
    fn failures_far_apart_do_not_add_up() {
        let (mut trust, mut now) = (Trust::default(), Instant::now());
        for network in 0..20 {
            assert!(trust.failed(client(network), HOME, now));
            assert!(judge(&mut trust, now).is_empty());
            now += MEMORY * 2 / 3;
        }
    }

    #[test]
    fn whoever_fails_on_an_ipv4_mapped_address_is_the_same() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        trust.failed(address("::ffff:203.0.1.7"), address("::ffff:10.0.0.1"), now);
        assert_eq!(trust.doubt(client(1), HOME, now), Some(Distrusted::Source));
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let (mut trust, now) = (Trust::default(), Instant::now());
        for network in 0..5000 {
            trust.failed(client(network), HOME, now + SECOND * u32::from(network) / 100);
            trust.worked(client(network), HOME, now);
        }
        let doubts = &trust.backends[&BackendPath::of(client(0), HOME)];
        assert_eq!((doubts.failing.len(), doubts.working.len()), (FAILING, WORKING));
        assert_eq!(trust.doubt(client(4999), HOME, now + 50 * SECOND), Some(Distrusted::Source));
    }
}
