//! The way of a connection from accept to a connected backend, in four steps: admit, read, route, connect.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    sync::Arc,
    time::Duration,
};

use rustix::net::sockopt::set_tcp_quickack;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    CloseReason, Connection, Destination, Edge, ListenerState, Running,
    account::{ClientRequest, Upstream},
    header,
    hello::{self, Hello, NoHello},
    hello_memory::Held,
    outcome::Failure,
    postgres,
    received::Received,
};
use crate::{
    accounts::SourceSlot,
    datapath::{
        Preread,
        flow::{FlowTier, Options},
    },
    places::Place,
    pool::connect::{self, ConnectError, GaveUp, Preparation, SocketGuard, Wanted},
    route::Query,
    sniff::http,
    spec::{AlpnList, Choice, ClientProtocol, ProxyProtocol, SocketName},
};

/// Opens a connection: what it asks for is read, and a backend connected.
///
/// `port` is the one that the client connected to; it is meant where a backend names none.
pub(super) async fn open(
    edge: &Arc<Edge>,
    connection: &Arc<Connection>,
    listener: &ListenerState,
    port: u16,
    client: &mut TcpStream,
) -> Result<Opened, Refused> {
    let running = edge.running.load_full();
    let deadline = Instant::now() + listener.spec.hello_timeout.unwrap_or(running.hello_timeout);
    let opening = Opening { edge, connection, listener, port, running, deadline };
    let (place, received) = opening.admit(client).await?;
    let (hello, received) = opening.read(client, received).await?;
    let (destination, route) = opening.route(&hello, &received)?;
    opening.connect(client, destination, &hello, received, (place, route)).await
}

/// A connection ready to be carried.
pub(super) struct Opened {
    pub(super) backend: TcpStream,
    pub(super) preread: Preread,
    pub(super) places: Box<TakenPlaces>,
    pub(super) guard: SocketGuard,
    /// The fastest datapath tier for this pair of sockets.
    pub(super) datapath: Choice,
}

/// The places that a connection takes in the limits of its source, route and backend. Boxed, to keep the future of a
/// long-lived connection small.
#[derive(Debug)]
pub(super) struct TakenPlaces {
    pub(super) source: SourceSlot,
    pub(super) route: Place,
    pub(super) backend: Place,
}

/// A connection that comes to nothing, what it speaks where that is known, and the TLS version that an alert to it
/// carries.
pub(super) struct Refused {
    pub(super) outcome: CloseReason,
    pub(super) failure: Option<Box<Failure>>,
    pub(super) protocol: Option<ClientProtocol>,
    pub(super) tls_version: u16,
    /// Where a redirected client is sent.
    pub(super) location: Option<String>,
}

impl From<CloseReason> for Refused {
    fn from(outcome: CloseReason) -> Self {
        Self { outcome, failure: None, protocol: None, tls_version: 0, location: None }
    }
}

impl Refused {
    /// There is no hello of this protocol.
    pub(super) fn without_hello(protocol: Option<ClientProtocol>, reason: NoHello) -> Self {
        Self { protocol, ..reason.into() }
    }
}

impl From<NoHello> for Refused {
    fn from(reason: NoHello) -> Self {
        match reason {
            NoHello::Gone => CloseReason::Gone.into(),
            NoHello::Late => CloseReason::HelloTimeout.into(),
            NoHello::NoMemory => CloseReason::HelloMemory.into(),
            NoHello::Rejected { rejection, tls_version } => {
                Self { tls_version, ..CloseReason::Rejected(rejection).into() }
            }
        }
    }
}

/// The state that the four steps share.
pub(super) struct Opening<'a> {
    pub(super) edge: &'a Arc<Edge>,
    pub(super) connection: &'a Arc<Connection>,
    pub(super) listener: &'a ListenerState,
    pub(super) port: u16,
    /// One snapshot for all steps.
    pub(super) running: Arc<Running>,
    /// When the hello has to be complete.
    pub(super) deadline: Instant,
}

/// The client's request: protocol, host and ALPN.
pub(super) struct ReadHello<'a> {
    pub(super) request: &'a ClientRequest,
    /// The whole ALPN list, where `request` has its start only.
    whole_alpn: Option<AlpnList>,
    /// The version that an alert to this client carries.
    tls_version: u16,
}

