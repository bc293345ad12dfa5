//! The body of a ClientHello (RFC 8446 §4.1.2, RFC 5246 §7.4.1.2): the few fields used for routing.
//!
//! Every length is checked, and the message must have no bytes left over. We must read what the backend will
//! read, so a hello that two parsers could interpret differently is refused. Fields that matter only to the
//! handshake (ciphers, keys, versions) are not judged here: that is the backend's task.

use super::ClientHello;
use crate::{
    sniff::{RawName, Rejection, cursor::Cursor},
    spec::{AlpnList, HostName},
};

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
/// RFC 9849 §5.
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// Reads the body of the message, without its four-byte header. `wire_len` is passed through.
pub(crate) fn parse(body: &[u8], wire_len: usize) -> Result<ClientHello, Rejection> {
    let mut body = Cursor::new(body);
    let legacy_version = body.u16().ok_or(Rejection::Malformed("the hello has no version"))?;
    body.take(32).ok_or(Rejection::Malformed("the hello has no random"))?;
    let session_id = body.vector8().ok_or(Rejection::Malformed("session_id is cut"))?;
    if session_id.len() > 32 {
        return Err(Rejection::Malformed("session_id is longer than 32 octets"));
    }
    let cipher_suites = body.vector16().ok_or(Rejection::Malformed("cipher_suites is cut"))?;
    if cipher_suites.is_empty() || !cipher_suites.len().is_multiple_of(2) {
        return Err(Rejection::Malformed("cipher_suites is empty or of odd length"));
    }
    let compression = body.vector8().ok_or(Rejection::Malformed("compression_methods is cut"))?;
    if compression.is_empty() {
        return Err(Rejection::Malformed("compression_methods is empty"));
    }

    let mut hello = ClientHello {
        server_name: None,
        raw_name: None,
        alpn: AlpnList::default(),
        ech: false,
        legacy_version,
        wire_len,
    };
    // Before TLS 1.3 the whole block may be missing (RFC 5246 §7.4.1.2).
    if !body.is_empty() {
        let extensions = body.vector16().ok_or(Rejection::Malformed("the extensions are cut"))?;
        if !body.is_empty() {
            return Err(Rejection::Malformed("bytes follow the extensions"));
        }
        read_extensions(extensions, &mut hello)?;
    }
    Ok(hello)
}

fn read_extensions(extensions: &[u8], hello: &mut ClientHello) -> Result<(), Rejection> {
    let mut extensions = Cursor::new(extensions);
    let mut seen = Seen::default();
    while !extensions.is_empty() {
        let (kind, data) = extensions
            .u16()
            .and_then(|kind| Some((kind, extensions.vector16()?)))
            .ok_or(Rejection::Malformed("an extension is cut"))?;
        if !seen.insert(kind) {
            return Err(Rejection::Malformed("an extension appears twice"));
        }
        match kind {
            SERVER_NAME => match server_name(data)?.map(|name| (name, HostName::parse(name))) {
                Some((_, Ok(name))) => hello.server_name = Some(name),
                // Whether a name like that means anything is the backend's to judge.
                Some((name, Err(_))) => hello.raw_name = Some(RawName::new(name)),
                None => {}
            },
            ALPN => hello.alpn = alpn(data)?,
            // The outer form begins with type 0, and so does GREASE from a client that has no keys.
            ENCRYPTED_CLIENT_HELLO => hello.ech = data.first() == Some(&0),
            _ => {}
        }
    }
    Ok(())
}

/// The host name in a `ServerNameList` (RFC 6066 §3), as it was sent.
fn server_name(data: &[u8]) -> Result<Option<&[u8]>, Rejection> {
    const HOST_NAME: u8 = 0;
    let mut outer = Cursor::new(data);
    // Only a server's answer is empty.
    let list = outer.vector16().ok_or(Rejection::Malformed("server_name is cut"))?;
    if list.is_empty() || !outer.is_empty() {
        return Err(Rejection::Malformed("server_name is empty or does not fill its extension"));
    }
    let mut list = Cursor::new(list);
    let mut host = None;
    while !list.is_empty() {
        // Names of a type that is not yet defined begin with 16 bits of length too.
        let (kind, name) = list
            .u8()
            .and_then(|kind| Some((kind, list.vector16()?)))
            .ok_or(Rejection::Malformed("a name in server_name is cut"))?;
        if kind == HOST_NAME && host.replace(name).is_some() {
            return Err(Rejection::Malformed("server_name has two host names"));
        }
    }
    Ok(host)
}

/// `ProtocolNameList` (RFC 7301 §3.1).
fn alpn(data: &[u8]) -> Result<AlpnList, Rejection> {
    let mut outer = Cursor::new(data);
    let list = outer.vector16().ok_or(Rejection::Malformed("the ALPN list is cut"))?;
    if list.is_empty() || !outer.is_empty() {
        return Err(Rejection::Malformed("the ALPN list is empty or does not fill its extension"));
    }
    AlpnList::from_wire(list).ok_or(Rejection::Malformed("the ALPN list has an empty or cut name"))
}

/// The extension types seen so far: one bit each, so that the check costs the same for every hello.
struct Seen([u64; 1024]);

impl Default for Seen {
    fn default() -> Self {
        Self([0; 1024])
    }
}

impl Seen {
    /// `false` when it was there already.
    fn insert(&mut self, kind: u16) -> bool {
        let bit = 1 << (kind % 64);
        let word = &mut self.0[usize::from(kind / 64)];
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}
