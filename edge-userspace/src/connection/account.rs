//! The account of one live connection: for the operator, the idle sweep and the access log.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use super::Destination;
use crate::{
    datapath::{Meter, Stop},
    lock::lock,
    pool::Lease,
    sniff::{
        RawName,
        proxy_header::{ProxyHeader, ProxySource},
    },
    spec::{AlpnList, ClientProtocol, HostName, SocketName},
};

/// One connection. Shared by its task and its observers.
#[derive(Debug)]
pub struct Connection {
    /// Its number, unique in this process.
    pub id: u64,
    /// The connected peer: the client, or a proxy that speaks for it.
    pub peer: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// The address that it was accepted on, of this machine.
    pub local: SocketAddr,
    /// When it was accepted.
    pub accepted: Instant,
    /// The live count of its bytes.
    pub meter: Meter,
    /// Where the order to end it is left.
    pub stop: Stop,
    announced: OnceLock<Box<ProxyHeader>>,
    // Boxed, as small pieces: those fill the gaps between what the runtime aligns to 128 bytes for each connection.
    request: OnceLock<Box<ClientRequest>>,
    upstream: OnceLock<Box<Upstream>>,
    ledger: Mutex<Ledger>,
}

/// The client's request.
#[derive(Debug, Default)]
pub struct ClientRequest {
    /// The client's protocol; `None` on a tcp listener.
    pub protocol: Option<ClientProtocol>,
    /// The SNI or the Host.
    pub host: Option<HostName>,
    /// The server name in SNI, if it cannot be a host name.
    pub raw_name: Option<RawName>,
    /// The protocols it offers, or the first of them: [`AlpnList::start`].
    pub alpn: AlpnList,
    /// Whether the name is the outer one of an Encrypted ClientHello.
    pub ech: bool,
}

/// Where it goes.
#[derive(Debug)]
pub struct Upstream {
    /// The route's destination.
    pub destination: Arc<Destination>,
    /// The backend, counted there while this lives.
    pub lease: Lease,
    /// The backend's address in use.
    pub address: SocketName,
    /// How long connecting took, all attempts together.
    pub connect_time: Duration,
    /// The idle limit of the route or the listener. Zero means unlimited; `None` leaves it to the global
    /// limit.
    pub idle_timeout: Option<Duration>,
}

/// The part already added to the counters of the destination and the backend.
#[derive(Debug)]
struct Ledger {
    up: u64,
    down: u64,
    moved_at: Instant,
}

impl Connection {
    pub(super) fn new(id: u64, peer: SocketAddr, local: SocketAddr, listener: Arc<str>) -> Self {
        let accepted = Instant::now();
        Self {
            id,
            peer,
            local,
            listener,
            accepted,
            meter: Meter::default(),
            stop: Stop::default(),
            announced: OnceLock::new(),
            request: OnceLock::new(),
            upstream: OnceLock::new(),
            ledger: Mutex::new(Ledger { up: 0, down: 0, moved_at: accepted }),
        }
    }

    /// The client; behind a believed PROXY header the one it names.
    pub fn client(&self) -> SocketAddr {
        match self.announced().map(|header| header.source) {
            Some(ProxySource::Client { source, .. }) => source,
            Some(ProxySource::Local) | None => self.peer,
        }
    }

    /// When it was accepted, by the wall clock as that is now.
    pub fn accepted_at(&self) -> SystemTime {
        let now = SystemTime::now();
        now.checked_sub(self.accepted.elapsed()).unwrap_or(now)
    }

    /// The PROXY header it began with, where one was required.
    pub fn announced(&self) -> Option<&ProxyHeader> {
        self.announced.get().map(|header| &**header)
    }

    /// The client's request, once known.
    pub fn request(&self) -> Option<&ClientRequest> {
        self.request.get().map(|request| &**request)
    }

