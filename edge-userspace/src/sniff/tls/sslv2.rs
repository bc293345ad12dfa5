//! A ClientHello in the format of SSL 2.0, with which old clients offer SSL 3.0 and TLS too (RFC 6101
//! appendix E, RFC 5246 appendix E.2). It has no extensions, so such a client names no host and offers no
//! ALPN.

use super::ClientHello;
use crate::{
    sniff::{Rejection, cursor::Cursor},
    spec::AlpnList,
};

/// The length, in two octets whose top bit is set.
const HEADER: usize = 2;
/// `msg_type`, version, and the lengths of the three lists.
const FIXED: usize = 9;

/// Parses the hello; `None` if it is incomplete. `max_message` is the largest accepted size, in bytes.
///
/// Call it for bytes that [`opening`](super::opening) recognises as such a hello.
pub(super) fn read(received: &[u8], max_message: usize) -> Result<Option<ClientHello>, Rejection> {
    let Some((&[high, low], message)) = received.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high & 0x7f, low]));
    if length > max_message {
        return Err(Rejection::TooLarge);
    }
    let mut fixed = Cursor::new(message);
    let fields = (fixed.u8(), fixed.u16(), fixed.u16(), fixed.u16(), fixed.u16());
    let (_, Some(version), Some(ciphers), Some(session_id), Some(challenge)) = fields else {
        return if length < FIXED { Err(Rejection::Malformed("an SSLv2 hello is cut")) } else { Ok(None) };
    };
    if ciphers == 0 || ciphers % 3 != 0 {
        return Err(Rejection::Malformed("the cipher_specs of an SSLv2 hello are empty or cut"));
    }
    if session_id > 32 || !(16..=32).contains(&challenge) {
        return Err(Rejection::Malformed("session_id or challenge of an SSLv2 hello is out of its range"));
    }
    if [ciphers, session_id, challenge].map(usize::from).iter().sum::<usize>() + FIXED != length {
        return Err(Rejection::Malformed("an SSLv2 hello does not fill its record"));
    }
    if message.len() < length {
        return Ok(None);
    }
    Ok(Some(ClientHello {
        server_name: None,
        raw_name: None,
        alpn: AlpnList::default(),
        ech: false,
        legacy_version: version,
        wire_len: HEADER + length,
    }))
}

#[cfg(test)]
mod tests {
    use crate::sniff::{
        Rejection, Sniff,
        tls::{ClientHelloReader, client_hello},
    };

    const MAX: usize = 16384;

    /// A hello with seven ciphers that asks for this version.
    fn hello(version: [u8; 2]) -> Vec<u8> {
        let fixed = [&[0x80, 9 + 21 + 16, 1][..], &version, &[0, 21, 0, 0, 0, 16]].concat();
        [&fixed[..], &[5; 21], &[7; 16]].concat()
    }

    #[test]
    fn it_is_complete_at_its_last_byte_and_names_nothing() {
        for version in [[3, 0], [3, 1], [3, 3], [0, 2]] {
            let wire = hello(version);
            let mut reader = ClientHelloReader::new(MAX);
            for end in 0..wire.len() {
                assert_eq!(reader.read(&wire[..end]), Sniff::Incomplete);
                assert_eq!(client_hello(&wire[..end], MAX), Sniff::Incomplete);
            }
            let Sniff::Complete(found) = reader.read(&[&wire[..], b"more"].concat()) else { panic!() };
            assert_eq!((found.wire_len, found.legacy_version), (wire.len(), u16::from_be_bytes(version)));
            assert!(found.server_name.is_none() && found.alpn.is_empty());
        }
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        for (at, value) in [(1, 8), (1, 47), (6, 0), (6, 20), (8, 33), (8, 16), (10, 15), (10, 33), (10, 17)]
        {
            let mut wire = hello([3, 1]);
            wire[at] = value;
            let answer = client_hello(&wire, MAX);
            assert!(matches!(answer, Sniff::Rejected(Rejection::Malformed(_))), "{at} {value}: {answer:?}");
        }
        assert_eq!(client_hello(&hello([3, 1]), 45), Sniff::Rejected(Rejection::TooLarge));
    }
}
