//! A listener as the operator configures it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Access, ClientProtocol, Target};

/// How the first bytes of a connection are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A ClientHello, routed by its SNI.
    Tls,
    /// An HTTP/1 request head, routed by its Host.
    Http,
    /// Nothing is read: the listener names its target itself.
    Tcp,
}

impl Protocol {
    /// The one protocol that is spoken; `None` where nothing is read.
    pub fn client_protocol(self) -> Option<ClientProtocol> {
        match self {
            Self::Tls => Some(ClientProtocol::Tls),
            Self::Http => Some(ClientProtocol::Http),
            Self::Tcp => None,
        }
    }
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerSpec {
    /// Its name, unique.
    pub name: Arc<str>,
    /// The addresses it accepts on; `[::]` takes IPv4 too. Never empty.
    pub bind: Vec<SocketAddr>,
    /// How the first bytes are understood. Where there are `protocols`, this is [`Protocol::Tls`].
    pub protocol: Protocol,
    /// The protocols that clients may speak, recognised by their first bytes; empty if there is only one.
    pub protocols: Vec<ClientProtocol>,
    /// How long a client may stay silent before it is taken for one of SSH that waits for its server.
    pub silence_timeout: Duration,
    /// From accept to a complete hello; `None` is the limit of all listeners.
    pub hello_timeout: Option<Duration>,
    /// A connection without a byte either way for this long is closed, nothing is never; `None` is the limit of all
    /// listeners.
    pub idle_timeout: Option<Duration>,
    /// Sources whose PROXY header is required and believed.
    pub accept_proxy: Vec<IpNet>,
    /// Sources that may connect.
    pub access: Access,
    /// Where a `tcp` listener sends its connections; `None` for the others.
    pub to: Option<Target>,
    /// For all attempts to connect together, where `to` is an address.
    pub connect_timeout: Option<Duration>,
}

impl ListenerSpec {
    /// How long a client may stay silent where some wait for their server, unless the operator says otherwise: what
    /// sslh has, less than people notice and more than a client on a bad line needs.
    pub const SILENCE: Duration = Duration::from_secs(2);

    /// A listener with nothing set.
    pub fn new(name: impl Into<Arc<str>>, bind: Vec<SocketAddr>, protocol: Protocol) -> Self {
        Self {
            name: name.into(),
            bind,
            protocol,
            protocols: Vec::new(),
            silence_timeout: Self::SILENCE,
            hello_timeout: None,
            idle_timeout: None,
            accept_proxy: Vec::new(),
            access: Access::default(),
            to: None,
            connect_timeout: None,
        }
    }

    /// The protocols of routes that may get clients of this listener: with `protocols`, [`ClientProtocol::Any`] too.
    pub fn routed(&self) -> impl Iterator<Item = ClientProtocol> {
        let is_any_left = !self.protocols.is_empty() && !self.protocols.contains(&ClientProtocol::Any);
        self.speaks().iter().copied().chain(is_any_left.then_some(ClientProtocol::Any))
    }

    /// Whether a route for this protocol may get clients of this listener.
    pub fn takes(&self, protocol: ClientProtocol) -> bool {
        self.routed().any(|routed| routed == protocol)
    }

    /// The protocols that clients may speak; empty on a `tcp` listener, where it does not matter.
    pub fn speaks(&self) -> &[ClientProtocol] {
        match self.protocol {
            _ if !self.protocols.is_empty() => &self.protocols,
            Protocol::Tls => &[ClientProtocol::Tls],
            Protocol::Http => &[ClientProtocol::Http],
            Protocol::Tcp => &[],
        }
    }
}
