//! Which backends a source has had PostgreSQL sessions with: where its `CancelRequest`s go.

use std::{collections::HashMap, net::IpAddr, sync::Mutex};

use super::cancel::MOST_BACKENDS;
use crate::{lock::lock, pool::BackendId, source::source_of};

/// Sources that are remembered.
const MOST_SOURCES: usize = 4096;

/// A destination, by its identity, and one of its backends.
pub(super) type Session = (u64, BackendId);

/// Which backends a source has had PostgreSQL sessions with. A source is an IPv4 address or an IPv6 /64.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    sources: HashMap<IpAddr, Source>,
    /// Counts what is noted, so that the source that has been quiet longest is known.
    clock: u64,
}

#[derive(Debug, Default)]
struct Source {
    noted: u64,
    /// The latest last; at most [`MOST_BACKENDS`].
    sessions: Vec<Session>,
}

impl Sessions {
    /// A session begins.
    pub(super) fn note(&self, client: IpAddr, destination: u64, backend: &BackendId) {
        let mut known = lock(&self.0);
        let client = source_of(client);
        known.clock += 1;
        let clock = known.clock;
        if known.sources.len() >= MOST_SOURCES && !known.sources.contains_key(&client) {
            let oldest =
                known.sources.iter().min_by_key(|(_, source)| source.noted).map(|(address, _)| *address);
            oldest.and_then(|address| known.sources.remove(&address));
        }
        let source = known.sources.entry(client).or_default();
        source.noted = clock;
        source.sessions.retain(|session| (session.0, &session.1) != (destination, backend));
        if source.sessions.len() == MOST_BACKENDS {
            source.sessions.remove(0);
        }
        source.sessions.push((destination, backend.clone()));
    }

    pub(super) fn of(&self, client: IpAddr) -> Vec<Session> {
        let known = lock(&self.0);
        known.sources.get(&source_of(client)).map(|source| source.sessions.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(to: &str) -> BackendId {
        BackendId { pool: "db".into(), to: to.parse().unwrap(), device: None }
    }

    #[test]
    fn sessions_are_remembered_by_source_within_bounds() {
        let sessions = Sessions::default();
        let client: IpAddr = "192.0.2.1".parse().unwrap();
        let (one, other) = (backend("10.0.0.1:5432"), backend("10.0.0.2:5432"));
        for id in [&one, &other, &one] {
            sessions.note(client, 7, id);
        }
        assert_eq!(sessions.of(client), [(7, other), (7, one.clone())]);
        assert_eq!(sessions.of("192.0.2.2".parse().unwrap()), []);
        // Another address of the same network.
        sessions.note("2001:db8::1".parse().unwrap(), 8, &one);
        assert_eq!(sessions.of("2001:db8::2".parse().unwrap()), [(8, one.clone())]);
        for number in 0..20 {
            sessions.note(client, number, &one);
        }
        let last: Vec<u64> = sessions.of(client).iter().map(|session| session.0).collect();
        assert_eq!(last, (12..20).collect::<Vec<_>>());
        // The quietest source is forgotten first.
        for number in 0..u32::try_from(MOST_SOURCES).unwrap() - 1 {
            sessions.note(IpAddr::V4(number.into()), 9, &one);
        }
        assert_eq!(sessions.0.lock().unwrap().sources.len(), MOST_SOURCES);
        assert!(sessions.of("2001:db8::1".parse().unwrap()).is_empty());
        assert!(!sessions.of(client).is_empty());
    }
}
