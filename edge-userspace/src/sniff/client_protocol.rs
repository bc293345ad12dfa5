//! The protocol of a client, recognised by its first bytes, on listeners that accept several.
//!
//! Each protocol answers yes, no or not yet to the bytes so far; no two answer yes to the same bytes. A
//! client is refused as soon as all have answered no.

use super::{Rejection, Sniff, http, postgres, tls};
use crate::spec::ClientProtocol;

/// Which protocol of `among` the bytes begin. If TLS and HTTP are both among them, each recognises the other.
pub fn client_protocol(received: &[u8], among: &[ClientProtocol]) -> Sniff<ClientProtocol> {
    let mut refused = Rejection::UnknownProtocol;
    let mut may_become = false;
    for &protocol in among {
        match begins(protocol, received) {
            Sniff::Complete(()) => return Sniff::Complete(protocol),
            Sniff::Incomplete => may_become = true,
            Sniff::Rejected(Rejection::UnknownProtocol) => {}
            Sniff::Rejected(rejection) => refused = rejection,
        }
    }
    if may_become { Sniff::Incomplete } else { Sniff::Rejected(refused) }
}

/// Whether the bytes begin as this protocol does.
fn begins(protocol: ClientProtocol, received: &[u8]) -> Sniff<()> {
    match protocol {
        ClientProtocol::Tls => tls::opening(received),
        ClientProtocol::Http => http(received),
        ClientProtocol::Ssh => ssh(received),
        ClientProtocol::Openvpn => openvpn(received),
        ClientProtocol::Postgres => postgres::begins(received),
        // The only protocol left when all others have answered no.
        ClientProtocol::Any => Sniff::Rejected(Rejection::UnknownProtocol),
    }
}

/// A request. TLS is recognised too, so that its client gets an answer that it understands.
fn http(received: &[u8]) -> Sniff<()> {
    match received {
        [22] => Sniff::Incomplete,
        [22, 3, ..] => Sniff::Rejected(Rejection::TlsOnHttp),
        _ => http::opening(received),
    }
}

fn ssh(received: &[u8]) -> Sniff<()> {
    const BEGINNING: &[u8] = b"SSH-";
    if received.starts_with(BEGINNING) {
        Sniff::Complete(())
    } else if BEGINNING.starts_with(received) {
        Sniff::Incomplete
    } else {
        Sniff::Rejected(Rejection::UnknownProtocol)
    }
}

