//! What the kernel does with a client's packets.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Timestamp, fields};

/// `POST /v1/trace`: whose packets to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceClient {
    /// The client; an address alone means that address.
    #[serde(deserialize_with = "fields::prefix")]
    pub client: IpNet,
    /// The reader, as the first answer names it; none begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reader: Option<u64>,
}

/// The answer: what has come since the reader's last call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    /// To be sent with the next call. A reader that does not call for ten seconds is forgotten.
    pub reader: u64,
    /// Lines that this reader was too slow for.
    pub missed: u64,
    /// Lines that the kernel had no room for, of any client.
    pub lost: u64,
    /// The lines, oldest first.
    pub lines: Vec<TraceLine>,
}

/// The fate of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceLine {
    /// When the daemon read it, some milliseconds later.
    pub time: Timestamp,
    /// The BPF program: `flow` or `shield`.
    pub program: Arc<str>,
    /// The client's address.
    pub client: IpAddr,
    /// Its port; `null` if the program does not know it.
    pub client_port: Option<u16>,
    /// The other end: the backend of a flow, else the edge; `null` if the program does not know it.
    pub peer: Option<IpAddr>,
    /// Its port.
    pub peer_port: Option<u16>,
    /// The TCP flags, such as `SYN,ACK`; empty for other packets.
    pub flags: Arc<str>,
    /// Bytes of the packet.
    pub length: u32,
    /// The action, and its reason.
    pub message: Arc<str>,
}
