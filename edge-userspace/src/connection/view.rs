//! One connection, on sockets or as a flow, as the operator sees it: in the list while it lives, and in the access log
//! when it has ended.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::Connection;
use crate::{
    observe::access_log::Record,
    spec::{AlpnList, ClientProtocol, HostName, SocketName, Tier},
};

/// One connection as the operator sees it.
#[derive(Clone, Debug)]
pub struct View {
    /// Its number.
    pub id: u64,
    /// The client; behind a believed PROXY header the one it names.
    pub client: SocketAddr,
    /// The address of this machine that the client connected to.
    pub local: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// The client's protocol, once known.
    pub protocol: Option<ClientProtocol>,
    /// The SNI or the Host.
    pub host: Option<HostName>,
    /// The server name in SNI, if it cannot be a host name; escaped.
    pub raw_name: Option<String>,
    /// The client's ALPN list, or its beginning.
    pub alpn: AlpnList,
    /// Whether the host is the outer name of an Encrypted ClientHello.
    pub ech: bool,
    /// The label of its destination, once it is connected.
    pub route: Option<Arc<str>>,
    /// The address of the backend, once it is connected.
    pub backend: Option<SocketName>,
    /// The tier that carries it, once it is connected.
    pub datapath: Option<Tier>,
    /// Whether the kernel has left it to user space.
    pub spilled: bool,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// When it was accepted, by the wall clock as that is now.
    pub accepted: SystemTime,
    /// From accept until now, or until its end.
    pub duration: Duration,
    /// From the first attempt to a connected backend.
    pub connect_time: Option<Duration>,
}

impl View {
    /// A connection on sockets.
    pub fn of(connection: &Connection) -> Self {
        let (request, upstream) = (connection.request(), connection.upstream());
        Self {
            id: connection.id,
            client: connection.client(),
            local: connection.local,
            listener: Arc::clone(&connection.listener),
            protocol: request.and_then(|request| request.protocol),
            host: request.and_then(|request| request.host.clone()),
            raw_name: request.and_then(|request| request.raw_name.as_ref()).map(ToString::to_string),
            alpn: request.map(|request| request.alpn.clone()).unwrap_or_default(),
            ech: request.is_some_and(|request| request.ech),
            route: upstream.map(|upstream| Arc::clone(&upstream.destination.label)),
            backend: upstream.map(|upstream| upstream.address.clone()),
            datapath: upstream.map(|_| connection.meter.tier()),
            spilled: connection.meter.spilled(),
            bytes_up: connection.meter.up(),
            bytes_down: connection.meter.down(),
            accepted: connection.accepted_at(),
            duration: connection.accepted.elapsed(),
            connect_time: upstream.map(|upstream| upstream.connect_time),
        }
    }

    /// Its line in the access log; `close` says why it ended.
    pub(super) fn record(self, close: &'static str, unique_id: String) -> Record {
        Record {
            time: self.accepted,
            id: self.id,
            client: self.client,
            local: self.local,
            listener: self.listener,
            protocol: self.protocol,
            sni: self.host,
            sni_raw: self.raw_name,
            alpn: self.alpn,
            ech: self.ech,
            route: self.route,
            backend: self.backend,
            attempts: None,
            error: None,
            datapath: self.datapath,
            spilled: self.spilled,
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            duration: self.duration,
            connect_time: self.connect_time,
            close,
            unique_id,
        }
    }
}
