//! The access log: its last lines, and lines as they come.

use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Timestamp, connections::asks_for, fields};
use crate::{observe::access_log::Line, spec::HostPattern};

/// `GET /v1/log`: which lines. The answer has one JSON object a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRequest {
    /// Lines of clients that asked for this name, or for one that the pattern matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostPattern>,
    /// Lines of clients in this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "fields::some_prefix")]
    pub client: Option<IpNet>,
    /// Lines of clients that were refused.
    #[serde(default, skip_serializing_if = "fields::is_default", deserialize_with = "fields::flag")]
    pub refused: bool,
    /// The most lines of those that are kept; a few hundred are.
    #[serde(default, skip_serializing_if = "fields::is_zero", deserialize_with = "fields::number")]
    pub lines: usize,
    /// Go on with lines as they come.
    #[serde(default, skip_serializing_if = "fields::is_default", deserialize_with = "fields::flag")]
    pub follow: bool,
}

impl LogRequest {
    /// Whether a line is wanted.
    pub fn takes(&self, Line { record, refused }: &Line) -> bool {
        (!self.refused || *refused)
            && self.client.is_none_or(|prefix| prefix.contains(&record.client.ip().to_canonical()))
            && self.host.as_ref().is_none_or(|pattern| asks_for(pattern, record.sni.as_ref()))
    }
}

/// A line of the answer in place of lines that were lost, because the reader was too slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LostLines {
    /// How many.
    pub lost: u64,
}

/// A line of the answer, with the fields that people read: those of the access log, and `refused`.
#[derive(Clone, Debug, Deserialize)]
pub struct LogLine {
    /// When the connection was accepted.
    pub time: Timestamp,
    /// The client, as much as `access_log_clients` shows of it.
    pub client: Arc<str>,
    /// The listener.
    pub listener: Arc<str>,
    /// The name that the client asked for.
    pub sni: Option<Arc<str>>,
    /// The same, where it cannot be a host name.
    pub sni_raw: Option<Arc<str>>,
    /// The backend; where none could be connected, the one tried last.
    pub backend: Option<Arc<str>>,
    /// Why none could be connected.
    pub error: Option<Arc<str>>,
    /// The tier.
    pub datapath: Option<Arc<str>>,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// From accept to the end.
    pub duration_ms: f64,
    /// Why it ended.
    pub close: Arc<str>,
    /// The edge refused it.
    #[serde(default)]
    pub refused: bool,
}