/// A packet's length, then its opcode and key id: `P_CONTROL_HARD_RESET_CLIENT_V2` (7) or `V3` (10), key 0
/// (OpenVPN's `ssl_pkt.h`). The bytes behind these are encrypted with `tls-crypt`, so they are not used.
fn openvpn(received: &[u8]) -> Sniff<()> {
    /// Opcode, session id, an empty list of acknowledgements, packet id.
    const SHORTEST: u16 = 14;
    /// More than a reset with the wrapped key of `tls-crypt-v2` has.
    const LONGEST: u16 = 2048;
    const RESET_V2: u8 = 7 << 3;
    const RESET_V3: u8 = 10 << 3;
    let is_first = |high: u8| high <= LONGEST.to_be_bytes()[0];
    let is_length = |high, low| (SHORTEST..=LONGEST).contains(&u16::from_be_bytes([high, low]));
    match *received {
        [high, low, RESET_V2 | RESET_V3, ..] if is_length(high, low) => Sniff::Complete(()),
        [] => Sniff::Incomplete,
        [high] if is_first(high) => Sniff::Incomplete,
        [high, low] if is_length(high, low) => Sniff::Incomplete,
        _ => Sniff::Rejected(Rejection::UnknownProtocol),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [ClientProtocol; 5] = [
        ClientProtocol::Tls,
        ClientProtocol::Http,
        ClientProtocol::Ssh,
        ClientProtocol::Openvpn,
        ClientProtocol::Postgres,
    ];
    /// The first packets of an OpenVPN 2.6 client: plain, with `tls-auth`, and (as far as it is in clear text) with
    /// `tls-crypt`.
    const OPENVPN: &[u8] = b"\0\x0e\x38\x1e\x5c\xf1\xf5\xc9\x35\x7c\xcd\0\0\0\0\0";
    const OPENVPN_AUTH: &[u8] = b"\0\x2a\x38\x72\xe9\x0d\x29\x29\x4b\xcb\xf4";
    const OPENVPN_CRYPT: &[u8] = b"\0\x36\x38\xd1\x0b\xc9\x32\x25\x16\x20\xdd";

    /// The answer, and after how many bytes it came.
    fn decided(bytes: &[u8], among: &[ClientProtocol]) -> (Sniff<ClientProtocol>, usize) {
        for end in 0..=bytes.len() {
            match client_protocol(&bytes[..end], among) {
                Sniff::Incomplete => {}
                answer => return (answer, end),
            }
        }
        (Sniff::Incomplete, bytes.len())
    }

    #[test]
    fn each_is_told_as_early_as_it_can_be() {
        for (bytes, protocol, at) in [
            (&b"\x16\x03\x01\x02\0\x01"[..], ClientProtocol::Tls, 2),
            (b"GET / HTTP/1.1\r\n", ClientProtocol::Http, 5),
            (b"MKCALENDAR / HTTP/1.1\r\n", ClientProtocol::Http, 12),
            (b"\r\nGET / HTTP/1.1\r\n", ClientProtocol::Http, 7),
            (b"SSH-2.0-OpenSSH_9.2\r\n", ClientProtocol::Ssh, 4),
            (OPENVPN, ClientProtocol::Openvpn, 3),
            (OPENVPN_AUTH, ClientProtocol::Openvpn, 3),
            (OPENVPN_CRYPT, ClientProtocol::Openvpn, 3),
            (b"\x01\x5e\x50\x5d\x1f", ClientProtocol::Openvpn, 3),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", ClientProtocol::Postgres, 8),
            (b"\0\0\0\x08\x04\xd2\x16\x30", ClientProtocol::Postgres, 8),
            (b"\0\0\0\x54\0\x03\0\0user\0", ClientProtocol::Postgres, 6),
        ] {
            assert_eq!(decided(bytes, &ALL), (Sniff::Complete(protocol), at), "{}", bytes.escape_ascii());
            let others = ALL.into_iter().filter(|other| *other != protocol).collect::<Vec<_>>();
            assert!(matches!(decided(bytes, &others).0, Sniff::Rejected(_)), "{protocol:?} is like another");
        }
    }

    #[test]
    fn what_none_knows_is_refused_at_once() {
        use Rejection::*;
        for (bytes, among, rejection, at) in [
            (&b"EHLO mail.example\r\n"[..], &ALL[..], UnknownProtocol, 18),
            (b"SSLX\r\n", &ALL, UnknownProtocol, 5),
            (b"SSH-2.0-x", &[ClientProtocol::Tls, ClientProtocol::Http], UnknownProtocol, 4),
            (b"GET / HTTP/1.1\r\n", &[ClientProtocol::Tls, ClientProtocol::Ssh], HttpOnTls, 5),
            (b"PRI * HTTP/2.0\r\n", &[ClientProtocol::Tls, ClientProtocol::Ssh], Http2Preface, 14),
            (b"\x16\x03\x01", &[ClientProtocol::Ssh, ClientProtocol::Http], TlsOnHttp, 2),
            (b"GET / HTTP/1.1\r\n", &[ClientProtocol::Ssh], UnknownProtocol, 1),
            (b"\x15\x03\x01", &ALL, UnexpectedMessage, 2),
            (b"\0\x0d\x38", &ALL, UnknownProtocol, 2),
            (b"\0\x0e\x20", &ALL, UnknownProtocol, 3),
            (b"\x08\x01\x38", &ALL, UnknownProtocol, 2),
        ] {
            assert_eq!(decided(bytes, among), (Sniff::Rejected(rejection), at), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn no_byte_says_nothing() {
        assert_eq!(client_protocol(b"", &ALL), Sniff::Incomplete);
    }
}
