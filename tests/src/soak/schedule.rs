//! The plan of a run: which event hits the edge when, and how many slow clients arrive when. Made from a seed
//! alone, so that a run can be repeated. Pure.

use std::{collections::BTreeSet, fmt, time::Duration};

use fastrand::Rng;

/// Something that happens to the edge, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Event {
    /// A good configuration file is loaded.
    Reload,
    /// A broken configuration file is refused.
    BrokenReload,
    /// Routes are added and removed by `edgectl`, one of them with its connections.
    Routes,
    /// A backend dies: its connections are reset, nobody listens.
    BackendReset,
    /// A backend's packets are dropped for a while, in both directions.
    BackendSilent,
    /// A backend's listener closes; the connections that it has go on.
    BackendGone,
    /// The tunnel's device is set down and up again.
    TunnelDown,
    /// The tunnel's device is deleted and made anew.
    TunnelAnew,
    /// edged ends by SIGTERM and starts again, as in an upgrade.
    Restart,
    /// edged and its keeper get SIGKILL.
    Kill,
    /// The wall clock jumps forward by hours.
    ClockForward,
    /// The wall clock jumps back by hours.
    ClockBack,
    /// The disk with state and access log is full.
    DiskFull,
    /// The daemon's cgroup runs out of memory.
    OutOfMemory,
}

impl Event {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::Reload,
        Self::BrokenReload,
        Self::Routes,
        Self::BackendReset,
        Self::BackendSilent,
        Self::BackendGone,
        Self::TunnelDown,
        Self::TunnelAnew,
        Self::Restart,
        Self::Kill,
        Self::ClockForward,
        Self::ClockBack,
        Self::DiskFull,
        Self::OutOfMemory,
    ];

    /// Whether another daemon runs afterwards.
    const fn replaces_daemon(self) -> bool {
        matches!(self, Self::Restart | Self::Kill | Self::OutOfMemory)
    }

    /// The longest duration of the disturbance itself, shorter than the patience of TCP and the clients.
    const fn longest(self) -> Duration {
        match self {
            Self::Reload | Self::BrokenReload | Self::Routes | Self::ClockForward | Self::ClockBack => {
                Duration::from_millis(500)
            }
            Self::Restart | Self::Kill | Self::OutOfMemory => Duration::from_millis(1500),
            Self::BackendReset | Self::BackendGone | Self::DiskFull | Self::TunnelAnew => {
                Duration::from_secs(3)
            }
            Self::BackendSilent | Self::TunnelDown => Duration::from_secs(4),
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Reload => "reload",
            Self::BrokenReload => "broken reload",
            Self::Routes => "routes",
            Self::BackendReset => "backend reset",
            Self::BackendSilent => "backend silent",
            Self::BackendGone => "listener gone",
            Self::TunnelDown => "tunnel down",
            Self::TunnelAnew => "tunnel anew",
            Self::Restart => "restart",
            Self::Kill => "kill -9",
            Self::ClockForward => "clock forward",
            Self::ClockBack => "clock back",
            Self::DiskFull => "disk full",
            Self::OutOfMemory => "out of memory",
        })
    }
}

/// An event with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it begins at the earliest, from the start of the day.
    pub at: Duration,
    /// The event.
    pub event: Event,
    /// How long the trouble lasts, where it is one that lasts.
    pub lasts: Duration,
    /// A number for what the event has to choose.
    pub choice: u64,
}

/// How a wave of slow clients ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// By RST.
    Reset,
    /// By FIN.
    Close,
    /// They wait until the edge closes them.
    Stay,
}

/// Slow clients that come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wave {
    /// When they come at the earliest.
    pub at: Duration,
    /// How many.
    pub clients: usize,
    /// From how many addresses.
    pub sources: usize,
    /// How they go.
    pub leave: Leave,
}

/// The events of one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Events in order. The first round has each event once and is always completed.
    pub events: Vec<Entry>,
    /// Waves in order.
    pub waves: Vec<Wave>,
}

/// The share of the day after which one daemon lives through everything else, so that the balance shows its
/// leaks; not before the first round is over.
const ONE_DAEMON: f64 = 0.5;
/// The share of the day before the first event, and after the last: a quiet hour.
const QUIET: u32 = 24;
/// Addresses that slow clients have.
pub const SOURCES: usize = 48;
/// A wave that asks for more places than there are at this share of waves.
const BEYOND: usize = 8;

impl Schedule {
    /// The day of this seed, with the events that the machine allows and this many slow clients in total.
    pub fn new(seed: u64, day: Duration, allowed: &BTreeSet<Event>, slow_clients: usize) -> Self {
        let mut random = Rng::with_seed(seed);
        Self { events: events(&mut random, day, allowed), waves: waves(&mut random, day, slow_clients) }
    }
}

