//! Bytes → the client's request. Pure: no sockets, no routes, no clocks.
//!
//! Every sniffer gives one of three answers. It is called with all bytes received so far each time more
//! arrive. The readers of a ClientHello and of a request head keep their position, so that a peer that sends
//! byte by byte costs linear time. The others start over each time, on input that is short.

#![forbid(unsafe_code)]

use crate::spec::HostNameError;

mod client_protocol;
mod cursor;
pub mod http;
pub mod postgres;
pub mod proxy_header;
mod raw_name;
pub mod tls;

pub use client_protocol::client_protocol;
pub use raw_name::{MAX_RAW_NAME, RawName};

/// A sniffer's result for the bytes received so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sniff<T> {
    /// All that is needed is there.
    Complete(T),
    /// A prefix of something acceptable: read more.
    Incomplete,
    /// No continuation of these bytes can be accepted.
    Rejected(Rejection),
}

impl<T> From<Result<Option<T>, Rejection>> for Sniff<T> {
    fn from(result: Result<Option<T>, Rejection>) -> Self {
        match result {
            Ok(Some(found)) => Self::Complete(found),
            Ok(None) => Self::Incomplete,
            Err(rejection) => Self::Rejected(rejection),
        }
    }
}

/// Why the first bytes of a client are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Rejection {
    /// An HTTP request where TLS was expected.
    #[error("an HTTP request on a TLS listener")]
    HttpOnTls,
    /// A TLS record where HTTP in clear text was expected.
    #[error("TLS on an http listener")]
    TlsOnHttp,
    /// Neither TLS nor HTTP.
    #[error("neither TLS nor HTTP")]
    UnknownProtocol,
    /// A TLS record or handshake message other than a ClientHello came first.
    #[error("a TLS message other than a ClientHello came first")]
    UnexpectedMessage,
    /// A length that does not fit, a list that is cut, a field out of its range.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// More than `limits.hello_bytes`.
    #[error("larger than limits.hello_bytes")]
    TooLarge,
    /// A ClientHello in more TLS records than any client makes of it.
    #[error("a ClientHello in too many records")]
    TooManyRecords,
    /// A request head with more fields than are taken.
    #[error("too many fields in the request head")]
    TooManyFields,
    /// The host of a request is not a host name. In SNI such a name is treated as none.
    #[error("unusable host name: {0}")]
    BadName(HostNameError),
    /// The head names two hosts.
    #[error("the request head names two hosts")]
    TwoHosts,
    /// From a source that must send a PROXY header came none, or a bad one.
    #[error("PROXY header: {0}")]
    ProxyHeader(&'static str),
    /// An HTTP/2 connection preface in clear text on an HTTP/1 listener.
    #[error("HTTP/2 in clear text")]
    Http2Preface,
    /// A PostgreSQL client that does not ask for TLS, so that it names no server.
    #[error("PostgreSQL without TLS")]
    PostgresWithoutTls,
}

impl Rejection {
    /// The reason as the metrics and the access log name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::HttpOnTls => "http_on_tls",
            Self::TlsOnHttp => "tls_on_http",
            Self::UnknownProtocol => "unknown_protocol",
            Self::UnexpectedMessage => "unexpected_message",
            Self::Malformed(_) => "malformed",
            Self::TooLarge => "hello_too_large",
            Self::TooManyRecords => "too_many_records",
            Self::TooManyFields => "too_many_fields",
            Self::BadName(_) => "bad_name",
            Self::TwoHosts => "two_hosts",
            Self::ProxyHeader(_) => "proxy_header",
            Self::Http2Preface => "http2_preface",
            Self::PostgresWithoutTls => "postgres_without_tls",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Sniff;

    /// Feeds one more byte at a time. Returns the answer and the number of bytes after which it came.
    pub(super) fn decided(sniff: impl Fn(&[u8]) -> Sniff<()>, bytes: &[u8]) -> (Sniff<()>, usize) {
        for end in 0..=bytes.len() {
            match sniff(&bytes[..end]) {
                Sniff::Incomplete => {}
                answer => return (answer, end),
            }
        }
        (Sniff::Incomplete, bytes.len())
    }
}
