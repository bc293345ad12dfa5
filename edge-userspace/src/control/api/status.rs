//! The daemon at a glance.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Guard, Timestamp};
use crate::spec::{Choice, ClientProtocol, Protocol, Tier};

/// `GET /v1/status`. Counts are since the daemon started, unless they say "now".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: Arc<str>,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// Seconds since then.
    pub uptime_seconds: f64,
    /// It takes no new connections and ends when the last one has.
    pub draining: bool,
    /// The configuration that runs.
    pub config: ConfigStatus,
    /// The available tiers.
    pub datapath: DatapathStatus,
    /// The listeners.
    pub listeners: Vec<ListenerStatus>,
    /// Parts of the configuration that are not in effect and may recover without a change, one per line;
    /// those of listeners included.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// Connections of all listeners.
    pub connections: ConnectionCount,
    /// Bytes from clients to backends.
    pub bytes_up: u64,
    /// Bytes from backends to clients.
    pub bytes_down: u64,
    /// The memory of clients' first bytes.
    #[serde(default)]
    pub hello_memory: HelloMemory,
    /// Clients that were refused, by reason.
    pub rejected: BTreeMap<Arc<str>, u64>,
    /// Routes by where they came from.
    pub routes: RouteCount,
    /// Backends by state.
    pub backends: BackendCount,
    /// Packets of blocked sources that were dropped.
    pub blocked_packets: u64,
    /// How blocked sources are kept out, device by device; empty while nobody is blocked.
    #[serde(default)]
    pub shield: Vec<Guard>,
    /// The kernel's connection tracking; `null` where it is not loaded.
    #[serde(default)]
    pub conntrack: Option<ConntrackStatus>,
}

/// The kernel's connection tracking, in the daemon's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackStatus {
    /// Connections of the whole machine that are tracked now.
    pub entries: u64,
    /// How many there may be; beyond, the kernel drops the packets of new ones.
    pub limit: u64,
}

/// The configuration that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigStatus {
    /// Its file.
    pub path: PathBuf,
    /// When it took effect.
    pub loaded: Timestamp,
    /// How the last reload went; `null` before the first.
    pub last_reload: Option<ReloadStatus>,
}

/// How the last reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// When.
    pub time: Timestamp,
    /// Whether it took effect.
    pub successful: bool,
    /// Why not.
    pub error: Option<String>,
}

/// The tiers that may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// The tiers that the operator allows.
    pub allowed: Choice,
    /// The tiers that this machine supports.
    pub tiers: Vec<TierStatus>,
    /// Flows that other versions of edged handed over, as long as there are any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherLayout>,
}

/// Flows in a layout of the kernel's maps that is not this version's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherLayout {
    /// Its name, as the directory of its pins has it.
    pub layout: Arc<str>,
    /// How many there are; none where they cannot be counted.
    pub flows: Option<u64>,
    /// Whether they are listed, counted and closed like others. Unreadable flows continue to work too.
    pub readable: bool,
}

/// Whether this machine can do one tier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStatus {
    /// The tier.
    pub tier: Tier,
    /// Whether it can be used.
    pub available: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its name.
    pub name: Arc<str>,
    /// How it understands the first bytes.
    pub protocol: Protocol,
    /// The protocols that are recognised by their first bytes; empty if `protocol` names the only one.
    #[serde(default)]
    pub protocols: Vec<ClientProtocol>,
    /// Where it accepts.
    pub bind: Vec<SocketAddr>,
    /// Those of `bind` where no client comes in now.
    #[serde(default)]
    pub troubles: Vec<BindTrouble>,
    /// Connections now.
    pub connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// The MSS that is announced to clients, in bytes; `null` if no path to a backend limits it.
    pub mss: Option<u16>,
}

/// Why no client comes in at an address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindTrouble {
    /// The address.
    pub bind: SocketAddr,
    /// It is listened on, and clients are accepted once the machine has it.
    pub listening: bool,
    /// The cause.
    pub reason: String,
}

/// Connections of all listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionCount {
    /// Connections now.
    pub now: u64,
    /// Connections accepted.
    pub total: u64,
    /// How many there may be at once.
    pub limit: u64,
    /// How many one source may have of these; 0 is no limit.
    #[serde(default)]
    pub limit_per_source: u64,
}

/// The memory of clients' first bytes, until those are with the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloMemory {
    /// Bytes taken now.
    pub now: u64,
    /// Bytes that may be.
    pub limit: u64,
}

/// Routes by where they came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteCount {
    /// From the configuration file.
    pub file: u64,
    /// Added at run time.
    pub runtime: u64,
}

/// Backends by state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendCount {
    /// Taking connections.
    pub up: u64,
    /// Not checked, and no client has come to them yet.
    #[serde(default)]
    pub unchecked: u64,
    /// Failed.
    pub down: u64,
    /// Taken out by the operator.
    pub drained: u64,
}

/// The answer to `POST /v1/reload`: what runs now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Listeners.
    pub listeners: u64,
    /// Pools, those that addresses in `to` make included.
    pub pools: u64,
    /// Routes, the runtime ones included.
    pub routes: u64,
    /// Settings that took effect incompletely, and settings that need a restart.
    pub warnings: Vec<String>,
}
