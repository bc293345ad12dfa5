//! The first message of a PostgreSQL client (chapter "Frontend/Backend Protocol" of its manual). It has a
//! length and a code, which requests encryption or starts a session in clear text.
//!
//! A client that requests TLS waits for one byte of answer, then sends a ClientHello, which names the server.
//! A client that begins with the ClientHello (`sslnegotiation=direct`, since PostgreSQL 17) speaks plain TLS
//! with the ALPN `postgresql`, and does not use this module.

use std::cmp::Ordering;

use super::{Rejection, Sniff};

/// The message by which TLS is asked for.
pub const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
/// The answer to it: go on with a ClientHello.
pub const YES: u8 = b'S';
/// The answer to a request for what is not spoken; the client may ask for something else.
pub const NO: u8 = b'N';
/// The answer to a session without TLS: an `ErrorResponse`. Such a session names no host to route by.
pub const TLS_REQUIRED: &[u8] = b"E\0\0\0\x5cSFATAL\0VFATAL\0C28000\0\
    Mthis server is reached by TLS only: connect with sslmode=require\0\0";

/// The message by which encryption by GSSAPI is asked for.
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
/// The code of a `CancelRequest`, behind its length.
const CANCEL: [u8; 4] = [0x04, 0xd2, 0x16, 0x2e];
/// The length of the message, including the length field: the number of a session and a secret of 4 bytes, up
/// to 256 since protocol 3.2.
const CANCEL_LENGTH: std::ops::RangeInclusive<u32> = 16..=268;
/// The major version of the protocol, where a session begins.
const MAJOR: [u8; 2] = [0, 3];
/// The longest message that begins a session (`MAX_STARTUP_PACKET_LENGTH` of the server).
const LONGEST: u32 = 10000;

/// The request in the first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TLS.
    Tls,
    /// Encryption by GSSAPI.
    Gss,
    /// That a running session breaks off what it does. It is all that such a client says.
    Cancel,
}

/// Reads the first message. Nothing may follow it: it is not encrypted, and could be anybody's.
pub fn request(received: &[u8]) -> Sniff<Request> {
    for (message, request) in [(SSL_REQUEST, Request::Tls), (GSSENC_REQUEST, Request::Gss)] {
        if received == message {
            return Sniff::Complete(request);
        }
        if message.starts_with(received) {
            return Sniff::Incomplete;
        }
        if received.starts_with(&message) {
            return Sniff::Rejected(Rejection::Malformed("bytes behind a request for encryption"));
        }
    }
    if let Some(length) = cancel_length(received) {
        return match received.len().cmp(&length) {
            Ordering::Less => Sniff::Incomplete,
            Ordering::Equal => Sniff::Complete(Request::Cancel),
            Ordering::Greater => Sniff::Rejected(Rejection::Malformed("bytes behind a CancelRequest")),
        };
    }
    if may_be_cancel(received) {
        return Sniff::Incomplete;
    }
    Sniff::Rejected(Rejection::PostgresWithoutTls)
}

/// The length of the `CancelRequest` that these bytes begin.
fn cancel_length(received: &[u8]) -> Option<usize> {
    let (length, rest) = received.split_first_chunk()?;
    let length = u32::from_be_bytes(*length);
    (CANCEL_LENGTH.contains(&length) && rest.starts_with(&CANCEL)).then_some(length as usize)
}

/// Whether the bytes may become a `CancelRequest`.
fn may_be_cancel(received: &[u8]) -> bool {
    match received.split_first_chunk() {
        Some((length, code)) => {
            CANCEL_LENGTH.contains(&u32::from_be_bytes(*length)) && CANCEL.starts_with(code)
        }
        None => CANCEL_LENGTH.end().to_be_bytes().iter().zip(received).all(|(most, byte)| byte <= most),
    }
}

