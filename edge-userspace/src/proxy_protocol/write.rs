//! The header that a backend gets ahead of the client's bytes.

use std::net::{IpAddr, SocketAddr};

use super::{LOCAL, PROXY, ProxySource, SIGNATURE, TCP4, TCP6, V2_FIXED, V2_MAX, tlv};
use crate::spec::{AlpnList, HostName, ProxyProtocol};

/// What a version 2 header says beside the addresses. A checksum is always there too.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tlvs<'a> {
    /// The host that the client asks for: SNI, or the host of an HTTP request.
    pub authority: Option<&'a HostName>,
    /// What the client offers, as an exact copy of the extension (§2.2.1); which of it will be used, only the backend
    /// will know.
    pub alpn: Option<&'a AlpnList>,
    /// What we call the connection, at most [`tlv::MAX_UNIQUE_ID`] octets.
    pub unique_id: Option<&'a [u8]>,
    /// The TLVs of the header that came in. They are passed on, but for their checksum and padding, and for an
    /// authority and ALPN that we have read ourselves. A unique id among them stays: it is there to recognise the
    /// connection behind several proxies.
    pub received: &'a [u8],
    /// Pads the header to a multiple of this many bytes by a NOOP; 0 and 1 do not pad.
    pub align: u8,
}

/// The header for one connection; nothing for [`ProxyProtocol::Off`].
///
/// Addresses of different families both go as IPv6, the IPv4 one mapped, as HAProxy has it. A header of version 2 is
/// at most [`V2_MAX`] bytes: a TLV that does not fit is left out, the client's ALPN list first of all. Version 1 and
/// local connections have no TLVs.
pub fn write(version: ProxyProtocol, source: ProxySource, tlvs: &Tlvs<'_>) -> Vec<u8> {
    match (version, source) {
        (ProxyProtocol::Off, _) => Vec::new(),
        (ProxyProtocol::V1, ProxySource::Local) => b"PROXY UNKNOWN\r\n".to_vec(),
        (ProxyProtocol::V1, ProxySource::Client { source, destination }) => v1(source, destination),
        (ProxyProtocol::V2, ProxySource::Local) => {
            let mut header = SIGNATURE.to_vec();
            header.extend([LOCAL, 0, 0, 0]);
            header
        }
        (ProxyProtocol::V2, ProxySource::Client { source, destination }) => v2(source, destination, tlvs),
    }
}

/// The addresses in one family.
fn same_family(source: SocketAddr, destination: SocketAddr) -> (IpAddr, IpAddr) {
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V6(destination)) => (source.to_ipv6_mapped().into(), destination.into()),
        (IpAddr::V6(source), IpAddr::V4(destination)) => (source.into(), destination.to_ipv6_mapped().into()),
        same => same,
    }
}

fn v1(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (from, to) = same_family(source, destination);
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}

fn v2(source: SocketAddr, destination: SocketAddr, tlvs: &Tlvs<'_>) -> Vec<u8> {
    let (from, to) = same_family(source, destination);
    let mut header = SIGNATURE.to_vec();
    header.extend([PROXY, if from.is_ipv4() { TCP4 } else { TCP6 }, 0, 0]);
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => header.extend(address.octets()),
            IpAddr::V6(address) => header.extend(address.octets()),
        }
    }
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());

    let room = V2_MAX - padding_at_most(tlvs.align);
    push(&mut header, room, tlv::CRC32C, &[0; 4]);
    let checksum = header.len() - 4..header.len();
    if let Some(authority) = tlvs.authority {
        push(&mut header, room, tlv::AUTHORITY, authority.as_str().as_bytes());
    }
    let own_id = tlvs.unique_id.filter(|id| id.len() <= tlv::MAX_UNIQUE_ID);
    if let Some(id) = tlv::find(tlvs.received, tlv::UNIQUE_ID).or(own_id) {
        push(&mut header, room, tlv::UNIQUE_ID, id);
    }
    for (kind, value) in tlv::iter(tlvs.received) {
        let is_said_anew = match kind {
            tlv::CRC32C | tlv::NOOP | tlv::UNIQUE_ID => true,
            tlv::AUTHORITY => tlvs.authority.is_some(),
            tlv::ALPN => tlvs.alpn.is_some(),
            _ => false,
        };
        if !is_said_anew {
            push(&mut header, room, kind, value);
        }
    }
    if let Some(list) = tlvs.alpn.map(AlpnList::as_wire).filter(|list| !list.is_empty()) {
        // A list that is longer than any length says does not fit either.
        let length = u16::try_from(list.len()).unwrap_or(u16::MAX).to_be_bytes();
        push(&mut header, room, tlv::ALPN, &[&length, list].concat());
    }
    pad(&mut header, tlvs.align.into());

    let length = u16::try_from(header.len() - V2_FIXED).unwrap_or_default();
    header[14..16].copy_from_slice(&length.to_be_bytes());
    let sum = crc32c::crc32c(&header);
    header[checksum].copy_from_slice(&sum.to_be_bytes());
    header
}

/// Adds a TLV, unless the header would become longer than `room`.
fn push(header: &mut Vec<u8>, room: usize, kind: u8, value: &[u8]) {
    if let Ok(length) = u16::try_from(value.len())
        && header.len() + tlv::TLV_HEADER + value.len() <= room
    {
        header.push(kind);
        header.extend(length.to_be_bytes());
        header.extend(value);
    }
}

/// A NOOP is at least [`tlv::TLV_HEADER`] bytes; where there is less to fill, it reaches to the next boundary but one.
fn padding_at_most(align: u8) -> usize {
    match align {
        0 | 1 => 0,
        align => usize::from(align) - 1 + tlv::TLV_HEADER,
    }
}

fn pad(header: &mut Vec<u8>, align: usize) {
    if align > 1 && !header.len().is_multiple_of(align) {
        let value = (header.len() + tlv::TLV_HEADER).next_multiple_of(align) - header.len() - tlv::TLV_HEADER;
        push(header, V2_MAX, tlv::NOOP, &[0; u8::MAX as usize][..value]);
    }
}

#[cfg(test)]
mod tests;
