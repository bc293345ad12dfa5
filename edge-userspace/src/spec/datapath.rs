//! The datapath tiers, and which of them the operator allows.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

/// The default ports for flows: below those that the kernel assigns by itself
/// (`net.ipv4.ip_local_port_range`), above those that services listen on.
pub const FLOW_PORTS: RangeInclusive<u16> = 10_240..=32_767;

/// The tiers that can carry a connection's bytes, from slowest to fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// `read` and `write` through a buffer.
    #[default]
    Copy,
    /// `splice(2)` through a pipe.
    Splice,
    /// Redirected between sockets in the kernel.
    Sockmap,
    /// Rewritten and redirected as packets.
    Flow,
}

/// The fastest tier that the operator allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// The best tier, by policy.
    #[default]
    Auto,
    /// Hand over to the packet path at once, where the connection may be.
    Flow,
    /// Redirect between sockets.
    Sockmap,
    /// At most `splice`.
    Splice,
    /// Only `copy`.
    Copy,
}

impl Tier {
    /// Its name in the API, the access log and the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Sockmap => "sockmap",
            Self::Flow => "flow",
        }
    }
}

impl Choice {
    /// Whether it is a tier for TCP alone: one that moves packets, or that redirects between TCP sockets.
    pub const fn needs_tcp(self) -> bool {
        matches!(self, Self::Flow | Self::Sockmap)
    }

    /// The nearest choice for a backend on a Unix socket, which only `splice` and `copy` can carry.
    #[must_use]
    pub const fn for_unix_socket(self) -> Self {
        match self {
            Self::Auto | Self::Flow | Self::Sockmap | Self::Splice => Self::Splice,
            Self::Copy => Self::Copy,
        }
    }

    /// Its name in the configuration and the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Flow => "flow",
            Self::Sockmap => "sockmap",
            Self::Splice => "splice",
            Self::Copy => "copy",
        }
    }
}
