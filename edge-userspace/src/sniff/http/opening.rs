//! The beginning of an HTTP/1 request, on a listener that other protocols may use too: a method, a space, a
//! target (RFC 9112 §3).
//!
//! Any token is a method. The target distinguishes a request from the commands of line protocols
//! (`EHLO mail.example`, `USER me`): it begins with `/`, `*` or a scheme and `://`, or follows `CONNECT`.

use super::is_token_byte;
use crate::sniff::{Rejection, Sniff};

/// The longest method that is waited for, in bytes: twice the longest of IANA's registry and some.
const MAX_METHOD: usize = 64;
/// The longest scheme that is waited for, in bytes.
const MAX_SCHEME: usize = 32;
/// Empty lines before the request that are passed over (RFC 9112 §2.2 expects one).
const MAX_EMPTY_LINES: usize = 4;
/// SSH's identification string (RFC 4253 §4.2) is a token, up to its comment.
const SSH: &[u8] = b"SSH-";

/// The most bytes for which the answer is [`Sniff::Incomplete`].
pub const MAX_OPENING: usize = 2 * MAX_EMPTY_LINES + MAX_METHOD + 1 + MAX_SCHEME + 2;

/// Whether the bytes begin a request.
pub(in crate::sniff) fn opening(received: &[u8]) -> Sniff<()> {
    const REJECTED: Sniff<()> = Sniff::Rejected(Rejection::UnknownProtocol);
    let mut line = received;
    let mut empty_lines = 0;
    while let Some(rest) = line.strip_prefix(b"\r\n").or_else(|| line.strip_prefix(b"\n")) {
        empty_lines += 1;
        line = rest;
        if empty_lines > MAX_EMPTY_LINES {
            return REJECTED;
        }
    }
    if matches!(line, b"" | b"\r") {
        return Sniff::Incomplete;
    }
    let end = line.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(line.len());
    let (method, rest) = line.split_at(end);
    if method.is_empty() || method.len() > MAX_METHOD || method.starts_with(SSH) {
        return REJECTED;
    }
    match *rest {
        [] | [b' '] => Sniff::Incomplete,
        [b' ', b'/' | b'*', ..] => Sniff::Complete(()),
        [b' ', first, ..] if method == b"CONNECT" && first.is_ascii_graphic() => Sniff::Complete(()),
        [b' ', ref target @ ..] => absolute(target),
        _ => REJECTED,
    }
}

/// `scheme "://"` (RFC 3986 §3).
fn absolute(target: &[u8]) -> Sniff<()> {
    let is_scheme_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let end = target.iter().position(|byte| !is_scheme_byte(byte)).unwrap_or(target.len());
    let (scheme, rest) = target.split_at(end);
    let is_scheme = scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.len() <= MAX_SCHEME;
    if is_scheme && rest.starts_with(b"://") {
        Sniff::Complete(())
    } else if is_scheme && b"://".starts_with(rest) {
        Sniff::Incomplete
    } else {
        Sniff::Rejected(Rejection::UnknownProtocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decided(bytes: &[u8]) -> (Sniff<()>, usize) {
        crate::sniff::tests::decided(opening, bytes)
    }

    #[test]
    fn a_request_is_any_token_and_a_target() {
        for (bytes, at) in [
            (&b"GET / HTTP/1.1\r\n"[..], 5),
            (b"MKCALENDAR /c HTTP/1.1\r\n", 12),
            (b"ACL /c HTTP/1.1\r\n", 5),
            (b"get /c HTTP/1.1\r\n", 5),
            (b"M-SEARCH * HTTP/1.1\r\n", 10),
            (b"SOURCE /radio.ogg ICE/1.0\r\n", 8),
            (b"DESCRIBE rtsp://cam.example/1 RTSP/1.0\r\n", 16),
            (b"CONNECT a.example:443 HTTP/1.1\r\n", 9),
            (b"\r\nGET / HTTP/1.1\r\n", 7),
            (b"\n\r\n\nGET / HTTP/1.1\r\n", 9),
            (b"PRI * HTTP/2.0\r\n", 5),
        ] {
            assert_eq!(decided(bytes), (Sniff::Complete(()), at), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn commands_of_other_protocols_are_none() {
        for (bytes, at) in [
            (&b"SSH-2.0-OpenSSH_9.2 Debian\r\n"[..], 4),
            (b"EHLO mail.example\r\n", 18),
            (b"USER me\r\n", 8),
            (b"QUIT\r\n", 5),
            (b"*1\r\n$4\r\nPING\r\n", 3),
            (b"a1 LOGIN me\r\n", 9),
            (b"GET  / HTTP/1.1\r\n", 5),
            (b" GET /", 1),
            (b"\rGET /", 2),
            (b"\r\n\r\n\0\r\nQUIT\n", 5),
            (b"\x16\x03\x01", 1),
            (b"\0\0\0\x08", 1),
        ] {
            let rejected = Sniff::Rejected(Rejection::UnknownProtocol);
            assert_eq!(decided(bytes), (rejected, at), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn nothing_is_waited_for_without_end() {
        let token = [b'A'; 200];
        let target = [&b"GET "[..], &token].concat();
        let longest =
            [&[b'\n'; MAX_EMPTY_LINES][..], &[b'A'; MAX_METHOD], b" ", &[b'a'; MAX_SCHEME], b":/"].concat();
        assert_eq!(opening(&longest), Sniff::Incomplete);
        for bytes in [&token[..], &target, &b"\r\n".repeat(100), &b"\n".repeat(100)] {
            assert_ne!(opening(bytes), Sniff::Incomplete, "{}", bytes.escape_ascii());
            assert!(decided(bytes).1 <= MAX_OPENING + 1);
        }
    }
}
