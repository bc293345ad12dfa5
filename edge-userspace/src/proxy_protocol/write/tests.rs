//! Byte layouts by the specification, and what the `proxy-header` crate reads from them.

use proxy_header::ParseConfig;

use super::*;

fn client(source: &str, destination: &str) -> ProxySource {
    ProxySource::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn text(source: &str, destination: &str) -> String {
    String::from_utf8(write(ProxyProtocol::V1, client(source, destination), &Tlvs::default())).unwrap()
}

/// The header without its signature and TLVs.
fn binary(source: &str, destination: &str) -> Vec<u8> {
    let header = write(ProxyProtocol::V2, client(source, destination), &Tlvs::default());
    assert!(header.starts_with(&SIGNATURE));
    let addresses = if header[13] == TCP4 { 12 } else { 36 };
    header[12..V2_FIXED + addresses].to_vec()
}

/// Type and value of each TLV, but the checksum, which is checked.
fn tlvs_of(tlvs: &Tlvs<'_>) -> Vec<(u8, Vec<u8>)> {
    let mut header = write(ProxyProtocol::V2, client("192.0.2.1:5000", "203.0.113.1:443"), tlvs);
    let all: Vec<_> = tlv::iter(&header[28..]).map(|(kind, value)| (kind, value.to_vec())).collect();
    let (kind, sum) = &all[0];
    assert_eq!(*kind, tlv::CRC32C);
    header[31..35].fill(0);
    assert_eq!(crc32c::crc32c(&header).to_be_bytes()[..], sum[..]);
    all[1..].to_vec()
}

fn encode(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (kind, value) in tlvs {
        push(&mut block, usize::MAX, *kind, value);
    }
    block
}

#[test]
fn version_1_is_a_line() {
    assert_eq!(text("192.0.2.1:5000", "203.0.113.1:443"), "PROXY TCP4 192.0.2.1 203.0.113.1 5000 443\r\n");
    assert_eq!(text("[2001:db8::1]:5000", "[::1]:443"), "PROXY TCP6 2001:db8::1 ::1 5000 443\r\n");
    assert_eq!(write(ProxyProtocol::V1, ProxySource::Local, &Tlvs::default()), b"PROXY UNKNOWN\r\n");
    let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
    assert!(text(longest, longest).len() <= crate::proxy_protocol::V1_MAX);
}

#[test]
fn version_2_is_binary() {
    assert_eq!(
        binary("192.0.2.1:5000", "203.0.113.1:443"),
        [0x21, 0x11, 0, 12 + 7, 192, 0, 2, 1, 203, 0, 113, 1, 0x13, 0x88, 0x01, 0xbb]
    );
    assert_eq!(
        binary("[2001:db8::1]:5000", "[::2]:443"),
        [
            &[0x21, 0x21, 0, 36 + 7][..],
            &[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            &[0x13, 0x88, 0x01, 0xbb],
        ]
        .concat()
    );
    let local = write(ProxyProtocol::V2, ProxySource::Local, &Tlvs { align: 64, ..Tlvs::default() });
    assert_eq!(local, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    assert_eq!(write(ProxyProtocol::Off, ProxySource::Local, &Tlvs::default()), b"");
}

#[test]
fn families_that_differ_are_both_ipv6_and_mapped_ones_ipv4() {
    assert_eq!(
        text("192.0.2.1:5000", "[2001:db8::1]:443"),
        "PROXY TCP6 ::ffff:192.0.2.1 2001:db8::1 5000 443\r\n"
    );
    assert_eq!(
        text("[2001:db8::1]:5000", "192.0.2.1:443"),
        "PROXY TCP6 2001:db8::1 ::ffff:192.0.2.1 5000 443\r\n"
    );
    assert_eq!(
        text("[::ffff:192.0.2.1]:5000", "[::ffff:203.0.113.1]:443"),
        "PROXY TCP4 192.0.2.1 203.0.113.1 5000 443\r\n"
    );
    let mixed = binary("192.0.2.1:5000", "[2001:db8::1]:443");
    assert_eq!(mixed[1], 0x21);
    assert_eq!(mixed[4..20], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
    assert_eq!(binary("[::ffff:192.0.2.1]:5000", "203.0.113.1:443")[1], 0x11);
}

#[test]
fn tlvs_say_what_the_client_asked_for() {
    let authority = "cloud.example.com".parse().unwrap();
    let alpn = [&b"h2"[..], b"http/1.1"].into_iter().collect();
    let all =
        Tlvs { authority: Some(&authority), alpn: Some(&alpn), unique_id: Some(b"01-a"), ..Tlvs::default() };
    assert_eq!(
        tlvs_of(&all),
        [
            (tlv::AUTHORITY, b"cloud.example.com".to_vec()),
            (tlv::UNIQUE_ID, b"01-a".to_vec()),
            (tlv::ALPN, b"\0\x0c\x02h2\x08http/1.1".to_vec()),
        ]
    );
    assert_eq!(tlvs_of(&Tlvs::default()), []);
    assert_eq!(tlvs_of(&Tlvs { alpn: Some(&AlpnList::default()), ..Tlvs::default() }), []);
    assert_eq!(tlvs_of(&Tlvs { unique_id: Some(&[0; 129]), ..Tlvs::default() }), []);
}

#[test]
fn what_came_in_goes_on_once() {
    let received = encode(&[
        (tlv::CRC32C, &[1; 4]),
        (tlv::AUTHORITY, b"first.example"),
        (tlv::ALPN, b"\0\x03\x02h2"),
        (tlv::UNIQUE_ID, b"first"),
        (0x20, b"\x01\0\0\0\0"),
        (tlv::NOOP, b"xx"),
        (0xe0, b"a"),
        (0xe0, b"b"),
    ]);
    let others = [(0x20, b"\x01\0\0\0\0".to_vec()), (0xe0, b"a".to_vec()), (0xe0, b"b".to_vec())];
    let authority = "second.example".parse().unwrap();
    let alpn = [&b"h3"[..]].into_iter().collect();
    let chained = Tlvs {
        authority: Some(&authority),
        alpn: Some(&alpn),
        unique_id: Some(b"second"),
        received: &received,
        align: 0,
    };
    let mut expected =
        vec![(tlv::AUTHORITY, b"second.example".to_vec()), (tlv::UNIQUE_ID, b"first".to_vec())];
    expected.extend(others.clone());
    expected.push((tlv::ALPN, b"\0\x03\x02h3".to_vec()));
    assert_eq!(tlvs_of(&chained), expected);

    let unread = Tlvs { received: &received, ..Tlvs::default() };
    let mut expected = vec![
        (tlv::UNIQUE_ID, b"first".to_vec()),
        (tlv::AUTHORITY, b"first.example".to_vec()),
        (tlv::ALPN, b"\0\x03\x02h2".to_vec()),
    ];
    expected.extend(others);
    assert_eq!(tlvs_of(&unread), expected);
}

#[test]
fn padding_reaches_the_boundary_whatever_is_left() {
    for align in 0..=u8::MAX {
        for length in 1..=64 {
            let id = vec![b'x'; length];
            let tlvs = Tlvs { unique_id: Some(&id), align, ..Tlvs::default() };
            let header = write(ProxyProtocol::V2, client("192.0.2.1:1", "192.0.2.2:2"), &tlvs);
            assert!(header.len().is_multiple_of(align.max(1).into()), "{align} {length}");
            assert!(tlv::is_whole(&header[28..]));
        }
    }
}

#[test]
fn a_header_is_never_longer_than_receivers_take() {
    let name = vec![b'a'; 255];
    let alpn = std::iter::repeat_n(&name[..], 16).collect();
    let received = encode(&[(0xe1, &[0; 3000]), (0xe2, &[0; 2000]), (0xe3, &[0; 500])]);
    for align in [0, 128, 255] {
        let tlvs = Tlvs { alpn: Some(&alpn), received: &received, align, ..Tlvs::default() };
        let header = write(ProxyProtocol::V2, client("192.0.2.1:1", "[2001:db8::1]:2"), &tlvs);
        assert!(header.len() <= V2_MAX);
        let kinds: Vec<u8> =
            tlv::iter(&header[52..]).map(|tlv| tlv.0).filter(|kind| *kind != tlv::NOOP).collect();
        assert_eq!(kinds, [tlv::CRC32C, 0xe1, 0xe3]);
    }
}

#[test]
fn another_decoder_reads_the_same() {
    let authority = "cloud.example.com".parse().unwrap();
    let alpn = [&b"h2"[..]].into_iter().collect();
    let tlvs = Tlvs {
        authority: Some(&authority),
        alpn: Some(&alpn),
        unique_id: Some(b"0001"),
        received: &encode(&[(0xe0, b"custom")]),
        align: 64,
    };
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        for (source, destination) in
            [("192.0.2.1:5000", "203.0.113.1:443"), ("[2001:db8::1]:5000", "[2001:db8::2]:443")]
        {
            let header = write(version, client(source, destination), &tlvs);
            let (decoded, len) = proxy_header::ProxyHeader::parse(&header, ParseConfig::default()).unwrap();
            assert_eq!(len, header.len());
            let addresses = decoded.proxied_address().unwrap();
            assert_eq!(
                (addresses.source.to_string(), addresses.destination.to_string()),
                (source.into(), destination.into())
            );
            if version == ProxyProtocol::V2 {
                assert_eq!(decoded.authority(), Some("cloud.example.com"));
                assert_eq!(decoded.alpn(), Some(&b"\0\x03\x02h2"[..]));
                assert_eq!(decoded.unique_id(), Some(&b"0001"[..]));
                assert!(decoded.crc32c().is_some());
            }
        }
        let local = write(version, ProxySource::Local, &tlvs);
        let (decoded, len) = proxy_header::ProxyHeader::parse(&local, ParseConfig::default()).unwrap();
        assert_eq!((decoded.proxied_address(), len), (None, local.len()));
    }
}
