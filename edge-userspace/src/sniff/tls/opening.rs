//! The first bytes on a tls listener: TLS, or another protocol that reaches port 443.
//!
//! It decides as soon as the bytes allow, so that a waiting client gets an answer instead of a timeout.

use crate::sniff::{Rejection, Sniff, http};

const HANDSHAKE: u8 = 22;
/// `change_cipher_spec`, `alert`, `application_data` and `heartbeat`: TLS, but no way to begin.
const OTHER_CONTENT: [u8; 4] = [20, 21, 23, 24];
/// The major version of SSL 3.0 and all of TLS.
pub(super) const MAJOR: u8 = 3;

/// Whether the bytes begin a handshake record or an SSLv2 hello; otherwise what they are.
pub(in crate::sniff) fn opening(received: &[u8]) -> Sniff<()> {
    match *received {
        [] => Sniff::Incomplete,
        [HANDSHAKE, MAJOR, ..] => Sniff::Complete(()),
        [content, MAJOR, ..] if OTHER_CONTENT.contains(&content) => {
            Sniff::Rejected(Rejection::UnexpectedMessage)
        }
        [content] if content == HANDSHAKE || OTHER_CONTENT.contains(&content) => Sniff::Incomplete,
        [0x80..=0xff, ..] => sslv2(received),
        _ => http(received),
    }
}

/// `msg_length` with its top bit set, `msg_type` 1, then the version: SSL 2.0, or 3.x in a compatible hello
/// (RFC 5246 appendix E.2).
fn sslv2(received: &[u8]) -> Sniff<()> {
    match received {
        [_] | [_, _] | [_, _, 1] | [_, _, 1, 0 | MAJOR] => Sniff::Incomplete,
        [_, _, 1, 0, 2, ..] | [_, _, 1, MAJOR, _, ..] => Sniff::Complete(()),
        _ => Sniff::Rejected(Rejection::UnknownProtocol),
    }
}

/// A request in clear text, or the connection preface of HTTP/2.
fn http(received: &[u8]) -> Sniff<()> {
    if received.starts_with(http::HTTP2_PREFACE) {
        return Sniff::Rejected(Rejection::Http2Preface);
    }
    if http::HTTP2_PREFACE.starts_with(received) {
        return Sniff::Incomplete;
    }
    match http::opening(received) {
        Sniff::Complete(()) => Sniff::Rejected(Rejection::HttpOnTls),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(bytes: &[u8]) -> (Sniff<()>, usize) {
        crate::sniff::tests::decided(opening, bytes)
    }

    #[test]
    fn each_protocol_is_told_as_early_as_it_can_be() {
        use Rejection::*;
        for (bytes, rejection, at) in [
            (&b"GET / HTTP/1.1\r\n"[..], HttpOnTls, 5),
            (b"PROPFIND /dav HTTP/1.1\r\n", HttpOnTls, 10),
            (b"get /x HTTP/1.1\r\n", HttpOnTls, 5),
            (b"\r\nGET / HTTP/1.1\r\n", HttpOnTls, 7),
            (b"CONNECT a.example:443 HTTP/1.1\r\n", HttpOnTls, 9),
            (b"PRI * HTTP/2.0\r\n", Http2Preface, 14),
            (b"PRI * HTTP/1.1\r\n", HttpOnTls, 12),
            (b"SSH-2.0-OpenSSH_9.2\r\n", UnknownProtocol, 4),
            (b"EHLO mail.example\r\n", UnknownProtocol, 18),
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", UnknownProtocol, 1),
            (b"\x15\x03\x01\x00\x02\x01\x00", UnexpectedMessage, 2),
            (b"\x14\x03\x03\x00\x01\x01", UnexpectedMessage, 2),
            (b"\x17\x03\x03\x00\x10", UnexpectedMessage, 2),
            (b"\x16\x02\x00", UnknownProtocol, 2),
            (b"\x15\x05", UnknownProtocol, 2),
            (b"\x80\x2e\x04", UnknownProtocol, 3),
            (b"\x80\x2e\x01\x00\x03", UnknownProtocol, 5),
        ] {
            assert_eq!(decided(bytes), (Sniff::Rejected(rejection), at), "{}", bytes.escape_ascii());
        }
        assert_eq!(decided(b"\x16\x03\x01"), (Sniff::Complete(()), 2));
        assert_eq!(decided(b"\x80\x2e\x01\x03\x01\x00\x15"), (Sniff::Complete(()), 5));
        assert_eq!(decided(b"\x80\x2e\x01\x00\x02\x00\x15"), (Sniff::Complete(()), 5));
    }
}
