//! The header that a backend gets ahead of the client's bytes.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use super::{LOCAL, PROXY, ProxySource, SIGNATURE, TCP4, TCP6, V2_FIXED, V2_MAX_SENT, tlv};
use crate::spec::{AlpnList, HostName, ProxyProtocol, ProxyTlv, ProxyTlvs};

/// Contents of a version 2 header besides the addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tlvs<'a> {
    /// The TLVs that the receiver wants.
    pub wanted: ProxyTlvs,
    /// The host that the client asks for: SNI, or the host of an HTTP request.
    pub authority: Option<&'a HostName>,
    /// The client's ALPN list, an exact copy of the extension (§2.2.1). Only the backend knows which protocol
    /// it will choose.
    pub alpn: Option<&'a AlpnList>,
    /// Our id of the connection, at most [`tlv::MAX_UNIQUE_ID`] bytes.
    pub unique_id: Option<&'a [u8]>,
    /// The TLVs of the incoming header. We use its authority and ALPN if we have read none. Its unique id
    /// takes precedence over ours, because it identifies the connection across several proxies. Checksum and
    /// padding are recomputed.
    pub received: &'a [u8],
    /// Pads the header to a multiple of this many bytes by a NOOP; 0 and 1 do not pad.
    pub align: u8,
}

/// A header, and what is missing in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The bytes to send.
    pub bytes: Vec<u8>,
    /// The wanted TLVs that did not fit into [`V2_MAX_SENT`] bytes.
    pub left_out: ProxyTlvs,
}

impl From<Vec<u8>> for Header {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, left_out: ProxyTlvs::default() }
    }
}

/// The header for one connection; nothing for [`ProxyProtocol::Off`].
///
/// If the addresses are of different families, both are written as IPv6, the IPv4 one mapped, as in HAProxy.
/// A version 2 header is at most [`V2_MAX_SENT`] bytes without its padding; TLVs that do not fit are left
/// out. Received ones go first, then the ALPN list, the authority, the unique id. Version 1 and local
/// connections have no TLVs.
pub fn write(version: ProxyProtocol, source: ProxySource, tlvs: &Tlvs<'_>) -> Header {
    match (version, source) {
        (ProxyProtocol::Off, _) => Header::default(),
        (ProxyProtocol::V1, ProxySource::Local) => b"PROXY UNKNOWN\r\n".to_vec().into(),
        (ProxyProtocol::V1, ProxySource::Client { source, destination }) => v1(source, destination).into(),
        (ProxyProtocol::V2, ProxySource::Local) => {
            let mut header = SIGNATURE.to_vec();
            header.extend([LOCAL, 0, 0, 0]);
            header.into()
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

fn v2(source: SocketAddr, destination: SocketAddr, tlvs: &Tlvs<'_>) -> Header {
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

    let checksum = tlvs.wanted.has(ProxyTlv::Crc32c).then(|| {
        push(&mut header, tlv::CRC32C, &[0; 4]);
        header.len() - 4..header.len()
    });
    let mut left_out = ProxyTlvs::default();
    // Earlier TLVs take precedence: once one does not fit, no less important one is added.
    for (kind, number, value) in [
        (ProxyTlv::UniqueId, tlv::UNIQUE_ID, tlvs.unique_id()),
        (ProxyTlv::Authority, tlv::AUTHORITY, tlvs.authority()),
        (ProxyTlv::Alpn, tlv::ALPN, tlvs.alpn()),
    ] {
        let Some(value) = value.filter(|_| tlvs.wanted.has(kind)) else { continue };
        if left_out.is_empty() && header.len() + tlv::TLV_HEADER + value.len() <= V2_MAX_SENT {
            push(&mut header, number, &value);
        } else {
            left_out = left_out.with(kind);
        }
    }
    for (kind, value) in tlv::iter(tlvs.received).filter(|_| tlvs.wanted.has(ProxyTlv::Received)) {
        if matches!(kind, tlv::CRC32C | tlv::NOOP | tlv::UNIQUE_ID | tlv::AUTHORITY | tlv::ALPN) {
            continue;
        }
        if left_out.is_empty() && header.len() + tlv::TLV_HEADER + value.len() <= V2_MAX_SENT {
            push(&mut header, kind, value);
        } else {
            left_out = left_out.with(ProxyTlv::Received);
        }
    }
    pad(&mut header, tlvs.align.into());

    let length = u16::try_from(header.len() - V2_FIXED).unwrap_or_default();
    header[14..16].copy_from_slice(&length.to_be_bytes());
    if let Some(checksum) = checksum {
        let sum = crc32c::crc32c(&header);
        header[checksum].copy_from_slice(&sum.to_be_bytes());
    }
    Header { bytes: header, left_out }
}

impl<'a> Tlvs<'a> {
    fn unique_id(&self) -> Option<Cow<'a, [u8]>> {
        let own = self.unique_id.filter(|id| id.len() <= tlv::MAX_UNIQUE_ID);
        tlv::find(self.received, tlv::UNIQUE_ID).or(own).map(Cow::Borrowed)
    }

    fn authority(&self) -> Option<Cow<'a, [u8]>> {
        let own = self.authority.map(|name| name.as_str().as_bytes());
        own.or_else(|| tlv::find(self.received, tlv::AUTHORITY)).map(Cow::Borrowed)
    }

    fn alpn(&self) -> Option<Cow<'a, [u8]>> {
        match self.alpn.map(AlpnList::as_wire).filter(|list| !list.is_empty()) {
            Some(list) => {
                // A list that is longer than its length can say does not fit anyway.
                let length = u16::try_from(list.len()).unwrap_or(u16::MAX).to_be_bytes();
                Some(Cow::Owned([&length, list].concat()))
            }
            None => tlv::find(self.received, tlv::ALPN).map(Cow::Borrowed),
        }
    }
}

/// Adds a TLV; its value is shorter than a header.
fn push(header: &mut Vec<u8>, kind: u8, value: &[u8]) {
    header.push(kind);
    header.extend(u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
    header.extend(value);
}

/// A NOOP is at least [`tlv::TLV_HEADER`] bytes. If less is missing to a boundary, it extends to the one
/// after it.
fn pad(header: &mut Vec<u8>, align: usize) {
    if align > 1 && !header.len().is_multiple_of(align) {
        let value = (header.len() + tlv::TLV_HEADER).next_multiple_of(align) - header.len() - tlv::TLV_HEADER;
        push(header, tlv::NOOP, &[0; u8::MAX as usize][..value]);
    }
}

#[cfg(test)]
mod tests;