impl ReadHello<'_> {
    pub(super) fn alpn(&self) -> &AlpnList {
        self.whole_alpn.as_ref().unwrap_or(&self.request.alpn)
    }

    fn refused(&self, outcome: CloseReason, failure: Option<Failure>) -> Refused {
        let failure = failure.map(Box::new);
        let Self { tls_version, request, .. } = *self;
        Refused { outcome, failure, protocol: request.protocol, tls_version, location: None }
    }
}

impl<'a> Opening<'a> {
    /// Reads the PROXY header that a believed peer sends, and finds out whether the client may connect here now.
    async fn admit(&self, client: &TcpStream) -> Result<(SourceSlot, Received), Refused> {
        let Self { edge, connection, listener, running, .. } = self;
        let mut received = Received::new(self.hold());
        if listener.believes(connection.peer.ip()) {
            let header = timeout_at(self.deadline, hello::read_proxy_header(client, &mut received)).await;
            let header = connection.is_announced(header.map_err(|_| CloseReason::ProxyHeaderTimeout)??);
            // From here on it is the client's account, no more the proxy's.
            received = received.behind(header.len, self.hold())?;
        }
        let source = connection.client().ip();
        // The peer was looked at when it was accepted. Since then it may have been blocked: only now is the connection
        // among those that a block ends.
        if edge.blocked.hold(connection.peer.ip()) || edge.blocked.hold(source) {
            return Err(CloseReason::Blocked.into());
        }
        if !listener.admits(source) {
            return Err(CloseReason::Denied.into());
        }
        if !edge.admission.connects(source, running.connection_rate_per_source) {
            return Err(CloseReason::SourceRate.into());
        }
        let place =
            edge.admission.source(source, running.connections_per_source).ok_or(CloseReason::SourceLimit)?;
        Ok((place, received))
    }

    /// Memory for first bytes, on the account of the client as far as it is known.
    fn hold(&self) -> Held {
        self.edge.hello_memory.hold(self.connection, self.connection.client().ip())
    }

    /// Reads what the client asks for.
    async fn read(
        &self,
        client: &mut TcpStream,
        mut received: Received,
    ) -> Result<(ReadHello<'a>, Received), Refused> {
        let Self { edge, connection, listener, running, .. } = self;
        let protocol = hello::read_protocol(client, listener, &mut received);
        let protocol = timeout_at(self.deadline, protocol).await.map_err(|_| CloseReason::HelloTimeout)??;
        postgres::welcome(self, protocol, client, &mut received).await?;
        let hello = hello::read(client, protocol, running.hello_bytes, received);
        let hello = timeout_at(self.deadline, hello).await.unwrap_or(Err(NoHello::Late));
        let Hello { request, whole_alpn, received, tls_version } =
            hello.map_err(|reason| Refused::without_hello(protocol, reason))?;
        if protocol.is_some() {
            edge.timings.hello(connection.accepted.elapsed());
        }
        Ok((ReadHello { request: connection.set_request(request), whole_alpn, tls_version }, received))
    }

    /// Picks the route and takes a place on it. For a redirect the error has the `location`.
    fn route(
        &self,
        hello: &ReadHello<'_>,
        received: &Received,
    ) -> Result<(Arc<Destination>, Place), Refused> {
        let source = self.connection.client().ip();
        let destination =
            self.destination(source, hello).ok_or_else(|| hello.refused(CloseReason::NoRoute, None))?;
        let refused = |outcome| {
            let failure = Failure::of_route(Arc::clone(&destination.label), outcome);
            hello.refused(outcome, Some(failure))
        };
        if let Some(outcome) = destination.refuses(source) {
            return Err(refused(outcome));
        }
        if destination.redirects(hello.request.protocol) {
            match http::to_https(&received.bytes) {
                Ok(None) => {}
                Ok(location) => return Err(Refused { location, ..refused(CloseReason::Redirected) }),
                Err(rejection) => return Err(refused(CloseReason::Rejected(rejection))),
            }
        }
        match destination.places.take() {
            Some(place) => Ok((destination, place)),
            None => Err(refused(CloseReason::RouteLimit)),
        }
    }

