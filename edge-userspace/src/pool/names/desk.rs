//! Holds the answers for names that clients cause to be looked up, and decides which may be looked up now. Pure;
//! [`labels`](super::labels) sends the queries.
//!
//! Clients choose these names, so all of it is bounded: names remembered, lookups at once, and how many of those one
//! source has.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::Instant};

use crate::{pool::Endpoint, source::source_of, spec::HostName};

/// Names remembered for one target, more than a home has. Names without an address make room first, then the least
/// recently used.
pub(super) const MAX_NAMES: usize = 1024;
/// Lookups at once for one target.
pub(super) const MAX_LOOKUPS: usize = 64;
/// Lookups at once that the clients of one source may cause.
const MAX_LOOKUPS_OF_SOURCE: usize = 8;
/// How long a name that does not exist or does not resolve is not looked up again: short, since the operator may be
/// about to add it.
pub(super) const NEGATIVE: Duration = Duration::from_secs(5);
/// The bounds of a TTL, as for names in the configuration.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(1));

/// The result of a lookup: the addresses, or why there are none.
pub(super) type Answer = Result<Arc<[Endpoint]>, Arc<str>>;

/// A lookup that ended.
pub(super) enum Outcome {
    /// Addresses, never none, and how long they are good for.
    Found(Vec<Endpoint>, Duration),
    /// There is no such name.
    Missing,
    /// No usable answer. The last good addresses stay in use.
    Failed(String),
}

/// The next step of a client that asks for a name.
pub(super) enum Look {
    /// This is known.
    Answer(Answer),
    /// The name is being looked up; look again afterwards.
    Wait(Arc<Notify>),
    /// Look it up, then call [`Desk::settle`].
    Ask,
    /// Too many names are being looked up.
    Busy,
}

#[derive(Default)]
pub(super) struct Desk {
    names: HashMap<HostName, Entry>,
    /// The lookups under way by source.
    asking: HashMap<IpAddr, usize>,
    lookups: usize,
}

struct Entry {
    answer: Option<Answer>,
    until: Instant,
    /// The lookup under way, and the source that caused it.
    asked: Option<(Arc<Notify>, IpAddr)>,
    used: Instant,
}

impl Entry {
    /// Orders entries for eviction: first names without an address, then those not used for longest.
    fn worth(&self) -> (bool, Instant) {
        (self.answer.as_ref().is_some_and(Result::is_ok), self.used)
    }
}

impl Desk {
    /// Asks for a name on behalf of a client.
    pub(super) fn look(&mut self, name: &HostName, client: IpAddr, now: Instant) -> Look {
        let source = source_of(client);
        let is_full = self.lookups >= MAX_LOOKUPS
            || self.asking.get(&source).is_some_and(|&n| n >= MAX_LOOKUPS_OF_SOURCE);
        if let Some(entry) = self.names.get_mut(name) {
            entry.used = now;
            if let Some((asked, _)) = &entry.asked {
                return Look::Wait(Arc::clone(asked));
            }
            match &entry.answer {
                Some(answer) if now < entry.until => return Look::Answer(answer.clone()),
                Some(Ok(last)) if is_full => return Look::Answer(Ok(Arc::clone(last))),
                _ => {}
            }
        }
        if is_full || !(self.names.contains_key(name) || self.make_room()) {
            return Look::Busy;
        }
        let fresh = Entry { answer: None, until: now, asked: None, used: now };
        let entry = self.names.entry(name.clone()).or_insert(fresh);
        entry.asked = Some((Arc::default(), source));
        *self.asking.entry(source).or_default() += 1;
        self.lookups += 1;
        Look::Ask
    }

    /// Whether a lookup of this name is under way.
    pub(super) fn is_asked(&self, name: &HostName) -> bool {
        self.names.get(name).is_some_and(|entry| entry.asked.is_some())
    }

