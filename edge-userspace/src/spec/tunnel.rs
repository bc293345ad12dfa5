//! How tunnels are judged, as the operator says it.

use std::time::Duration;

/// How tunnels are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    /// The age from which the last handshake of a peer that is being sent to is too old.
    pub handshake: Duration,
}

impl Default for TunnelSpec {
    /// Three minutes, after which WireGuard itself rejects packets with the old key (`REJECT_AFTER_TIME`,
    /// WireGuard paper §6.1).
    fn default() -> Self {
        Self { handshake: Duration::from_mins(3) }
    }
}
