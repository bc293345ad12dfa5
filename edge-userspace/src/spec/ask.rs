//! The questions of health checks, and how messages name them. `pool/check` knows how to ask them.

use super::ClientProtocol;

/// The question that a health check asks a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ask {
    /// Whether it listens.
    Connect,
    /// A ClientHello, which a ServerHello or an alert answers.
    Tls,
    /// An HTTP/1.1 request, which any response answers.
    Http,
    /// For its SSH identification.
    Ssh,
    /// Whether it speaks TLS, as PostgreSQL's clients ask; yes and no both answer it.
    Postgres,
}

impl Ask {
    /// The check that suits clients of this protocol.
    pub fn of(spoken: ClientProtocol) -> Self {
        match spoken {
            ClientProtocol::Tls => Self::Tls,
            ClientProtocol::Http => Self::Http,
            ClientProtocol::Ssh => Self::Ssh,
            ClientProtocol::Postgres => Self::Postgres,
            // A server of OpenVPN keeps silent until a packet carries the right key.
            ClientProtocol::Openvpn | ClientProtocol::Any => Self::Connect,
        }
    }

    /// The question, in the words of an error.
    pub fn asked(self) -> &'static str {
        match self {
            Self::Connect => "the connection",
            Self::Tls => "the ClientHello",
            Self::Http => "the HTTP request",
            Self::Ssh => "the SSH identification",
            Self::Postgres => "PostgreSQL's SSLRequest",
        }
    }

    /// The protocol of the answer.
    pub fn protocol(self) -> &'static str {
        match self {
            Self::Connect => "TCP",
            Self::Tls => "TLS",
            Self::Http => "HTTP",
            Self::Ssh => "SSH",
            Self::Postgres => "PostgreSQL",
        }
    }
}
