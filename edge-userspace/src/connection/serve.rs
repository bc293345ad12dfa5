//! The path of one connection: admitted, read, routed, connected, carried, accounted for.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::BorrowedFd,
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, FutureExt as _};
use rustix::net::sockopt::set_tcp_quickack;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    Connection, Destination, Edge, ListenerState, Outcome, Running,
    account::{Asked, Way},
    cancel,
    hello::{self, Hello, NoHello},
    hello_memory::Held,
    outcome::{Ended, Failure},
    postgres,
    received::Received,
    refusal,
};
use crate::{
    accounts::{Slot, SourceSlot},
    datapath::{
        self, Fate, Pair, Passenger, Preread, StopReason, Ticket,
        flow::{FlowTier, Options},
    },
    kernel::{monotonic, tcp},
    pool::connect::{self, Kept, Preparation},
    proxy_protocol::{Header, Tlvs, V2_MAX_SENT, write},
    route::Query,
    sniff::proxy_header::ProxySource,
    spec::{AlpnList, Choice, ProxyProtocol, Spoken},
};

/// A client's connection, as accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Its socket.
    pub client: TcpStream,
    /// The far end.
    pub peer: SocketAddr,
    /// Its place among the connections that there may be.
    pub slot: Slot,
}

/// Serves a connection from accept to its line in the access log.
///
/// This future lives as long as the connection, so it holds little: the steps before the connection is
/// carried, and those instead of it, are boxed and dropped afterwards.
///
/// `port` is the one on which it was accepted, and the default for a backend without a port.
pub fn serve(
    edge: Arc<Edge>,
    listener: Arc<ListenerState>,
    port: u16,
    Accepted { mut client, peer, slot }: Accepted,
) -> impl Future<Output = ()> + Send {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let local = client.local_addr().unwrap_or_else(|_| (Ipv6Addr::UNSPECIFIED, port).into());
    let (id, name) = (edge.accounts.next_id(), Arc::clone(&listener.spec.name));
    let connection = Arc::new(Connection::new(id, canonical(peer), canonical(local), name));
    edge.registry.insert(Arc::clone(&connection));
    let registered = Registered { edge, connection, _slot: slot };
    async move {
        let Registered { edge, connection, .. } = &registered;
        let opened = tokio::select! {
            biased;
            opened = Box::pin(open(edge, connection, &listener, port, &mut client)) => opened,
            reason = connection.stop.ordered_end() => Err(match reason {
                StopReason::HelloMemory => Outcome::HelloMemory.into(),
                reason => Outcome::Stopped(reason).into(),
            }),
        };
        let ended = finish(opened, client, &registered, listener.spec.protocol.spoken()).await;
        if let Some(ended) = ended {
            edge.account(connection, ended);
        }
    }
}

/// Carries the connection or refuses it; `None` if it continues as a flow. Deliberately neither `async` nor
/// part of [`serve`]: locals destructured there would live in the future across the await and enlarge every
/// idle connection.
fn finish(
    opened: Result<Opened, Refused>,
    client: TcpStream,
    registered: &Registered,
    listener: Option<Spoken>,
) -> impl Future<Output = Option<Ended>> + Send {
    let Registered { edge, connection, .. } = registered;
    match opened {
        Ok(Opened { destination, backend, preread, place, kept }) => {
            let pair = Pair { client, backend };
            let (meter, stop) = (&connection.meter, &connection.stop);
            let choice = destination.datapath;
            let carried = datapath::carry(pair, preread, choice, &edge.tiers, registered, meter, stop);
            Either::Left(carried.map(move |fate| {
                drop(kept);
                match fate {
                    Fate::Ended(end) => Some(Outcome::Carried(end).into()),
                    Fate::HandedOver => {
                        edge.became_flow(connection, place);
                        None
                    }
                }
            }))
        }
        Err(Refused { outcome, failure, protocol, tls_version }) => Either::Right(Box::pin(async move {
            let sent_nothing = || tcp::info(&client).is_ok_and(|info| info.data_segments_in == 0);
            let is_empty = outcome.is_silent() && sent_nothing();
            refusal::refuse(client, outcome, protocol.or(listener), tls_version).await;
            Some(Ended { outcome, failure, is_empty })
        })),
    }
}

/// A connection in the registry and among those admitted, out of both whatever becomes of its task.
struct Registered {
    edge: Arc<Edge>,
    connection: Arc<Connection>,
    _slot: Slot,
}

impl Passenger for Registered {
    fn ticket(&self) -> Ticket {
        let Self { edge, connection, .. } = self;
        let age = u64::try_from(connection.accepted.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let microseconds = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        Ticket {
            id: connection.id,
            label: edge.passport(connection).text(),
            accepted: monotonic().saturating_sub(age),
            connect_time: connection.way().map_or(0, |way| microseconds(way.connect_time)),
        }
    }

    fn common_label(&self) -> Option<String> {
        self.edge.passport(&self.connection).common_text()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.edge.registry.remove(self.connection.id);
    }
}

/// A connection ready to be carried.
struct Opened {
    destination: Arc<Destination>,
    backend: TcpStream,
    preread: Preread,
    place: SourceSlot,
    kept: Kept,
}

/// A refused connection: its protocol, if known, and the TLS version for an alert to it.
struct Refused {
    outcome: Outcome,
    failure: Option<Box<Failure>>,
    protocol: Option<Spoken>,
    tls_version: u16,
}

impl From<Outcome> for Refused {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, failure: None, protocol: None, tls_version: 0 }
    }
}

