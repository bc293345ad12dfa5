//! The PROXY header at the start of a connection from a trusted proxy (versions 1 and 2).
//!
//! The caller knows whether a header is expected: it is required from the sources of `accept_proxy`, and data
//! from any other (§5 of the specification). Nothing is guessed here: bytes that cannot be a header are
//! refused at once.
//!
//! This reader keeps no position: a version 1 header is at most 107 bytes, and a version 2 header is read
//! beyond its fixed part only when it is complete.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use crate::proxy_protocol::ProxySource;
use crate::proxy_protocol::{
    LOCAL, PROXY, SIGNATURE, TCP4, TCP6, UDP4, UDP6, UNIX_DATAGRAM, UNIX_STREAM, UNSPECIFIED, V1_MAX,
    V2_FIXED, V2_MAX, tlv,
};

use super::{Rejection, Sniff, cursor::Cursor};

/// The contents of a header, and its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Whose connection it is.
    pub source: ProxySource,
    /// The bytes of the header; the client's begin behind it.
    pub len: usize,
    /// The TLVs as they came, each of them whole; [`tlv::iter`] walks them.
    pub tlvs: Box<[u8]>,
}

/// Reads the header from all bytes received since the connection's first.
pub fn proxy_header(received: &[u8]) -> Sniff<ProxyHeader> {
    const V1_PREFIX: &[u8] = b"PROXY ";
    if begins(received, &SIGNATURE) {
        v2(received).into()
    } else if begins(received, V1_PREFIX) {
        v1(received).into()
    } else {
        Sniff::Rejected(Rejection::ProxyHeader("there is none"))
    }
}

/// Whether the bytes begin with `prefix`, as far as they go.
fn begins(received: &[u8], prefix: &[u8]) -> bool {
    received.iter().zip(prefix).all(|(byte, expected)| byte == expected)
}

/// `PROXY` SP family SP source SP destination SP port SP port CRLF (§2.1).
fn v1(received: &[u8]) -> Result<Option<ProxyHeader>, Rejection> {
    let line = &received[..received.len().min(V1_MAX)];
    let Some(end) = line.windows(2).position(|pair| pair == b"\r\n") else {
        return match line.len() {
            V1_MAX => Err(Rejection::ProxyHeader("version 1, longer than 107 bytes")),
            _ => Ok(None),
        };
    };
    let source = addresses(&line[..end])
        .ok_or(Rejection::ProxyHeader("version 1, not a family, two addresses and two ports"))?;
    Ok(Some(ProxyHeader { source, len: end + 2, tlvs: Box::default() }))
}

fn addresses(line: &[u8]) -> Option<ProxySource> {
    let mut words = line.split(|&byte| byte == b' ').map(|word| std::str::from_utf8(word).ok()).skip(1);
    let mut word = || words.next().flatten();
    let (source, destination): (IpAddr, IpAddr) = match word()? {
        // "the receiver must ignore anything presented before the CRLF"
        "UNKNOWN" => return Some(ProxySource::Local),
        "TCP4" => (word()?.parse::<Ipv4Addr>().ok()?.into(), word()?.parse::<Ipv4Addr>().ok()?.into()),
        "TCP6" => (word()?.parse::<Ipv6Addr>().ok()?.into(), word()?.parse::<Ipv6Addr>().ok()?.into()),
        _ => return None,
    };
    let (source_port, destination_port) = (port(word()?)?, port(word()?)?);
    words.next().is_none().then(|| client(source, source_port, destination, destination_port))
}

/// A decimal number of 16 bits without leading zeroes.
fn port(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    if is_plain { word.parse().ok() } else { None }
}

fn client(source: IpAddr, source_port: u16, destination: IpAddr, destination_port: u16) -> ProxySource {
    ProxySource::Client {
        source: SocketAddr::new(source.to_canonical(), source_port),
        destination: SocketAddr::new(destination.to_canonical(), destination_port),
    }
}

