//! Headers laid out by hand after the specification.

use super::*;
use crate::{
    proxy_protocol::{Tlvs, write},
    spec::{ProxyProtocol, ProxyTlvs},
};

fn v2_bytes(command: u8, family: u8, length: u16, block: &[u8]) -> Vec<u8> {
    [&SIGNATURE[..], &[command, family], &length.to_be_bytes(), block].concat()
}

/// A header whose length is right.
fn v2_of(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    v2_bytes(command, family, u16::try_from(block.len()).unwrap(), block)
}

const ADDRESSES: [u8; 12] = [192, 0, 2, 1, 203, 0, 113, 1, 0x13, 0x88, 0x01, 0xbb];

fn from(source: &str, destination: &str) -> ProxySource {
    ProxySource::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

/// The header is complete at its last byte and not before, and what follows does not matter.
#[track_caller]
fn complete(header: &[u8]) -> ProxyHeader {
    for end in 0..header.len() {
        assert_eq!(proxy_header(&header[..end]), Sniff::Incomplete, "{end} of {}", header.escape_ascii());
    }
    let answer = proxy_header(header);
    assert_eq!(proxy_header(&[header, b"\x16\x03\x01\r\n"].concat()), answer);
    match answer {
        Sniff::Complete(found) => {
            assert_eq!(found.len, header.len());
            found
        }
        other => panic!("{other:?}: {}", header.escape_ascii()),
    }
}

/// The bytes are refused when this many are there, and not before.
#[track_caller]
fn refused_at(at: usize, bytes: &[u8]) {
    let decided = (0..=bytes.len()).find(|&end| proxy_header(&bytes[..end]) != Sniff::Incomplete);
    assert_eq!(decided, Some(at), "{}", bytes.escape_ascii());
    assert!(matches!(proxy_header(&bytes[..at]), Sniff::Rejected(Rejection::ProxyHeader(_))));
}

#[test]
fn lines_of_version_1() {
    for (line, source) in [
        (&b"PROXY TCP4 192.0.2.1 203.0.113.1 5000 443\r\n"[..], from("192.0.2.1:5000", "203.0.113.1:443")),
        (b"PROXY TCP6 2001:DB8::1 ::2 0 65535\r\n", from("[2001:db8::1]:0", "[::2]:65535")),
        (b"PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 1 2\r\n", from("192.0.2.1:1", "[2001:db8::1]:2")),
        (b"PROXY UNKNOWN\r\n", ProxySource::Local),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535 \x00\xff\r\n", ProxySource::Local),
    ] {
        let header = complete(line);
        assert_eq!((header.source, &*header.tlvs), (source, &b""[..]));
    }
    // The longest one.
    let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    complete(format!("PROXY UNKNOWN {address} {address} 65535 65535\r\n").as_bytes());
}

#[test]
fn lines_that_are_not_version_1() {
    for line in [
        "PROXY TCP4 192.0.2.1 203.0.113.1 5000 443 \r\n",
        "PROXY TCP4 192.0.2.1 203.0.113.1 5000\r\n",
        "PROXY TCP4  192.0.2.1 203.0.113.1 5000 443\r\n",
        "PROXY TCP4 192.0.2.1 203.0.113.1 5000 65536\r\n",
        "PROXY TCP4 192.0.2.1 203.0.113.1 05000 443\r\n",
        "PROXY TCP4 192.0.2.1 203.0.113.1 +5000 443\r\n",
        "PROXY TCP4 192.0.2.1 203.0.113.1 5000 -1\r\n",
        "PROXY TCP4 192.0.2.1 203.0.113.1 5000 \r\n",
        "PROXY TCP4 192.0.2.01 203.0.113.1 5000 443\r\n",
        "PROXY TCP4 2001:db8::1 203.0.113.1 5000 443\r\n",
        "PROXY TCP6 192.0.2.1 203.0.113.1 5000 443\r\n",
        "PROXY TCP6 fe80::1%eth0 ::1 5000 443\r\n",
        "PROXY TCP5 192.0.2.1 203.0.113.1 5000 443\r\n",
        "PROXY tcp4 192.0.2.1 203.0.113.1 5000 443\r\n",
        "PROXY UNKNOWNS\r\n",
        "PROXY \r\n",
        "PROXY TCP4 192.0.2.1 203.0.113.1 5000 443\nGET / HTTP/1.1\r\n",
        "PROXY TCP4 192.0.2.1 203.0.113.\u{661} 5000 443\r\n",
    ] {
        refused_at(line.len(), line.as_bytes());
    }
    refused_at(V1_MAX, format!("PROXY UNKNOWN {}\r\n", "x".repeat(V1_MAX - 15)).as_bytes());
    refused_at(6, b"PROXY\tTCP4 192.0.2.1 203.0.113.1 5000 443\r\n");
}

#[test]
fn headers_of_version_2() {
    let header = complete(&v2_of(PROXY, TCP4, &ADDRESSES));
    assert_eq!(header.source, from("192.0.2.1:5000", "203.0.113.1:443"));
    assert_eq!(complete(&v2_of(PROXY, UDP4, &ADDRESSES)).source, header.source);

    let mut six = [0; 36];
    six[0..2].copy_from_slice(&[0x20, 0x01]);
    six[10..12].copy_from_slice(&[0, 1]);
    six[26..32].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
    six[32..].copy_from_slice(&[0, 80, 1, 0xbb]);
    let source = from("[2001:0:0:0:0:1::]:80", "192.0.2.1:443");
    assert_eq!(complete(&v2_of(PROXY, TCP6, &six)).source, source);

    for family in [UNIX_STREAM, UNIX_DATAGRAM] {
        let header = complete(&v2_of(PROXY, family, &[&[b'/'; 216][..], b"\xe0\0\x01x"].concat()));
        assert_eq!((header.source, &*header.tlvs), (ProxySource::Local, &b"\xe0\0\x01x"[..]));
    }
}

#[test]
fn local_connections_whatever_their_block() {
    for (family, block, tlvs) in [
        (UNSPECIFIED, &b""[..], &b""[..]),
        (UNSPECIFIED, b"\x05\0\x01x", b"\x05\0\x01x"),
        (UNSPECIFIED, b"not TLVs", b""),
        (TCP4, &ADDRESSES, b""),
        (TCP4, b"short", b""),
        (0xff, b"anything", b""),
    ] {
        let header = complete(&v2_of(LOCAL, family, block));
        assert_eq!((header.source, &*header.tlvs), (ProxySource::Local, tlvs));
    }
    assert_eq!(complete(&v2_of(PROXY, UNSPECIFIED, b"addresses?")).source, ProxySource::Local);
}

#[test]
fn each_bad_field_is_refused_at_its_byte() {
    refused_at(1, b"GET / HTTP/1.1\r\n");
    refused_at(1, b"\x16\x03\x01");
    refused_at(3, b"\r\nGET / HTTP/1.1\r\n");
    refused_at(2, b"POST / HTTP/1.1\r\n");
    for (at, bytes) in [
        (13, v2_bytes(0x11, TCP4, 12, &ADDRESSES)),
        (13, v2_bytes(0x22, TCP4, 12, &ADDRESSES)),
        (14, v2_bytes(PROXY, 0x13, 12, &ADDRESSES)),
        (14, v2_bytes(PROXY, 0x41, 12, &ADDRESSES)),
        (14, v2_bytes(PROXY, 0x01, 12, &ADDRESSES)),
    ] {
        refused_at(at, &bytes);
    }
}

#[test]
fn lengths_that_lie() {
    // Too short for the addresses, though the bytes are there.
    refused_at(16, &v2_bytes(PROXY, TCP4, 11, &ADDRESSES));
    refused_at(16, &v2_bytes(PROXY, TCP6, 12, &ADDRESSES));
    refused_at(16, &v2_bytes(PROXY, UNIX_STREAM, 215, &[0; 216]));
    refused_at(16, &v2_bytes(PROXY, TCP4, 0, b""));
    // Longer than anyone sends.
    refused_at(16, &v2_bytes(PROXY, TCP4, u16::MAX, &ADDRESSES));
    refused_at(16, &v2_bytes(LOCAL, UNSPECIFIED, 4081, b""));
    assert_eq!(proxy_header(&v2_bytes(PROXY, TCP4, 4080, &ADDRESSES)), Sniff::Incomplete);
    // Longer than what is sent: the next bytes belong to it.
    assert_eq!(proxy_header(&v2_bytes(PROXY, TCP4, 13, &ADDRESSES)), Sniff::Incomplete);
    refused_at(16 + 13, &v2_bytes(PROXY, TCP4, 13, &[&ADDRESSES[..], b"\x16"].concat()));
    // A TLV that reaches out of the header.
    refused_at(16 + 17, &v2_of(PROXY, TCP4, &[&ADDRESSES[..], b"\x05\0\x03ab"].concat()));
}

#[test]
fn checksums() {
    let client = from("192.0.2.1:5000", "[2001:db8::1]:443");
    let header = write(
        ProxyProtocol::V2,
        client,
        &Tlvs { wanted: ProxyTlvs::ALL, unique_id: Some(b"0001"), align: 32, ..Tlvs::default() },
    )
    .bytes;
    let found = complete(&header);
    assert_eq!(found.source, client);
    assert_eq!(tlv::find(&found.tlvs, tlv::UNIQUE_ID), Some(&b"0001"[..]));
    // A changed bit anywhere behind the fixed part is noticed, except in the type of the checksum itself.
    let kind = V2_FIXED + 36;
    for at in (V2_FIXED..header.len()).filter(|&at| at != kind) {
        let mut bad = header.clone();
        bad[at] ^= 0x10;
        assert!(matches!(proxy_header(&bad), Sniff::Rejected(_)), "{at}");
    }
    // One of the wrong length, and a second one.
    let mut block = ADDRESSES.to_vec();
    block.extend(b"\x03\0\x03abc");
    refused_at(16 + block.len(), &v2_of(PROXY, TCP4, &block));
    let doubled = v2_of(PROXY, TCP4, &[&ADDRESSES[..], &found.tlvs[..7], &found.tlvs[..7]].concat());
    refused_at(doubled.len(), &doubled);
}

#[test]
fn what_we_write_we_read() {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        for (source, destination) in [
            ("192.0.2.1:5000", "203.0.113.1:443"),
            ("[2001:db8::1]:1", "[2001:db8::2]:65535"),
            ("192.0.2.1:5000", "[2001:db8::2]:443"),
        ] {
            let source = from(source, destination);
            assert_eq!(complete(&write(version, source, &Tlvs::default()).bytes).source, source);
        }
        assert_eq!(
            complete(&write(version, ProxySource::Local, &Tlvs::default()).bytes).source,
            ProxySource::Local
        );
    }
}
