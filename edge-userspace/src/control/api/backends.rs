//! Backends: listed, drained, put back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::spec::BackendAddress;

/// The current state of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendState {
    /// It takes new connections.
    Up,
    /// It is not checked, and no client's connection has told anything of it yet.
    Unchecked,
    /// A check, a connection or its tunnel failed.
    Down,
    /// The operator took it out, or its weight is 0.
    Drained,
}

/// `GET /v1/backends`: one backend of one pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Backend {
    /// The pool; for a target that is an address, that text.
    pub pool: Arc<str>,
    /// Where it is, as the operator wrote it.
    pub to: BackendAddress,
    /// The address it has now; `null` while its name is not resolved.
    pub address: Option<Arc<str>>,
    /// Its current state.
    pub state: BackendState,
    /// Since when.
    pub since: Timestamp,
    /// Why it is in this state, where there is more to say: the check and the last error.
    pub reason: Option<String>,
    /// Why a check or a client's connection last failed, whatever happened since.
    #[serde(default)]
    pub last_error: Option<String>,
    /// When that was.
    #[serde(default)]
    pub last_error_at: Option<Timestamp>,
    /// When a check or a client's connection last succeeded.
    #[serde(default)]
    pub last_success_at: Option<Timestamp>,
    /// The tunnel it must be reached through.
    pub device: Option<Arc<str>>,
    /// Its share of new connections.
    pub weight: u32,
    /// Used only when no other is up.
    pub backup: bool,
    /// Connections now.
    pub connections: u64,
    /// The most that there may be; left out where there is no limit.
    #[serde(default, skip_serializing_if = "super::fields::is_zero")]
    pub connections_limit: usize,
    /// Bytes from clients since the daemon started.
    pub bytes_up: u64,
    /// Bytes to clients since the daemon started.
    pub bytes_down: u64,
    /// The round trip to it in milliseconds, where it was measured.
    pub rtt_ms: Option<f64>,
}

/// `POST /v1/backends/drain` and `/v1/backends/ready`: which backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendSelector {
    /// Where it is, as the operator wrote it.
    pub to: BackendAddress,
    /// The one pool that is meant; none means every pool that has `to`.
    #[serde(default)]
    pub pool: Option<Arc<str>>,
}