fn events(random: &mut Rng, day: Duration, allowed: &BTreeSet<Event>) -> Vec<Entry> {
    let (mut at, last) = (day / QUIET, day / QUIET * (QUIET - 1));
    // A short day has shorter troubles, so that all find room.
    let scale = (day.as_secs_f64() / 120.0).clamp(0.3, 1.0);
    let mut entries = Vec::new();
    let mut round: Vec<Event> = allowed.iter().copied().collect();
    while at < last && !round.is_empty() {
        let is_first = entries.is_empty();
        random.shuffle(&mut round);
        for &event in &round {
            if at >= last && !is_first {
                break;
            }
            if event.replaces_daemon() && !is_first && at > day.mul_f64(ONE_DAEMON) {
                // Time passes all the same, also where the machine allows nothing else.
                at += Duration::from_millis(100);
                continue;
            }
            let lasts = event.longest().mul_f64(scale * (0.5 + random.f64() / 2.0));
            entries.push(Entry { at, event, lasts, choice: random.u64(..) });
            at += lasts + Duration::from_secs_f64(scale * (0.5 + 2.5 * random.f64()));
        }
    }
    entries
}

fn waves(random: &mut Rng, day: Duration, slow_clients: usize) -> Vec<Wave> {
    let (mut left, mut sizes) = (slow_clients, Vec::new());
    // Some thousand at once, or half of what a short day has.
    let most = (slow_clients / 2).clamp(1, 4000);
    while left > 0 {
        let wanted =
            if sizes.len() % BEYOND == BEYOND - 1 { 2 * most } else { random.usize(most / 2..=most) };
        let clients = wanted.clamp(1, left);
        sizes.push(clients);
        left -= clients;
    }
    let pause = day / u32::try_from(sizes.len() + 1).unwrap_or(u32::MAX);
    let leave = [Leave::Reset, Leave::Close, Leave::Stay];
    let mut at = Duration::ZERO;
    let wave = |clients| {
        at += pause;
        // Every fourth comes from one address, which has a share of its own.
        let sources = if random.u8(..4) == 0 { 1 } else { SOURCES };
        Wave { at, clients, sources, leave: leave[random.usize(..leave.len())] }
    };
    sizes.into_iter().map(wave).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_mins(6);

    fn all() -> BTreeSet<Event> {
        Event::ALL.into()
    }

    #[test]
    fn a_seed_repeats_its_day_and_another_has_another() {
        let of = |seed| Schedule::new(seed, DAY, &all(), 100_000);
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn every_day_has_every_event_in_order_and_none_overlap() {
        for (seed, seconds) in (0..50).zip([10, 40, 360, 7200].into_iter().cycle()) {
            let day = Duration::from_secs(seconds);
            let events = Schedule::new(seed, day, &all(), 1000).events;
            let seen: BTreeSet<Event> = events.iter().map(|entry| entry.event).collect();
            assert_eq!(seen, all(), "seed {seed}");
            assert!(events.windows(2).all(|pair| pair[0].at + pair[0].lasts < pair[1].at), "seed {seed}");
            let late = events.iter().skip(Event::ALL.len()).find(|entry| entry.at > day);
            assert_eq!(late, None, "seed {seed}");
        }
    }

    #[test]
    fn the_last_daemon_lives_for_half_a_day() {
        for seed in 0..50 {
            let events = Schedule::new(seed, DAY, &all(), 0).events;
            let last = events.iter().rfind(|entry| entry.event.replaces_daemon()).unwrap();
            assert!(last.at <= DAY.mul_f64(ONE_DAEMON), "seed {seed}");
            assert!(events.iter().filter(|entry| entry.event.replaces_daemon()).count() > 3, "seed {seed}");
        }
    }

    #[test]
    fn what_the_machine_forbids_does_not_happen() {
        let allowed: BTreeSet<Event> = [Event::Kill, Event::Reload].into();
        let events = Schedule::new(3, DAY, &allowed, 0).events;
        assert!(events.len() > 20 && events.iter().all(|entry| allowed.contains(&entry.event)));
        assert!(Schedule::new(3, DAY, &BTreeSet::new(), 0).events.is_empty());
    }

    #[test]
    fn all_slow_clients_come_and_never_more_than_descriptors_allow() {
        for seed in 0..50 {
            let waves = Schedule::new(seed, DAY, &all(), 100_000).waves;
            assert_eq!(waves.iter().map(|wave| wave.clients).sum::<usize>(), 100_000);
            assert!(waves.iter().all(|wave| wave.clients <= 8000 && wave.clients > 0));
            assert!(waves.iter().any(|wave| wave.sources == 1));
            assert!(waves.last().unwrap().at < DAY);
        }
    }
}
