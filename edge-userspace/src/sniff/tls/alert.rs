//! The alerts with which a TLS client is refused (RFC 8446 §6), as bytes for the wire.
//!
//! They are in clear text, because the edge takes no part in a handshake. Any server sends them so before its
//! ServerHello.

use crate::sniff::Rejection;

/// The descriptions that the edge uses, with their numbers in the TLS Alerts registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AlertDescription {
    /// Another message than a ClientHello came first.
    UnexpectedMessage = 10,
    /// TLS where the listener speaks something else.
    HandshakeFailure = 40,
    /// A field that is out of the range we take.
    IllegalParameter = 47,
    /// The hello cannot be decoded.
    DecodeError = 50,
    /// No backend can be reached, or another fault of ours.
    InternalError = 80,
    /// No route for the name (RFC 6066 §3).
    UnrecognizedName = 112,
}

impl AlertDescription {
    /// Its name in the registry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnexpectedMessage => "unexpected_message",
            Self::HandshakeFailure => "handshake_failure",
            Self::IllegalParameter => "illegal_parameter",
            Self::DecodeError => "decode_error",
            Self::InternalError => "internal_error",
            Self::UnrecognizedName => "unrecognized_name",
        }
    }
}

/// The record version of an alert if the hello does not determine it: TLS 1.2, as in every record of TLS 1.3.
const DEFAULT_VERSION: u16 = 0x0303;

/// A fatal alert as one complete record.
///
/// `legacy_version` is the hello's, or 0. The record uses it if it is one of SSL 3.0–TLS 1.2, the only
/// versions in a record header (RFC 8446 §5.1), otherwise TLS 1.2.
pub fn fatal(description: AlertDescription, legacy_version: u16) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    let version = match legacy_version {
        0x0300..=0x0303 => legacy_version,
        _ => DEFAULT_VERSION,
    };
    let [major, minor] = version.to_be_bytes();
    [ALERT, major, minor, 0, 2, FATAL, description as u8]
}

/// The version for an alert to a client whose hello could not be parsed: that of its first record, which
/// every client accepts in return; 0 if these bytes are not such a record.
pub fn version_of(received: &[u8]) -> u16 {
    match *received {
        // Some clients of TLS 1.0 to 1.2 begin with a record of version 3.0 (RFC 5246 appendix E.1).
        [22, 3, minor @ 1..=3, ..] => u16::from_be_bytes([3, minor]),
        _ => 0,
    }
}

impl Rejection {
    /// The alert that explains to a TLS client why it is refused; `None` if the peer does not speak TLS.
    ///
    /// For TLS clients this answer is the first choice, then [`Rejection::http_answer`], then a reset.
    pub fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Malformed(_) => Some(AlertDescription::DecodeError),
            Self::UnexpectedMessage => Some(AlertDescription::UnexpectedMessage),
            // The alert that OpenSSL sends for a message above its limit.
            Self::TooLarge | Self::TooManyRecords => Some(AlertDescription::IllegalParameter),
            Self::TlsOnHttp => Some(AlertDescription::HandshakeFailure),
            Self::HttpOnTls
            | Self::BadName(_)
            | Self::TooManyFields
            | Self::UnknownProtocol
            | Self::TwoHosts
            | Self::Http2Preface
            | Self::PostgresWithoutTls
            | Self::ProxyHeader(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_is_one_record_with_a_version_that_records_have() {
        assert_eq!(fatal(AlertDescription::UnrecognizedName, 0x0303), [21, 3, 3, 0, 2, 2, 112]);
        assert_eq!(fatal(AlertDescription::InternalError, 0x0301), [21, 3, 1, 0, 2, 2, 80]);
        assert_eq!(fatal(AlertDescription::DecodeError, 0x0304), [21, 3, 3, 0, 2, 2, 50]);
        assert_eq!(fatal(AlertDescription::DecodeError, 0x0300), [21, 3, 0, 0, 2, 2, 50]);
        assert_eq!(fatal(AlertDescription::DecodeError, 0x0002), [21, 3, 3, 0, 2, 2, 50]);
        assert_eq!(fatal(AlertDescription::DecodeError, 0), [21, 3, 3, 0, 2, 2, 50]);
        for (received, version) in [
            (&b"\x16\x03\x01\0\x05"[..], 0x0301),
            (b"\x16\x03\x03", 0x0303),
            (b"\x16\x03\x00", 0),
            (b"\x16\x03\x04", 0),
            (b"GET", 0),
            (b"", 0),
        ] {
            assert_eq!(version_of(received), version, "{}", received.escape_ascii());
        }
    }

    #[test]
    fn who_does_not_speak_tls_gets_no_alert() {
        assert_eq!(Rejection::HttpOnTls.alert(), None);
        assert_eq!(Rejection::UnknownProtocol.alert(), None);
        assert_eq!(Rejection::Malformed("x").alert(), Some(AlertDescription::DecodeError));
    }
}
