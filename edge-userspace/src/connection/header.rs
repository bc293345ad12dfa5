//! The PROXY header, which the edge sends a backend before the client's own bytes.

use tokio::net::TcpStream;

use super::{Connection, Destination, Edge, hello_memory::Held};
use crate::{
    datapath::Preread,
    proxy_protocol::{Header, Tlvs, V2_MAX_SENT, write},
    sniff::proxy_header::ProxySource,
    spec::{AlpnList, ProxyProtocol},
};

/// The first bytes for the backend: the PROXY header that it wants, then the client's bytes.
pub(super) fn preread(
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
    let request = connection.request();
    let unique_id = edge.unique_id(connection);
    let pool = &destination.pool;
    let Header { bytes, left_out } = write(
        destination.proxy_protocol,
        source,
        &Tlvs {
            wanted: pool.proxy_tlvs(),
            authority: request.and_then(|request| request.host.as_ref()),
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
