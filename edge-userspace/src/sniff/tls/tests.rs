//! Hellos made by hand, one property each. Real ones are in `tests/sniff_captures.rs`, generated ones against
//! an independent parser in `tests/sniff_oracle.rs`.

use super::*;

const MAX: usize = 65536;

/// One extension.
fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

fn vector16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes()[..], data].concat()
}

/// A `server_name` extension with one host name.
fn sni(name: &str) -> Vec<u8> {
    extension(0, &vector16(&[&[0][..], &vector16(name.as_bytes())].concat()))
}

/// The handshake message with everything before the extensions as TLS 1.3 clients write it.
fn message_with(tail: &[u8]) -> Vec<u8> {
    let body =
        [&[3, 3][..], &[7; 32], &[32], &[9; 32], &vector16(b"\x13\x01\x13\x02"), &[1, 0], tail].concat();
    [&[1, 0][..], &vector16(&body)].concat()
}

fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    message_with(&vector16(&extensions.concat()))
}

fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &vector16(fragment)].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(record).collect()
}

/// The answer to a hello of these extensions.
fn read(extensions: &[Vec<u8>]) -> Sniff<ClientHello> {
    client_hello(&record(&message(extensions)), MAX)
}

fn name_of(answer: Sniff<ClientHello>) -> Option<String> {
    match answer {
        Sniff::Complete(hello) => hello.server_name.map(|name| name.to_string()),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn malformed(answer: &Sniff<ClientHello>) {
    assert!(matches!(answer, Sniff::Rejected(Rejection::Malformed(_))), "{answer:?}");
}

#[test]
fn the_fields_are_found_among_grease() {
    let wire = record(&message(&[
        extension(0x2a2a, b""),
        extension(16, b"\x00\x0c\x02h2\x08http/1.1"),
        sni("Cloud.Example.COM"),
        extension(0xfe0d, b"\x00\x00\x01\x00\x01\x2a"),
        extension(0xdada, b"\x00"),
    ]));
    let Sniff::Complete(hello) = client_hello(&wire, MAX) else { panic!() };
    assert_eq!(hello.server_name, Some("cloud.example.com".parse().unwrap()));
    assert_eq!(hello.alpn, [&b"h2"[..], b"http/1.1"].into_iter().collect());
    assert!(hello.ech);
    assert_eq!((hello.legacy_version, hello.wire_len), (0x0303, wire.len()));
}

#[test]
fn the_inner_form_of_ech_is_not_the_outer() {
    let Sniff::Complete(hello) = read(&[extension(0xfe0d, b"\x01")]) else { panic!() };
    assert!(!hello.ech);
}

#[test]
fn a_hello_without_extensions_has_no_name() {
    assert_eq!(name_of(client_hello(&record(&message_with(b"")), MAX)), None);
    assert_eq!(name_of(read(&[])), None);
}

#[test]
fn any_fragmentation_gives_the_same_answer() {
    let message = message(&[sni("a.example"), extension(21, &[0; 1700])]);
    for size in [1, 2, 3, 4, 5, 7, 100, 1024, 16384] {
        let wire = records(&message, size);
        let mut reader = ClientHelloReader::new(MAX);
        for end in 0..wire.len() {
            assert_eq!(reader.read(&wire[..end]), Sniff::Incomplete, "{size} {end}");
        }
        let answer = reader.read(&wire);
        assert_eq!(answer, client_hello(&wire, MAX));
        assert!(matches!(&answer, Sniff::Complete(hello) if hello.wire_len == wire.len()));
        assert_eq!(name_of(answer), Some("a.example".into()));
        // A reader that has answered is as new.
        assert_eq!(reader.read(&wire), client_hello(&wire, MAX));
    }
}

#[test]
fn what_follows_the_hello_does_not_matter() {
    let hello = message(&[sni("a.example")]);
    let alone = records(&hello, 100);
    for behind in [&b"\x14\x03\x03\x00\x01\x01"[..], b"\x17\x03\x03\x00\x02ab", b"GET /", b"\x16\x03"] {
        let answer = client_hello(&[&alone, behind].concat(), MAX);
        assert_eq!(answer, client_hello(&alone, MAX));
    }
    // Another message, and the start of a third, in the record of the hello.
    let shared = record(&[&hello[..], b"\x0b\x00\x00\x01x\x10\x00"].concat());
    let Sniff::Complete(parsed) = client_hello(&shared, MAX) else { panic!() };
    assert_eq!(parsed.wire_len, shared.len());
    assert_eq!(parsed.server_name, Some("a.example".parse().unwrap()));
}

#[test]
fn the_record_layer_is_checked() {
    malformed(&client_hello(b"\x16\x03\x01\x00\x00", MAX));
    malformed(&client_hello(b"\x16\x03\x01\x40\x01", MAX));
    // In a later record too, and as soon as the byte is there.
    let first = record(&message(&[sni("a.example")])[..50]);
    for (next, rejection) in [
        (&b"\x14"[..], Rejection::UnexpectedMessage),
        (b"\x15\x03", Rejection::UnexpectedMessage),
        (b"\x16\x02", Rejection::Malformed("the version of a record is not 3.x")),
        (b"\x16\x03\x03\x00\x00", Rejection::Malformed("a handshake record of length 0")),
    ] {
        assert_eq!(client_hello(&[&first, next].concat(), MAX), Sniff::Rejected(rejection));
    }
    for minor in 0..=4 {
        let mut wire = record(&message(&[sni("a.example")]));
        wire[2] = minor;
        assert_eq!(name_of(client_hello(&wire, MAX)), Some("a.example".into()));
    }
}

#[test]
fn other_messages_and_large_ones_are_refused_at_their_header() {
    assert_eq!(client_hello(b"\x16\x03\x01\x00\x10\x02", MAX), Sniff::Rejected(Rejection::UnexpectedMessage));
    let header = records(b"\x01\x01\x00\x00", 1);
    assert_eq!(client_hello(&header, 65536 + 4), Sniff::Incomplete);
    assert_eq!(client_hello(&header, 65536 + 3), Sniff::Rejected(Rejection::TooLarge));
    assert_eq!(client_hello(&header[..header.len() - 1], 0), Sniff::Incomplete);
}

#[test]
fn the_limit_counts_the_message_alone() {
    let hello = message(&[sni("a.example")]);
    let wire = [&records(&hello, 1)[..], &record(&[0; 5000])].concat();
    assert_eq!(name_of(client_hello(&wire, hello.len())), Some("a.example".into()));
    assert_eq!(client_hello(&wire, hello.len() - 1), Sniff::Rejected(Rejection::TooLarge));
}

#[test]
fn never_incomplete_beyond_max_wire() {
    for limit in [100, 4096, 50_000] {
        let [high, low] = u16::try_from(limit - MESSAGE_HEADER).unwrap().to_be_bytes();
        let all_but_one = [&[1, 0, high, low][..], &vec![0; limit - MESSAGE_HEADER - 1]].concat();
        let fragment = all_but_one.len().div_ceil(MAX_RECORDS - 1);
        let wire = [records(&all_but_one, fragment), record(&[0; MAX_FRAGMENT])].concat();
        let last = wire.len() - 1;
        assert!(last <= ClientHelloReader::max_wire(limit));
        assert_eq!(client_hello(&wire[..last], limit), Sniff::Incomplete);
        assert_ne!(client_hello(&wire, limit), Sniff::Incomplete);
    }
}

#[test]
fn records_are_counted() {
    let message = message(&[sni("a.example"), extension(21, &[0; 6000])]);
    assert_eq!(client_hello(&records(&message, 1), MAX), Sniff::Rejected(Rejection::TooManyRecords));
    let wire = records(&message, 1);
    let most = MAX_RECORDS * (RECORD_HEADER + 1);
    assert_eq!(client_hello(&wire[..most + RECORD_HEADER - 1], MAX), Sniff::Incomplete);
    assert_eq!(name_of(client_hello(&records(&message, 2), MAX)), Some("a.example".into()));
}

#[test]
fn names_are_normalised_and_what_is_none_is_kept_for_the_log() {
    assert_eq!(name_of(read(&[sni("A.example.")])), Some("a.example".into()));
    assert_eq!(name_of(read(&[sni("_x.example")])), Some("_x.example".into()));
    for name in [
        "",
        ".",
        "a.example..",
        "a b.example",
        "a.example\0.evil.example",
        "a/b",
        "a..example",
        "a.example:443",
        "192.0.2.1",
        "2001:db8::1",
        "[2001:db8::1]",
        "*.example",
        "b\u{fc}cher.example",
        &"a".repeat(64),
        &"abcdefg.".repeat(33),
    ] {
        let Sniff::Complete(hello) = read(&[sni(name)]) else { panic!("{name:?}") };
        assert_eq!((hello.server_name, hello.raw_name), (None, Some(RawName::new(name.as_bytes()))));
    }
}

#[test]
fn a_name_that_two_parsers_could_take_for_two_is_refused() {
    let name = |name: &str| [&[0][..], &vector16(name.as_bytes())].concat();
    let list = |entries: &[Vec<u8>]| extension(0, &vector16(&entries.concat()));
    malformed(&read(&[sni("a.example"), sni("a.example")]));
    malformed(&read(&[list(&[name("a.example"), name("b.example")])]));
    malformed(&read(&[list(&[name("a.example"), name("a.example")])]));
    malformed(&read(&[extension(0, b"")]));
    malformed(&read(&[extension(0, b"\x00\x00")]));
    // Bytes behind the list, behind the name, and a length that reaches out.
    malformed(&read(&[extension(0, &[vector16(&name("a.example")), vec![0]].concat())]));
    malformed(&read(&[list(&[name("a.example"), vec![0]])]));
    malformed(&read(&[extension(0, b"\x00\x05\x00\x00\x03ab")]));
    malformed(&read(&[extension(0, b"\x00\x06\x00\x00\x02ab")]));
    // A type that is not defined yet is skipped by its length.
    let other = b"\x01\x00\x02xy".to_vec();
    assert_eq!(name_of(read(&[list(&[other.clone(), name("a.example")])])), Some("a.example".into()));
    assert_eq!(name_of(read(&[list(&[name("a.example"), other.clone()])])), Some("a.example".into()));
    assert_eq!(name_of(read(&[list(&[other])])), None);
    malformed(&read(&[list(&[b"\x01\x00\x03xy".to_vec()])]));
}

#[test]
fn lists_that_do_not_come_out_even_are_refused() {
    malformed(&read(&[extension(16, b"")]));
    malformed(&read(&[extension(16, b"\x00\x00")]));
    malformed(&read(&[extension(16, b"\x00\x03\x02h2x")]));
    malformed(&read(&[extension(16, b"\x00\x01\x00")]));
    malformed(&read(&[extension(16, b"\x00\x03\x03h2")]));
    malformed(&read(&[extension(0x2a2a, b""), extension(0x2a2a, b"")]));
    malformed(&read(&[vec![0, 21, 0]]));
    malformed(&read(&[vec![0, 21, 0, 2, 0]]));
    // Bytes behind the extensions, and extensions that reach out of the message.
    malformed(&client_hello(&record(&message_with(b"\x00\x00\x00")), MAX));
    malformed(&client_hello(&record(&message_with(b"\x00\x01")), MAX));
    malformed(&client_hello(&record(&message_with(b"\x00")), MAX));
}

#[test]
fn two_thousand_protocols_are_read() {
    let list = b"\x03p/1".repeat(2000);
    let Sniff::Complete(hello) = read(&[extension(16, &vector16(&list)), sni("a.example")]) else { panic!() };
    assert_eq!(hello.alpn.as_wire(), list);
    assert!(hello.server_name.is_some());
}

#[test]
fn the_fixed_fields_are_checked() {
    let whole = message(&[sni("a.example")]);
    // Truncates a message inside each of its fields and corrects its length. Only the place where the
    // extensions would begin is a valid end.
    let without_extensions = message_with(b"").len();
    for end in 4..whole.len() {
        let mut cut = whole[..end].to_vec();
        cut[3] = u8::try_from(end - 4).unwrap();
        let answer = client_hello(&record(&cut), MAX);
        if end == without_extensions {
            assert_eq!(name_of(answer), None);
        } else {
            malformed(&answer);
        }
    }
    let session_id = 4 + 2 + 32;
    let ciphers = session_id + 33;
    for (at, value) in [(session_id, 33), (ciphers + 1, 0), (ciphers + 1, 3), (ciphers + 6, 0)] {
        let mut bad = whole.clone();
        bad[at] = value;
        malformed(&client_hello(&record(&bad), MAX));
    }
}

/// 85,000 calls. A reader that started over each time would look at billions of bytes, and this test would
/// not end.
#[test]
fn the_largest_hello_in_drips_costs_linear_time() {
    let padding = extension(21, &vec![0; 65000]);
    let wire = records(&message(&[sni("a.example"), padding]), 16);
    let mut reader = ClientHelloReader::new(MAX);
    for end in 0..wire.len() {
        assert_eq!(reader.read(&wire[..end]), Sniff::Incomplete);
    }
    assert_eq!(name_of(reader.read(&wire)), Some("a.example".into()));
}

/// The most extensions that fit, of all different types, and of one type.
#[test]
fn a_hello_full_of_extensions_is_nothing_special() {
    let all: Vec<Vec<u8>> = (100..16_300).map(|kind| extension(kind, b"")).collect();
    let wire = |extensions: &[Vec<u8>]| records(&message(extensions), MAX_FRAGMENT);
    assert_eq!(name_of(client_hello(&wire(&all), MAX)), None);
    malformed(&client_hello(&wire(&vec![extension(100, b""); 16_000]), MAX));
}
