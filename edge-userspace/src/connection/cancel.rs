//! PostgreSQL's `CancelRequest`: a separate connection in clear text that names a running session by a number
//! and a secret, and no server by name. The server carries the request out and closes.
//!
//! The server sent the number and the secret inside TLS, so the edge cannot know whose they are. A request
//! goes to the backends that its source has had PostgreSQL sessions with or, if none are known, to those that
//! it could have them with. The secret makes it harmless everywhere else.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    Connection, Destination, Edge, ListenerState, Outcome, Running,
    account::{Asked, Way},
    serve,
};
use crate::{
    datapath::{End, Side},
    pool::{Backend, BackendId, connect},
    receive::receive,
    source::source_of,
    spec::Spoken,
};

/// Backends that one request goes to.
const MOST_BACKENDS: usize = 8;
/// Sources that are remembered.
const MOST_SOURCES: usize = 4096;

/// A destination, by its identity, and one of its backends.
type Session = (u64, BackendId);

/// The backends that each source has had PostgreSQL sessions with. A source is an IPv4 address or an IPv6
/// /64.
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
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
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

    fn of(&self, client: IpAddr) -> Vec<Session> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.sources.get(&source_of(client)).map(|source| source.sessions.clone()).unwrap_or_default()
    }
}

/// Where a request goes.
type Target = (Arc<Destination>, Arc<Backend>);

/// The backends that this source has had sessions with, as far as routes still lead it there.
fn known(running: &Running, sessions: &[Session], client: IpAddr) -> Vec<Target> {
    let of_session = |(identity, id): &Session| {
        let destination = running.destinations().find(|destination| destination.identity == *identity)?;
        if destination.refuses(client).is_some() {
            return None;
        }
        let backend = destination.pool.backends().iter().find(|backend| backend.id() == id)?;
        Some((Arc::clone(destination), Arc::clone(backend)))
    };
    sessions.iter().filter_map(of_session).collect()
}

/// The backends that PostgreSQL sessions of this client could go to.
fn possible(running: &Running, listener: &ListenerState, client: IpAddr) -> Vec<Target> {
    let name = &listener.spec.name;
    let rules = running.routes.iter().filter(|rule| {
        let conditions = &rule.conditions;
        conditions.take(Spoken::Postgres)
            && (conditions.listeners.is_empty() || conditions.listeners.contains(name))
            && (conditions.from.is_empty() || conditions.from.iter().any(|net| net.contains(&client)))
    });
    let mut targets: Vec<Target> = Vec::new();
    let admitted = rules.map(|rule| &rule.target).filter(|destination| destination.refuses(client).is_none());
    for destination in admitted {
        for backend in destination.pool.backends() {
            let is_new = targets.iter().all(|(_, other)| other.id().to != backend.id().to);
            if is_new && targets.len() < MOST_BACKENDS {
                targets.push((Arc::clone(destination), Arc::clone(backend)));
            }
        }
    }
    targets
}

/// Forwards a request and waits until the backends have closed: the client takes our close for the sign that
/// the request was carried out.
pub(super) async fn pass_on(
    edge: &Edge,
    running: &Running,
    connection: &Connection,
    listener: &ListenerState,
    port: u16,
    client: &TcpStream,
    request: &[u8],
) -> Outcome {
    let source = connection.client().ip();
    connection.asks(Asked { protocol: Some(Spoken::Postgres), ..Asked::default() });
    let mut targets = known(running, &edge.sessions.of(source), source);
    if targets.is_empty() {
        targets = possible(running, listener, source);
    }
    if targets.is_empty() {
        return Outcome::NoRoute;
    }
    let told = targets.iter().map(|(destination, backend)| async move {
        let start = Instant::now();
        let limit = destination.pool.connect_timeout();
        let (stream, address) = connect::connect(backend, port, limit).await?;
        let took = start.elapsed();
        let header = serve::proxy_header(edge, connection, destination, None, client);
        tell(stream, &[&header[..], request].concat(), limit).await?;
        Ok::<_, Failed>((address, took))
    });
    let outcomes = join_all(told).await;
    let mut done = false;
    for ((destination, backend), outcome) in targets.iter().zip(outcomes) {
        match outcome {
            Ok((address, connect_time)) if !done => {
                done = true;
                let destination = Arc::clone(destination);
                connection.goes(Way {
                    destination,
                    lease: backend.lease(),
                    address,
                    connect_time,
                    idle_timeout: None,
                });
                connection.meter.raise(Side::Client, request.len() as u64);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(
                id = connection.id, route = &*destination.label, backend = %backend.id(), %error,
                "a CancelRequest could not be passed on"
            ),
        }
    }
    if done { Outcome::Carried(End::Finished) } else { Outcome::ConnectFailed }
}

/// Why a backend was not told.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Connect(#[from] connect::ConnectError),
    #[error(transparent)]
    Talk(#[from] io::Error),
}

/// Sends the bytes and waits for the end, at most `limit`.
async fn tell(mut backend: TcpStream, bytes: &[u8], limit: Duration) -> io::Result<()> {
    let talk = async {
        backend.write_all(bytes).await?;
        // The server answers nothing; what comes nevertheless is not the client's to see.
        let mut sink = Vec::new();
        while receive(&backend, &mut sink).await.is_ok_and(|read| read > 0) {
            sink.clear();
        }
        Ok(())
    };
    timeout(limit, talk).await.unwrap_or(Ok(()))
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
