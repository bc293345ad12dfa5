//! PostgreSQL's `CancelRequest`: a separate connection in clear text that names a running session by a number
//! and a secret, and no server by name. The server carries the request out and closes.
//!
//! The server sent the number and the secret inside TLS, so the edge cannot know whose they are. A request
//! goes to the backends that its source has had PostgreSQL sessions with or, if none are known, to those that
//! it could have them with. The secret makes it harmless everywhere else.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{Instant, timeout},
};

use super::sessions::Session;
use crate::{
    connection::{
        CloseReason, Destination, ListenerState, Running,
        account::{ClientRequest, Upstream},
        header,
        open::Opening,
    },
    datapath::{End, Side},
    pool::{Backend, connect},
    receive::receive,
    spec::ClientProtocol,
};

/// Backends that one request goes to.
pub(super) const MOST_BACKENDS: usize = 8;

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
        conditions.take(ClientProtocol::Postgres)
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

/// Passes a request on, and waits until the backends have closed: the client takes our close for the sign that it was
/// done.
pub(super) async fn pass_on(opening: &Opening<'_>, client: &TcpStream, request: &[u8]) -> CloseReason {
    let &Opening { edge, connection, listener, port, ref running, .. } = opening;
    edge.timings.hello(connection.accepted.elapsed());
    let source = connection.client().ip();
    connection
        .set_request(ClientRequest { protocol: Some(ClientProtocol::Postgres), ..ClientRequest::default() });
    let mut targets = known(running, &edge.sessions.of(source), source);
    if targets.is_empty() {
        targets = possible(running, listener, source);
    }
    if targets.is_empty() {
        return CloseReason::NoRoute;
    }
    let told = targets.iter().map(|(destination, backend)| async move {
        let start = Instant::now();
        let limit = destination.pool.connect_timeout();
        let (stream, address) = connect::connect(backend, port, limit).await?;
        let took = start.elapsed();
        let header = header::proxy_header(edge, connection, destination, None, client);
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
                connection.set_upstream(Upstream {
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
    if done { CloseReason::Carried(End::Finished) } else { CloseReason::ConnectFailed }
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