impl From<NoHello> for Refused {
    fn from(reason: NoHello) -> Self {
        match reason {
            NoHello::Gone => Outcome::Gone.into(),
            NoHello::Late => Outcome::HelloTimeout.into(),
            NoHello::NoMemory => Outcome::HelloMemory.into(),
            NoHello::Rejected { rejection, tls_version } => {
                Self { tls_version, ..Outcome::Rejected(rejection).into() }
            }
        }
    }
}

async fn open(
    edge: &Arc<Edge>,
    connection: &Arc<Connection>,
    listener: &ListenerState,
    port: u16,
    client: &mut TcpStream,
) -> Result<Opened, Refused> {
    let running = edge.running.load_full();
    let deadline = Instant::now() + listener.spec.hello_timeout.unwrap_or(running.hello_timeout);
    let account = || edge.hello_memory.hold(connection, connection.client().ip());
    let mut received = Received::new(account());
    if listener.believes(connection.peer.ip()) {
        let header = timeout_at(deadline, hello::read_proxy_header(client, &mut received)).await;
        let header = connection.is_announced(header.map_err(|_| Outcome::ProxyHeaderTimeout)??);
        // From here on it is the client's account, no more the proxy's.
        received = received.behind(header.len, account())?;
    }
    let source = connection.client().ip();
    // The peer was checked when it was accepted. It may have been blocked since: only now is the connection
    // among those that a block ends.
    if edge.blocked.hold(connection.peer.ip()) || edge.blocked.hold(source) {
        return Err(Outcome::Blocked.into());
    }
    if !listener.admits(source) {
        return Err(Outcome::Denied.into());
    }
    if !edge.admission.connects(source, running.connection_rate_per_source) {
        return Err(Outcome::SourceRate.into());
    }
    let place = edge.admission.source(source, running.connections_per_source).ok_or(Outcome::SourceLimit)?;

    let protocol = hello::read_protocol(client, &listener.spec, &mut received);
    let protocol = timeout_at(deadline, protocol).await.map_err(|_| Outcome::HelloTimeout)??;
    let refused = |outcome, tls_version| Refused { protocol, tls_version, ..Refused::from(outcome) };
    let hello = hello::read(client, protocol, running.hello_bytes, received);
    let hello = timeout_at(deadline, hello).await.unwrap_or(Err(NoHello::Late));
    let Hello { asked, whole_alpn, is_cancel, received, tls_version } =
        hello.map_err(|reason| Refused { protocol, ..reason.into() })?;
    if protocol.is_some() {
        edge.timings.hello(connection.accepted.elapsed());
    }
    if is_cancel {
        let request = &received.bytes;
        let passed = cancel::pass_on(edge, &running, connection, listener, port, client, request).await;
        return Err(passed.into());
    }
    let asked = connection.asks(asked);
    let alpn = whole_alpn.as_ref().unwrap_or(&asked.alpn);
    let destination = destination(&running, listener, source, asked, alpn)
        .ok_or_else(|| refused(Outcome::NoRoute, tls_version))?;
    if let Some(outcome) = destination.refuses(source) {
        let failure = Failure::of_route(Arc::clone(&destination.label), outcome);
        return Err(Refused { failure: Some(Box::new(failure)), ..refused(outcome, tls_version) });
    }

    let speaks = !received.bytes.is_empty() || destination.proxy_protocol != ProxyProtocol::Off;
    let preparation = ForClient { flow: for_flow(edge, &destination, client, connection), speaks };
    let connecting = destination.pool.connect_prepared(source, port, Some(&preparation));
    let failed = |error: &dyn Display, backend, attempts| {
        tracing::warn!(
            id = connection.id, client = %connection.client(), route = &*destination.label, %error,
            "no backend could be connected"
        );
        let route = Arc::clone(&destination.label);
        let failure = Failure { route, backend, attempts, error: error.to_string() };
        Refused { failure: Some(Box::new(failure)), ..refused(Outcome::ConnectFailed, tls_version) }
    };
    let connect::Connection { mut stream, address, lease, took, attempts, kept, .. } =
        connecting.await.map_err(|gave_up| failed(&gave_up.error, gave_up.backend, gave_up.attempts))?;
    edge.timings.connect(destination.pool.name(), took);
    let (received, memory) = received.finish()?;
    let mut preread = preread(edge, connection, &destination, alpn, client, received, memory);
    if protocol == Some(Spoken::Postgres) {
        let hello = preread.bytes.split_off(std::mem::take(&mut preread.uncounted));
        let agreed = postgres::agree(&mut stream, &preread.bytes, destination.pool.connect_timeout()).await;
        agreed.map_err(|error| failed(&format_args!("{address}: {error}"), Some(address), attempts))?;
        preread.bytes = hello;
    }
    if protocol == Some(Spoken::Postgres) || alpn.iter().any(|name| name == postgres::ALPN) {
        edge.sessions.note(source, destination.identity, lease.backend().id());
    }
    // What a tcp listener carries is unknown.
    let never = protocol.is_none_or(Spoken::may_be_silent).then_some(Duration::ZERO);
    let idle_timeout = destination.idle_timeout.or(listener.spec.idle_timeout).or(never);
    let way = Way { destination: Arc::clone(&destination), lease, address, connect_time: took, idle_timeout };
    connection.goes(way);
    Ok(Opened { destination, backend: stream, preread, place, kept })
}

