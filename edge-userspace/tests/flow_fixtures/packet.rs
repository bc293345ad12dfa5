//! TCP packets by meaning, and their bytes with every checksum computed in full.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

pub(crate) const ETHERNET: usize = 14;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    End,
    Nop,
    Timestamps(u32, u32),
    Sack(Vec<(u32, u32)>),
    /// Everything else, as it is on the wire.
    Raw(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) traffic_class: u8,
    pub(crate) hop_limit: u8,
    /// IPv4 alone.
    pub(crate) identification: u16,
    /// IPv6 alone.
    pub(crate) label: u32,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) options: Vec<Choice>,
    pub(crate) data: Vec<u8>,
}

impl Packet {
    pub(crate) fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            traffic_class: 0xb9,
            hop_limit: 64,
            identification: 0x1234,
            label: 0xabcde,
            seq: 0,
            ack: 0,
            flags: ACK,
            window: 500,
            options: Vec::new(),
            data: Vec::new(),
        }
    }

    /// The bytes of the TCP segment.
    pub(crate) fn segment(&self) -> Vec<u8> {
        let mut options = Vec::new();
        for option in &self.options {
            match option {
                Choice::End => options.push(0),
                Choice::Nop => options.push(1),
                Choice::Timestamps(value, echo) => {
                    options.extend([8, 10]);
                    options.extend(value.to_be_bytes());
                    options.extend(echo.to_be_bytes());
                }
                Choice::Sack(blocks) => {
                    options.extend([5, u8::try_from(2 + 8 * blocks.len()).unwrap()]);
                    for (left, right) in blocks {
                        options.extend(left.to_be_bytes());
                        options.extend(right.to_be_bytes());
                    }
                }
                Choice::Raw(bytes) => options.extend(bytes),
            }
        }
        assert_eq!(options.len() % 4, 0, "options fill words: {:?}", self.options);
        let mut segment = Vec::new();
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        segment.extend(self.seq.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.push(u8::try_from((20 + options.len()) / 4 * 16).unwrap());
        segment.push(self.flags);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options);
        segment.extend(&self.data);
        let sum = checksum(&[&pseudo(self.source.ip(), self.destination.ip(), segment.len(), 6), &segment]);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// The bytes of the Ethernet frame.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let segment = self.segment();
        let header = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = ipv4(source, destination, 6, segment.len());
                let mut header = Ipv4Fields(header);
                header.0[1] = self.traffic_class;
                header.0[4..6].copy_from_slice(&self.identification.to_be_bytes());
                header.0[8] = self.hop_limit;
                header.sealed()
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut header = ipv6(source, destination, 6, segment.len());
                let first = 0x6000_0000 | (u32::from(self.traffic_class) << 20) | self.label;
                header[..4].copy_from_slice(&first.to_be_bytes());
                header[7] = self.hop_limit;
                header
            }
            _ => panic!("{} → {}", self.source, self.destination),
        };
        framed(&header, &segment)
    }
}

struct Ipv4Fields(Vec<u8>);

impl Ipv4Fields {
    fn sealed(mut self) -> Vec<u8> {
        self.0[10..12].fill(0);
        let sum = checksum(&[&self.0]);
        self.0[10..12].copy_from_slice(&sum.to_be_bytes());
        self.0
    }
}

/// An IPv4 header with don't-fragment.
pub(crate) fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(u16::try_from(20 + payload).unwrap().to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    Ipv4Fields(header).sealed()
}

pub(crate) fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next: u8, payload: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(u16::try_from(payload).unwrap().to_be_bytes());
    header.extend([next, 64]);
    header.extend(source.octets());
    header.extend(destination.octets());
    header
}

/// The frame that carries an IP packet to the loopback device, whose address is all zeros.
pub(crate) fn framed(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(if header[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
    frame.extend(header);
    frame.extend(payload);
    frame
}

/// The pseudo header of RFC 9293 §3.1 and RFC 8200 §8.1.
pub(crate) fn pseudo(source: IpAddr, destination: IpAddr, length: usize, protocol: u8) -> Vec<u8> {
    let mut pseudo = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend(u32::try_from(length).unwrap().to_be_bytes());
    pseudo.extend([0, 0, 0, protocol]);
    pseudo
}

/// The Internet checksum over the parts, each but the last of even length (RFC 1071).
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

/// Where the transport header of a frame starts.
pub(crate) fn transport(frame: &[u8]) -> usize {
    ETHERNET + if frame[ETHERNET] >> 4 == 4 { 20 } else { 40 }
}

/// The addresses of a frame.
pub(crate) fn addresses(frame: &[u8]) -> (IpAddr, IpAddr) {
    let ip = &frame[ETHERNET..];
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
    let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&ip[at..at + 16]).unwrap());
    if ip[0] >> 4 == 4 { (v4(12), v4(16)) } else { (v6(8), v6(24)) }
}

/// Verifies every checksum of a TCP or ICMP frame by summing it up in full.
pub(crate) fn assert_checksums(frame: &[u8]) {
    let transport = transport(frame);
    if frame[ETHERNET] >> 4 == 4 {
        assert_eq!(checksum(&[&frame[ETHERNET..transport]]), 0, "IPv4 header checksum");
    }
    let (source, destination) = addresses(frame);
    let payload = &frame[transport..];
    let protocol = if source.is_ipv4() { frame[ETHERNET + 9] } else { frame[ETHERNET + 6] };
    let pseudo = pseudo(source, destination, payload.len(), protocol);
    let sum = if protocol == 1 { checksum(&[payload]) } else { checksum(&[&pseudo, payload]) };
    assert_eq!(sum, 0, "checksum of protocol {protocol}");
}

/// The frame with its checksums blanked, for comparison beside [`assert_checksums`]: 0 and 0xffff are the same
/// number, and arithmetic by difference may find either.
pub(crate) fn without_checksums(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let transport = transport(&frame);
    if frame[ETHERNET] >> 4 == 4 {
        frame[ETHERNET + 10..ETHERNET + 12].fill(0);
    }
    frame[transport + 16..transport + 18].fill(0);
    // The link header is the redirect's.
    frame.drain(..ETHERNET);
    frame
}