    /// Takes what a lookup has found.
    pub(super) fn settle(&mut self, name: &HostName, outcome: Outcome, now: Instant) {
        // A name that is being looked up is never given up.
        let Some(entry) = self.names.get_mut(name) else { return };
        let Some((asked, source)) = entry.asked.take() else { return };
        let (answer, time) = match (outcome, &entry.answer) {
            (Outcome::Found(endpoints, ttl), _) => (Ok(endpoints.into()), ttl.clamp(TTL.0, TTL.1)),
            (Outcome::Failed(_), Some(Ok(last))) => (Ok(Arc::clone(last)), NEGATIVE),
            (Outcome::Failed(error), _) => (Err(error.into()), NEGATIVE),
            (Outcome::Missing, _) => (Err("there is no such name".into()), NEGATIVE),
        };
        entry.answer = Some(answer);
        entry.until = now + time;
        self.lookups -= 1;
        if let Some(count) = self.asking.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.asking.remove(&source);
            }
        }
        asked.notify_waiters();
    }

    /// Forgets what is known: another name server answers from now on.
    pub(super) fn clear(&mut self) {
        self.names.retain(|_, entry| entry.asked.is_some());
        for entry in self.names.values_mut() {
            entry.answer = None;
        }
    }

    /// The addresses of all names, each once.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        let mut all = Vec::new();
        for endpoint in self
            .names
            .values()
            .filter_map(|entry| entry.answer.as_ref()?.as_ref().ok())
            .flat_map(|found| found.iter())
        {
            if !all.contains(endpoint) {
                all.push(*endpoint);
            }
        }
        all
    }

    /// Whether there is room for another name, at the expense of one that is not being looked up.
    fn make_room(&mut self) -> bool {
        if self.names.len() < MAX_NAMES {
            return true;
        }
        let idle = self.names.iter().filter(|(_, entry)| entry.asked.is_none());
        let Some(least) = idle.min_by_key(|(_, entry)| entry.worth()).map(|(name, _)| name.clone()) else {
            return false;
        };
        self.names.remove(&least);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        format!("{text}.home.arpa").parse().unwrap()
    }

    fn client(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    fn found(last: u8) -> Outcome {
        let endpoint = Endpoint { ip: IpAddr::from([10, 0, 0, last]), port: None };
        Outcome::Found(vec![endpoint], Duration::from_mins(1))
    }

    fn answer(desk: &mut Desk, text: &str, now: Instant) -> Result<IpAddr, String> {
        match desk.look(&name(text), client(1), now) {
            Look::Answer(Ok(found)) => Ok(found[0].ip),
            Look::Answer(Err(error)) => Err(error.to_string()),
            Look::Wait(_) => Err("wait".into()),
            Look::Ask => Err("ask".into()),
            Look::Busy => Err("busy".into()),
        }
    }

    #[test]
    fn a_name_is_looked_up_once_until_its_time_is_over() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        let says = |text: &str| Err(text.to_owned());
        assert_eq!(answer(&mut desk, "a", now), says("ask"));
        assert_eq!(answer(&mut desk, "a", now), says("wait"));
        desk.settle(&name("a"), found(1), now);
        assert_eq!(answer(&mut desk, "a", now + Duration::from_secs(59)), Ok([10, 0, 0, 1].into()));
        let later = now + Duration::from_mins(1);
        assert_eq!(answer(&mut desk, "a", later), says("ask"));
        desk.settle(&name("a"), Outcome::Failed("no reply".into()), later);
        assert_eq!(answer(&mut desk, "a", later), Ok([10, 0, 0, 1].into()), "the last good address stays");
        let later = later + NEGATIVE;
        assert_eq!(answer(&mut desk, "a", later), says("ask"));
        desk.settle(&name("a"), Outcome::Missing, later);
        assert_eq!(
            answer(&mut desk, "a", later),
            says("there is no such name"),
            "but not of a name that is gone"
        );
        assert_eq!(answer(&mut desk, "a", later + NEGATIVE), says("ask"));
    }

    #[test]
    fn names_and_lookups_are_bounded() {
        let (mut desk, now) = (Desk::default(), Instant::now());
        let good = name("good");
        assert!(matches!(desk.look(&good, client(1), now), Look::Ask));
        desk.settle(&good, found(1), now);
        for number in 0..MAX_LOOKUPS_OF_SOURCE {
            assert!(matches!(desk.look(&name(&format!("n{number}")), client(1), now), Look::Ask));
        }
        assert!(matches!(desk.look(&name("more"), client(1), now), Look::Busy));
        assert!(matches!(desk.look(&name("more"), client(2), now), Look::Ask), "another source");
        let past = now + Duration::from_hours(1);
        assert!(matches!(desk.look(&good, client(1), past), Look::Answer(Ok(_))), "old rather than none");
        for number in 0..10 * MAX_NAMES {
            let name = name(&format!("x{number}"));
            assert!(matches!(desk.look(&name, client(3), now), Look::Ask));
            desk.settle(&name, Outcome::Missing, now);
        }
        assert_eq!(desk.names.len(), MAX_NAMES);
        assert!(desk.names.contains_key(&good), "names that exist outlive those that do not");
        assert_eq!(desk.lookups, MAX_LOOKUPS_OF_SOURCE + 1);
        for number in 0..MAX_LOOKUPS {
            let number = u8::try_from(number).unwrap();
            desk.look(&name(&format!("y{number}")), client(10 + number), now);
        }
        assert_eq!(
            (desk.lookups, desk.asking.len()),
            (MAX_LOOKUPS, 2 + MAX_LOOKUPS - MAX_LOOKUPS_OF_SOURCE - 1)
        );
        desk.clear();
        assert_eq!((desk.names.len(), desk.endpoints()), (MAX_LOOKUPS, Vec::new()));
    }
}