fn destination(
    running: &Running,
    listener: &ListenerState,
    source: IpAddr,
    asked: &Asked,
    alpn: &AlpnList,
) -> Option<Arc<Destination>> {
    if let Some(destination) = &listener.destination {
        return Some(Arc::clone(destination));
    }
    let query = Query {
        host: asked.host.as_ref(),
        protocol: asked.protocol?,
        alpn,
        source,
        listener: &listener.spec.name,
    };
    running.routes.find(&query).map(|rule| Arc::clone(&rule.target))
}

/// How a socket to the backend is made ready for a hand-over, where there may be one.
fn for_flow(
    edge: &Edge,
    destination: &Destination,
    client: &TcpStream,
    connection: &Connection,
) -> Option<ForFlow> {
    let is_wanted = matches!(destination.datapath, Choice::Auto | Choice::Flow);
    let tier = edge.tiers.flow().filter(|_| is_wanted)?;
    let options = Options::of(client, connection.peer.ip()).ok()?;
    Some(ForFlow { tier: Arc::clone(tier), client: connection.client().ip(), options })
}

struct ForFlow {
    tier: Arc<FlowTier>,
    client: IpAddr,
    options: Options,
}

/// Prepares the socket that is a client's way to the backend.
struct ForClient {
    flow: Option<ForFlow>,
    /// There is something to send as soon as it is connected.
    speaks: bool,
}

impl Preparation for ForClient {
    fn prepare(&self, socket: BorrowedFd<'_>, backend: SocketAddr) -> Kept {
        if self.speaks {
            // The last packet of the handshake also carries the first bytes
            // (`tcp_rcv_synsent_state_process`). A failure only costs a separate packet.
            let _ = set_tcp_quickack(socket, false);
        }
        let ForFlow { tier, client, options } = self.flow.as_ref()?;
        Some(Box::new(tier.prepare(socket, backend, *client, *options)?))
    }
}

/// The first bytes for the backend: its PROXY header, if it wants one, then the client's bytes.
fn preread(
    edge: &Edge,
    connection: &Connection,
    destination: &Destination,
    alpn: &AlpnList,
    client: &TcpStream,
    received: Vec<u8>,
    memory: Held,
) -> Preread {
    let hold = (!received.is_empty()).then(|| Box::new(memory) as _);
    if destination.proxy_protocol == ProxyProtocol::Off {
        return Preread { bytes: received, uncounted: 0, hold };
    }
    let mut bytes = proxy_header(edge, connection, destination, Some(alpn), client);
    let uncounted = bytes.len();
    bytes.extend(received);
    Preread { bytes, uncounted, hold }
}

/// The header for this client, as the destination wants it.
pub(super) fn proxy_header(
    edge: &Edge,
    connection: &Connection,
    destination: &Destination,
    alpn: Option<&AlpnList>,
    client: &TcpStream,
) -> Vec<u8> {
    let announced = connection.announced();
    let source = match (announced.map(|header| header.source), client.local_addr()) {
        (Some(named @ ProxySource::Client { .. }), _) => named,
        (_, Ok(local)) => ProxySource::Client { source: connection.client(), destination: local },
        (_, Err(_)) => ProxySource::Local,
    };
    let asked = connection.asked();
    let unique_id = edge.unique_id(connection);
    let pool = &destination.pool;
    let Header { bytes, left_out } = write(
        destination.proxy_protocol,
        source,
        &Tlvs {
            wanted: pool.proxy_tlvs(),
            authority: asked.and_then(|asked| asked.host.as_ref()),
            alpn,
            unique_id: Some(unique_id.as_bytes()),
            received: announced.map_or(&[], |header| &header.tlvs),
            align: pool.proxy_align(),
        },
    );
    if !left_out.is_empty() && pool.leaves_tlvs_out() {
        tracing::warn!(
            id = connection.id, route = &*destination.label, pool = &**pool.name(), %left_out,
            "TLVs are left out of a PROXY header, which would be longer than receivers take ({V2_MAX_SENT} bytes); this is \
             said once for the pool"
        );
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand idle connections hold ten thousand of these futures.
    #[test]
    fn an_idle_connection_holds_little() {
        fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(serve) <= 408, "{} bytes", size(serve));
        assert!(size_of::<Connection>() <= 256, "{} bytes", size_of::<Connection>());
    }
}