/// The binary header (§2.2). Each field of its fixed part is judged as soon as it is there.
fn v2(received: &[u8]) -> Result<Option<ProxyHeader>, Rejection> {
    const TOO_SHORT: Rejection = Rejection::ProxyHeader("version 2, too short for its addresses");
    let fixed = received.get(SIGNATURE.len()..).unwrap_or_default();
    let is_local = match fixed.first() {
        None => return Ok(None),
        Some(&LOCAL) => true,
        Some(&PROXY) => false,
        Some(_) => return Err(Rejection::ProxyHeader("version 2, unknown version or command")),
    };
    let Some(&family) = fixed.get(1) else { return Ok(None) };
    let address_len = address_len(family);
    if address_len.is_none() && !is_local {
        return Err(Rejection::ProxyHeader("version 2, unknown family or transport"));
    }
    let Some(&length) = fixed.get(2..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(length));
    let len = V2_FIXED + length;
    if len > V2_MAX {
        return Err(Rejection::ProxyHeader("version 2, longer than 4096 bytes"));
    }
    // The family of a local connection is ignored, so all of its block may be something else.
    let address_len = address_len.filter(|known| !is_local || *known <= length).unwrap_or(length);
    if address_len > length {
        return Err(TOO_SHORT);
    }
    let Some(block) = received.get(V2_FIXED..len) else { return Ok(None) };

    let (addresses, mut tlvs) = block.split_at(address_len);
    let source = if is_local {
        ProxySource::Local
    } else {
        binary_addresses(family, Cursor::new(addresses)).ok_or(TOO_SHORT)?
    };
    if !tlv::is_whole(tlvs) {
        if source != ProxySource::Local {
            return Err(Rejection::ProxyHeader("version 2, a TLV is cut"));
        }
        // Addresses to be ignored are in these bytes.
        tlvs = &[];
    }
    check_sum(&received[..len], tlvs)?;
    Ok(Some(ProxyHeader { source, len, tlvs: tlvs.into() }))
}

/// The length of the two addresses and ports of a family and transport; `None` for a combination that must be
/// refused.
fn address_len(family: u8) -> Option<usize> {
    match family {
        UNSPECIFIED => Some(0),
        TCP4 | UDP4 => Some(12),
        TCP6 | UDP6 => Some(36),
        UNIX_STREAM | UNIX_DATAGRAM => Some(216),
        _ => None,
    }
}

/// An unspecified family and Unix sockets have no addresses that we could use.
fn binary_addresses(family: u8, mut block: Cursor<'_>) -> Option<ProxySource> {
    let (source, destination) = match family {
        TCP4 | UDP4 => (ipv4(&mut block)?, ipv4(&mut block)?),
        TCP6 | UDP6 => (ipv6(&mut block)?, ipv6(&mut block)?),
        _ => return Some(ProxySource::Local),
    };
    Some(client(source, block.u16()?, destination, block.u16()?))
}

fn ipv4(block: &mut Cursor<'_>) -> Option<IpAddr> {
    <[u8; 4]>::try_from(block.take(4)?).ok().map(IpAddr::from)
}

fn ipv6(block: &mut Cursor<'_>) -> Option<IpAddr> {
    <[u8; 16]>::try_from(block.take(16)?).ok().map(IpAddr::from)
}

/// Where there is a checksum it must be right (§2.2.3). `tlvs` are the last bytes of `header`.
fn check_sum(header: &[u8], tlvs: &[u8]) -> Result<(), Rejection> {
    const WRONG: Rejection = Rejection::ProxyHeader("version 2, the checksum is wrong");
    let mut at = header.len() - tlvs.len();
    for (kind, value) in tlv::iter(tlvs) {
        at += tlv::TLV_HEADER;
        if kind == tlv::CRC32C {
            let said = value.try_into().map(u32::from_be_bytes).map_err(|_| WRONG)?;
            let before = crc32c::crc32c(&header[..at]);
            let with_zeroes = crc32c::crc32c_append(before, &[0; 4]);
            if crc32c::crc32c_append(with_zeroes, &header[at + 4..]) != said {
                return Err(WRONG);
            }
        }
        at += value.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