/// Whether the bytes begin a first message: one of the requests, or a session of protocol 3.
pub(super) fn begins(received: &[u8]) -> Sniff<()> {
    if matches!(request(received), Sniff::Complete(_) | Sniff::Rejected(Rejection::Malformed(_))) {
        return Sniff::Complete(());
    }
    if cancel_length(received).is_some() {
        return Sniff::Complete(());
    }
    let session = match *received {
        [a, b, c, d, ref code @ ..] => {
            let is_length = (9..=LONGEST).contains(&u32::from_be_bytes([a, b, c, d]));
            if is_length && code.starts_with(&MAJOR) {
                return Sniff::Complete(());
            }
            is_length && MAJOR.starts_with(code)
        }
        _ => LONGEST.to_be_bytes().iter().zip(received).all(|(most, byte)| byte <= most),
    };
    let asks =
        SSL_REQUEST.starts_with(received) || GSSENC_REQUEST.starts_with(received) || may_be_cancel(received);
    if session || asks { Sniff::Incomplete } else { Sniff::Rejected(Rejection::UnknownProtocol) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_for_encryption_are_told_apart() {
        for end in 0..8 {
            assert_eq!(request(&SSL_REQUEST[..end]), Sniff::Incomplete);
        }
        assert_eq!(request(&SSL_REQUEST), Sniff::Complete(Request::Tls));
        assert_eq!(request(&GSSENC_REQUEST), Sniff::Complete(Request::Gss));
        let session = b"\0\0\0\x09\0\x03\0\0\0";
        assert_eq!(request(session), Sniff::Rejected(Rejection::PostgresWithoutTls));
    }

    /// With a secret of 4 bytes, and with one of 32 as PostgreSQL 18 has it.
    #[test]
    fn cancel_requests_are_complete_at_their_length() {
        for secret in [4, 32, 256] {
            let length = u32::try_from(12 + secret).unwrap().to_be_bytes();
            let cancel = [&length[..], &CANCEL, &[0, 0, 0, 1], &vec![7; secret]].concat();
            for end in 0..cancel.len() {
                assert_eq!(request(&cancel[..end]), Sniff::Incomplete, "{end}");
            }
            assert_eq!(request(&cancel), Sniff::Complete(Request::Cancel));
            assert_eq!(
                (begins(&cancel[..7]), begins(&cancel[..8])),
                (Sniff::Incomplete, Sniff::Complete(()))
            );
            let followed = [&cancel[..], b"x"].concat();
            assert!(matches!(request(&followed), Sniff::Rejected(Rejection::Malformed(_))));
        }
        for length in [8_u32, 15, 269, 10_000] {
            let other = [&length.to_be_bytes()[..], &CANCEL, &[0; 300]].concat();
            assert_eq!(request(&other), Sniff::Rejected(Rejection::PostgresWithoutTls), "{length}");
        }
    }

    /// A server that read on from the same buffer once believed such bytes (CVE-2021-23214).
    #[test]
    fn nothing_may_follow_in_clear_text() {
        let followed = [&SSL_REQUEST[..], b"\x16"].concat();
        assert!(matches!(request(&followed), Sniff::Rejected(Rejection::Malformed(_))));
        assert_eq!(begins(&followed), Sniff::Complete(()));
    }

    #[test]
    fn sessions_are_known_by_length_and_version() {
        assert_eq!(begins(b"\0\0\x27\x10\0\x03"), Sniff::Complete(()));
        for (bytes, answer) in [
            (&b"\0\0\x27"[..], Sniff::Incomplete),
            (b"\0\0\0\x09\0", Sniff::Incomplete),
            (b"\0\0\x27\x11", Sniff::Rejected(Rejection::UnknownProtocol)),
            (b"\0\x01", Sniff::Rejected(Rejection::UnknownProtocol)),
            (b"\0\0\0\x09\0\x02", Sniff::Rejected(Rejection::UnknownProtocol)),
        ] {
            assert_eq!(begins(bytes), answer, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn the_error_is_as_long_as_it_says() {
        let length = u32::from_be_bytes([TLS_REQUIRED[1], TLS_REQUIRED[2], TLS_REQUIRED[3], TLS_REQUIRED[4]]);
        assert_eq!(length as usize, TLS_REQUIRED.len() - 1);
    }
}