    fn destination(&self, source: IpAddr, hello: &ReadHello<'_>) -> Option<Arc<Destination>> {
        if let Some(destination) = &self.listener.destination {
            return Some(Arc::clone(destination));
        }
        let query = Query {
            host: hello.request.host.as_ref(),
            protocol: hello.request.protocol?,
            alpn: hello.alpn(),
            source,
            listener: &self.listener.spec.name,
        };
        self.running.routes.find(&query).map(|rule| Arc::clone(&rule.target))
    }

    /// Connects a backend and readies what it gets first.
    async fn connect(
        &self,
        client: &TcpStream,
        destination: Arc<Destination>,
        hello: &ReadHello<'_>,
        received: Received,
        (source_slot, route): (SourceSlot, Place),
    ) -> Result<Opened, Refused> {
        let Self { edge, connection, listener, port, .. } = self;
        let (source, protocol, alpn) = (connection.client().ip(), hello.request.protocol, hello.alpn());
        let speaks = !received.bytes.is_empty() || destination.proxy_protocol != ProxyProtocol::Off;
        let preparation = ForClient { flow: for_flow(edge, &destination, client, connection), speaks };
        let label = destination.label(hello.request.host.as_ref());
        let wanted = Wanted { client: source, default_port: *port, label };
        let connecting = destination.pool.connect_prepared(wanted, Some(&preparation));
        let failed = |outcome, error: &dyn Display, is_clients_choice: bool, backend, attempts| {
            if outcome == CloseReason::ConnectFailed && !is_clients_choice {
                tracing::warn!(
                    id = connection.id, client = %connection.client(), route = &*destination.label, %error,
                    "no backend could be connected"
                );
            }
            let route = Arc::clone(&destination.label);
            let failure = Failure { route, backend, attempts, error: Some(error.to_string()) };
            hello.refused(outcome, Some(failure))
        };
        let connecting = connecting.await.map_err(|GaveUp { error, backend, attempts }| {
            let outcome = match error {
                ConnectError::Full(_) => CloseReason::BackendLimit,
                _ => CloseReason::ConnectFailed,
            };
            failed(outcome, &error, error.is_clients_choice(), backend, attempts)
        });
        let connect::Connection {
            mut stream, address, lease, place: at_backend, took, attempts, guard, ..
        } = connecting?;
        edge.timings.connect(destination.pool.name(), took);
        let (received, memory) = received.finish()?;
        let mut preread = header::preread(edge, connection, &destination, alpn, client, received, memory);
        let is_session =
            postgres::ready(self, hello, &destination, lease.backend(), (&mut stream, &mut preread))
                .await
                .map_err(|error| {
                    let error = format!("{address}: {error}");
                    failed(CloseReason::ConnectFailed, &error, false, Some(address.clone()), attempts)
                })?;
        // A tcp listener may carry any protocol.
        let may_be_silent = is_session || protocol.is_none_or(ClientProtocol::may_be_silent);
        let never = may_be_silent.then_some(Duration::ZERO);
        let idle_timeout = destination.idle_timeout.or(listener.spec.idle_timeout).or(never);
        let datapath = match &address {
            SocketName::Tcp(_) => destination.datapath,
            SocketName::Unix(_) => destination.datapath.for_unix_socket(),
        };
        let upstream = Upstream { destination, lease, address, connect_time: took, idle_timeout };
        connection.set_upstream(upstream);
        let places = Box::new(TakenPlaces { source: source_slot, route, backend: at_backend });
        Ok(Opened { backend: stream, preread, places, guard, datapath })
    }
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
    fn prepare(&self, socket: BorrowedFd<'_>, backend: SocketAddr) -> SocketGuard {
        if self.speaks {
            // The end of the handshake goes in the packet of the first bytes instead of one of its own
            // (`tcp_rcv_synsent_state_process`). What fails costs that packet.
            let _ = set_tcp_quickack(socket, false);
        }
        let ForFlow { tier, client, options } = self.flow.as_ref()?;
        Some(Box::new(tier.prepare(socket, backend, *client, *options)?))
    }
}
