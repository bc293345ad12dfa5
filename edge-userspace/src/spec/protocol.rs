//! The protocols that a listener can tell apart, and what follows from each.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A protocol that can be told from others by how its client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientProtocol {
    /// TLS: a handshake record.
    Tls,
    /// HTTP/1: a method, a space, a target.
    Http,
    /// SSH: `SSH-`, unless it waits for the server (RFC 4253 §4.2).
    Ssh,
    /// OpenVPN over TCP: a packet that resets the control channel.
    Openvpn,
    /// PostgreSQL: its first message. With TLS in it there is a name.
    Postgres,
    /// Bytes that none of the listener's protocols begins with.
    Any,
}

impl ClientProtocol {
    /// The name in the configuration, the API and the logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::Openvpn => "openvpn",
            Self::Postgres => "postgres",
            Self::Any => "any",
        }
    }

    /// Whether a client says which host it wants.
    pub fn names_a_host(self) -> bool {
        matches!(self, Self::Tls | Self::Http | Self::Postgres)
    }

    /// Whether a client may offer protocols by ALPN (RFC 7301).
    pub fn offers_alpn(self) -> bool {
        matches!(self, Self::Tls | Self::Postgres)
    }

    /// Whether a client that is refused after its hello understands a TLS alert. A PostgreSQL client has by
    /// then been told to start TLS.
    pub fn answers_in_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Postgres)
    }

    /// Whether its connections may be silent for hours while somebody needs them: a shell, a database session.
    pub fn may_be_silent(self) -> bool {
        matches!(self, Self::Ssh | Self::Postgres | Self::Any)
    }

    /// Whether a route without `protocol` matches it: the protocols that every web server speaks.
    pub fn is_web(self) -> bool {
        matches!(self, Self::Tls | Self::Http)
    }
}

impl fmt::Display for ClientProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
