//! The ClientHello of a check, and the meaning of the first bytes of the answer. Pure.
//!
//! The ClientHello is complete enough for a ServerHello of TLS 1.2 or 1.3, but cannot finish a handshake: its
//! key share is random, and nobody has the secret. A check therefore costs no cryptography.

use crate::spec::HostName;

/// The longest ClientHello that [`client_hello`] pads to, in bytes on the wire.
pub const MAX_HELLO: usize = 16 * 1024;

/// The meaning of a backend's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Too few of them to tell.
    Incomplete,
    /// A ServerHello, or a `HelloRetryRequest`, which has its shape.
    ServerHello,
    /// An alert with this description (RFC 8446 §6).
    Alert(u8),
    /// Something that is no answer to a ClientHello.
    NotTls,
}

/// Reads the first bytes of a backend.
pub fn answer(received: &[u8]) -> Answer {
    const HANDSHAKE: u8 = 22;
    const ALERT: u8 = 21;
    const SERVER_HELLO: u8 = 2;
    match received {
        // Record type, version (RFC 8446 §5.1), length, then the message.
        [HANDSHAKE, 3, _, _, _, SERVER_HELLO, ..] => Answer::ServerHello,
        [ALERT, 3, _, _, _, _, description, ..] => Answer::Alert(*description),
        [] | [HANDSHAKE | ALERT] | [HANDSHAKE | ALERT, 3] => Answer::Incomplete,
        [HANDSHAKE, 3, rest @ ..] if rest.len() < 4 => Answer::Incomplete,
        [ALERT, 3, rest @ ..] if rest.len() < 5 => Answer::Incomplete,
        _ => Answer::NotTls,
    }
}

/// A ClientHello for `server_name` in one record, padded (RFC 7685) to `wire_len` bytes if it is shorter and
/// that is possible; 0 for the natural size of some 200 bytes.
pub fn client_hello(server_name: Option<&HostName>, wire_len: usize) -> Vec<u8> {
    build(server_name, wire_len, true)
}

/// A ClientHello that offers no more than TLS 1.2, in which a server's certificate is in the clear.
pub fn client_hello_tls12(server_name: Option<&HostName>) -> Vec<u8> {
    build(server_name, 0, false)
}

fn build(server_name: Option<&HostName>, wire_len: usize, tls13: bool) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    body.extend([3, 3]);
    body.extend(random());
    // A session id, as every TLS 1.3 client sends for the sake of middleboxes (RFC 8446 §D.4).
    vector8(&mut body, &random());
    vector16(&mut body, &CIPHER_SUITES.map(u16::to_be_bytes).concat());
    vector8(&mut body, &[0]);

    let mut extensions = Vec::with_capacity(160);
    if let Some(name) = server_name {
        let mut entry = vec![0];
        vector16(&mut entry, name.as_str().as_bytes());
        let mut list = Vec::new();
        vector16(&mut list, &entry);
        extension(&mut extensions, 0, &list);
    }
    extension(&mut extensions, 10, &list16(&GROUPS));
    extension(&mut extensions, 11, &[1, 0]);
    extension(&mut extensions, 13, &list16(&SIGNATURES));
    if tls13 {
        // Versions 1.3 and 1.2, and a key share.
        extension(&mut extensions, 43, &[4, 3, 4, 3, 3]);
        let mut share = X25519.to_be_bytes().to_vec();
        vector16(&mut share, &random());
        let mut shares = Vec::new();
        vector16(&mut shares, &share);
        extension(&mut extensions, 51, &shares);
    }

    let natural = FRAME + body.len() + extensions.len();
    if let Some(padding) = wire_len.min(MAX_HELLO).checked_sub(natural + EXTENSION_HEADER) {
        extension(&mut extensions, 21, &vec![0; padding]);
    }
    vector16(&mut body, &extensions);

    let mut hello = vec![22, 3, 1];
    hello.extend(length16(body.len() + 4));
    hello.extend([1, 0]);
    hello.extend(length16(body.len()));
    hello.append(&mut body);
    hello
}

/// Record header, handshake header, the length of the extensions.
const FRAME: usize = 5 + 4 + 2;
/// Type and length of an extension.
const EXTENSION_HEADER: usize = 4;
/// TLS 1.3's three, then what TLS 1.2 servers of the last ten years have.
const CIPHER_SUITES: [u16; 12] =
    [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0x009c, 0x002f];
const X25519: u16 = 0x001d;
/// x25519, secp256r1, secp384r1
const GROUPS: [u16; 3] = [X25519, 0x0017, 0x0018];
/// ECDSA and RSA-PSS with SHA-256 and up, Ed25519, RSA-PKCS1
const SIGNATURES: [u16; 9] = [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0807, 0x0806, 0x0601];

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    fastrand::fill(&mut bytes);
    bytes
}

/// Every length here is below [`MAX_HELLO`], so nothing is cut.
fn length16(len: usize) -> [u8; 2] {
    u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes()
}

fn vector8(to: &mut Vec<u8>, bytes: &[u8]) {
    to.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    to.extend(bytes);
}

fn vector16(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend(length16(bytes.len()));
    to.extend(bytes);
}

fn list16(values: &[u16]) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
    let mut list = Vec::with_capacity(bytes.len() + 2);
    vector16(&mut list, &bytes);
    list
}

fn extension(to: &mut Vec<u8>, kind: u16, bytes: &[u8]) {
    to.extend(kind.to_be_bytes());
    vector16(to, bytes);
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use rustls::server::Acceptor;

    use super::*;

    #[test]
    fn rustls_reads_the_hello() {
        let name: HostName = "cloud.example.com".parse().unwrap();
        for (name, wire_len) in
            [(Some(&name), 0), (None, 0), (Some(&name), 2400), (Some(&name), MAX_HELLO), (None, 70_000)]
        {
            let hello = client_hello(name, wire_len);
            if wire_len > 0 {
                assert_eq!(hello.len(), wire_len.min(MAX_HELLO));
            }
            let mut acceptor = Acceptor::default();
            let mut wire = Cursor::new(&hello);
            while acceptor.read_tls(&mut wire).unwrap() > 0 {}
            let accepted = acceptor.accept().unwrap_or_else(|(error, _)| panic!("{error}"));
            let accepted = accepted.expect("complete");
            assert_eq!(accepted.client_hello().server_name(), name.map(HostName::as_str));
            assert_eq!(accepted.client_hello().cipher_suites().len(), CIPHER_SUITES.len());
        }
    }

    #[test]
    fn answers_are_told_apart_on_every_prefix() {
        let server_hello = [22, 3, 3, 0, 90, 2, 0, 0, 86];
        let alert = [21, 3, 3, 0, 2, 2, 40];
        for len in 0..server_hello.len() {
            let expected = if len < 6 { Answer::Incomplete } else { Answer::ServerHello };
            assert_eq!(answer(&server_hello[..len]), expected);
        }
        for len in 0..alert.len() {
            assert_eq!(answer(&alert[..len]), Answer::Incomplete);
        }
        assert_eq!(answer(&alert), Answer::Alert(40));
        for other in [&b"HTTP/1.1 400"[..], b"SSH", &[22, 4], &[22, 3, 3, 0, 9, 1], &[23], &[0]] {
            assert_eq!(answer(other), Answer::NotTls, "{other:?}");
        }
    }
}
