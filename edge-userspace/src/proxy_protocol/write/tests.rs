//! Byte layouts by the specification, and what the `proxy-header` crate reads from them.

use proxy_header::ParseConfig;

use super::*;

fn client(source: &str, destination: &str) -> ProxySource {
    ProxySource::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn text(source: &str, destination: &str) -> String {
    String::from_utf8(write(ProxyProtocol::V1, client(source, destination), &Tlvs::default()).bytes).unwrap()
}

/// The header without its signature and TLVs.
fn binary(source: &str, destination: &str) -> Vec<u8> {
    let header = write(ProxyProtocol::V2, client(source, destination), &Tlvs::default()).bytes;
    assert!(header.starts_with(&SIGNATURE));
    let addresses = if header[13] == TCP4 { 12 } else { 36 };
    header[12..V2_FIXED + addresses].to_vec()
}

/// Type and value of each TLV but the checksum, which is checked, where all are wanted.
fn tlvs_of(tlvs: &Tlvs<'_>) -> Vec<(u8, Vec<u8>)> {
    let tlvs = Tlvs { wanted: ProxyTlvs::ALL, ..*tlvs };
    let written = write(ProxyProtocol::V2, client("192.0.2.1:5000", "203.0.113.1:443"), &tlvs);
    assert!(written.left_out.is_empty());
    let mut header = written.bytes;
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
        push(&mut block, *kind, value);
    }
    block
}

#[test]
fn version_1_is_a_line() {
    assert_eq!(text("192.0.2.1:5000", "203.0.113.1:443"), "PROXY TCP4 192.0.2.1 203.0.113.1 5000 443\r\n");
    assert_eq!(text("[2001:db8::1]:5000", "[::1]:443"), "PROXY TCP6 2001:db8::1 ::1 5000 443\r\n");
    assert_eq!(write(ProxyProtocol::V1, ProxySource::Local, &Tlvs::default()).bytes, b"PROXY UNKNOWN\r\n");
    let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535";
    assert!(text(longest, longest).len() <= crate::proxy_protocol::V1_MAX);
}

#[test]
fn version_2_is_binary() {
    assert_eq!(
        binary("192.0.2.1:5000", "203.0.113.1:443"),
        [0x21, 0x11, 0, 12, 192, 0, 2, 1, 203, 0, 113, 1, 0x13, 0x88, 0x01, 0xbb]
    );
    assert_eq!(
        binary("[2001:db8::1]:5000", "[::2]:443"),
        [
            &[0x21, 0x21, 0, 36][..],
            &[0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
            &[0x13, 0x88, 0x01, 0xbb],
        ]
        .concat()
    );
    let local = write(ProxyProtocol::V2, ProxySource::Local, &Tlvs { align: 64, ..Tlvs::default() });
    assert_eq!(local.bytes, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    assert_eq!(write(ProxyProtocol::Off, ProxySource::Local, &Tlvs::default()), Header::default());
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
            (tlv::UNIQUE_ID, b"01-a".to_vec()),
            (tlv::AUTHORITY, b"cloud.example.com".to_vec()),
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
        ..Tlvs::default()
    };
    let mut expected = vec![
        (tlv::UNIQUE_ID, b"first".to_vec()),
        (tlv::AUTHORITY, b"second.example".to_vec()),
        (tlv::ALPN, b"\0\x03\x02h3".to_vec()),
    ];
    expected.extend(others.clone());
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
            let tlvs = Tlvs { wanted: ProxyTlvs::ALL, unique_id: Some(&id), align, ..Tlvs::default() };
            let header = write(ProxyProtocol::V2, client("192.0.2.1:1", "192.0.2.2:2"), &tlvs).bytes;
            assert!(header.len().is_multiple_of(align.max(1).into()), "{align} {length}");
            assert!(tlv::is_whole(&header[28..]));
        }
    }
}

#[test]
fn by_default_there_are_the_addresses_alone() {
    let authority = "cloud.example.com".parse().unwrap();
    let alpn = [&b"h2"[..]].into_iter().collect();
    let received = encode(&[(tlv::UNIQUE_ID, b"first"), (0xe0, b"a")]);
    let tlvs = Tlvs {
        authority: Some(&authority),
        alpn: Some(&alpn),
        unique_id: Some(b"1"),
        received: &received,
        ..Tlvs::default()
    };
    for (source, destination, length) in
        [("192.0.2.1:1", "192.0.2.2:2", 28), ("[::1]:1", "[::2]:2", 52), ("192.0.2.1:1", "[::2]:2", 52)]
    {
        let header = write(ProxyProtocol::V2, client(source, destination), &tlvs);
        assert_eq!((header.bytes.len(), header.left_out), (length, ProxyTlvs::default()));
    }
}

#[test]
fn what_receivers_would_not_take_is_left_out_in_order() {
    use ProxyTlv::*;
    let long: HostName = format!("{0}.{0}.example", "a".repeat(60)).parse().unwrap();
    let longer: HostName = format!("{0}.{0}.{0}.example", "a".repeat(60)).parse().unwrap();
    let short: HostName = "a.example".parse().unwrap();
    let browser: AlpnList = [&b"h2"[..], b"http/1.1"].into_iter().collect();
    let many: AlpnList = std::iter::repeat_n(&b"p/1"[..], 60).collect();
    let received = encode(&[(0xe1, &[0; 200]), (0xe2, &[0; 4])]);
    for (authority, alpn, received, left_out) in [
        (&short, &browser, &[][..], &[][..]),
        (&short, &many, &[], &[Alpn]),
        (&long, &browser, &[], &[Alpn]),
        // One that would fit is left out too behind one that does not.
        (&longer, &browser, &[], &[Alpn, Authority]),
        (&short, &browser, &received, &[Received]),
        (&longer, &browser, &received, &[Alpn, Authority, Received]),
    ] {
        for align in [0, 128, 255] {
            let id = [b'1'; 32];
            let tlvs = Tlvs {
                wanted: ProxyTlvs::ALL,
                authority: Some(authority),
                alpn: Some(alpn),
                unique_id: Some(&id),
                received,
                align,
            };
            let header = write(ProxyProtocol::V2, client("192.0.2.1:1", "[2001:db8::1]:2"), &tlvs);
            assert_eq!(header.left_out, left_out.iter().copied().collect(), "{authority}");
            let padding = tlv::find(&header.bytes[52..], tlv::NOOP).map_or(0, |value| 3 + value.len());
            assert!(header.bytes.len() - padding <= V2_MAX_SENT);
            let has = |kind| tlv::find(&header.bytes[52..], kind).is_some();
            assert!(has(tlv::CRC32C) && has(tlv::UNIQUE_ID));
            assert_eq!(has(tlv::AUTHORITY), !header.left_out.has(Authority));
            assert_eq!(has(tlv::ALPN), !header.left_out.has(Alpn));
        }
    }
}

#[test]
fn another_decoder_reads_the_same() {
    let authority = "cloud.example.com".parse().unwrap();
    let alpn = [&b"h2"[..]].into_iter().collect();
    let tlvs = Tlvs {
        wanted: ProxyTlvs::ALL,
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
            let header = write(version, client(source, destination), &tlvs).bytes;
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
        let local = write(version, ProxySource::Local, &tlvs).bytes;
        let (decoded, len) = proxy_header::ProxyHeader::parse(&local, ParseConfig::default()).unwrap();
        assert_eq!((decoded.proxied_address(), len), (None, local.len()));
    }
}