    /// Where it goes, once it is connected.
    pub fn upstream(&self) -> Option<&Upstream> {
        self.upstream.get().map(|upstream| &**upstream)
    }

    pub(super) fn is_announced(&self, header: ProxyHeader) -> &ProxyHeader {
        self.announced.get_or_init(|| Box::new(header))
    }

    pub(super) fn set_request(&self, request: ClientRequest) -> &ClientRequest {
        self.request.get_or_init(|| Box::new(request))
    }

    pub(super) fn set_upstream(&self, upstream: Upstream) -> &Upstream {
        self.upstream.get_or_init(|| {
            upstream.destination.counters.began();
            upstream.destination.counters.entered();
            Box::new(upstream)
        })
    }

    /// Adds the bytes since the last call to the counters of the destination and the backend. Returns for how
    /// long nothing has moved, as far as calls of this function saw.
    pub(super) fn settle(&self, now: Instant) -> Duration {
        let mut ledger = lock(&self.ledger);
        let (up, down) = (self.meter.up(), self.meter.down());
        if (up, down) == (ledger.up, ledger.down) {
            return now.saturating_duration_since(ledger.moved_at);
        }
        if let Some(upstream) = self.upstream() {
            upstream.destination.counters.carried(up - ledger.up, down - ledger.down);
            upstream.lease.carried(up - ledger.up, down - ledger.down);
        }
        *ledger = Ledger { up, down, moved_at: now };
        Duration::ZERO
    }

    /// It goes on as a flow: what it was counted for until now is counted with the flows.
    pub(super) fn hand_counts_on(&self) {
        self.settle(Instant::now());
        let ledger = lock(&self.ledger);
        if let Some(upstream) = self.upstream() {
            upstream.destination.counters.became_flow(ledger.up, ledger.down);
            upstream.lease.backend().tally().became_flow(ledger.up, ledger.down);
        }
    }

    /// The idle limit in force, where `limit` is the global one; `None` means unlimited.
    pub(super) fn idle_timeout(&self, limit: Option<Duration>) -> Option<Duration> {
        let own = self.upstream().and_then(|upstream| upstream.idle_timeout);
        patience(own, limit, self.meter.half_closed())
    }

    /// For how long nothing has moved, as far as the last settlement saw.
    pub fn idle(&self, now: Instant) -> Duration {
        let ledger = lock(&self.ledger);
        if (self.meter.up(), self.meter.down()) == (ledger.up, ledger.down) {
            now.saturating_duration_since(ledger.moved_at)
        } else {
            Duration::ZERO
        }
    }
}

/// The idle limit in force: the connection's own setting (zero = unlimited), else the global one. "Unlimited"
/// does not apply to half-closed connections, because the FIN of one peer may be the last sign of its end.
pub(super) fn patience(
    own: Option<Duration>,
    limit: Option<Duration>,
    is_half_closed: bool,
) -> Option<Duration> {
    const HALF_CLOSED: Duration = Duration::from_hours(1);
    let wanted = match own {
        Some(own) => (!own.is_zero()).then_some(own),
        None => limit,
    };
    wanted.or(is_half_closed.then_some(HALF_CLOSED))
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.destination.counters.left();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_word_counts_and_never_is_for_what_is_open() {
        const MINUTE: Option<Duration> = Some(Duration::from_mins(1));
        const HOUR: Option<Duration> = Some(Duration::from_hours(1));
        const NEVER: Option<Duration> = Some(Duration::ZERO);
        assert_eq!(patience(None, HOUR, false), HOUR);
        assert_eq!(patience(MINUTE, HOUR, false), MINUTE);
        assert_eq!(patience(MINUTE, None, true), MINUTE);
        assert_eq!(patience(NEVER, MINUTE, false), None);
        assert_eq!(patience(None, None, false), None);
        assert_eq!(patience(NEVER, MINUTE, true), HOUR);
        assert_eq!(patience(None, None, true), HOUR);
    }
}
