//! The ClientHello reader on what real clients sent: Debian 12's OpenSSL 3.0, GnuTLS 3.7, NSS 3.87 and curl 7.88,
//! Java 17, Python 3.11, Node 20 and Chromium 156. `captures/record.py` makes the recordings.

#![expect(clippy::unwrap_used, reason = "a failing conversion is a failing test")]

use edge::{
    sniff::{
        Rejection, Sniff, http,
        tls::{ClientHello, ClientHelloReader, client_hello},
    },
    spec::HostName,
};

/// The default of `limits.hello_bytes`.
const MAX: usize = 65536;
const NAME: Option<&str> = Some("cloud.example.com");

struct Capture {
    client: &'static str,
    bytes: &'static [u8],
    server_name: Option<&'static str>,
    alpn: Vec<String>,
    ech: bool,
}

/// `captures!(file, name, [protocols], ech)`
macro_rules! captures {
    ($(($client:literal, $name:expr, $alpn:expr, $ech:literal)),* $(,)?) => {
        [$(Capture {
            client: $client,
            bytes: include_bytes!(concat!("captures/", $client, ".bin")),
            server_name: $name,
            alpn: $alpn.iter().map(ToString::to_string).collect(),
            ech: $ech,
        }),*]
    };
}

fn captures() -> [Capture; 14] {
    let none: [&str; 0] = [];
    let many: Vec<String> = (0..20).map(|i| format!("protocol-{i:02}-{}", "x".repeat(40))).collect();
    captures![
        ("openssl-tls13", NAME, ["h2", "http/1.1"], false),
        ("openssl-tls12", NAME, none, false),
        ("openssl-tls10", NAME, none, false),
        ("openssl-no-name", None, none, false),
        ("openssl-acme", NAME, ["acme-tls/1"], false),
        ("openssl-three-records", NAME, many, false),
        ("gnutls", NAME, ["h2"], false),
        ("curl", NAME, ["h2", "http/1.1"], false),
        ("curl-address", None, ["h2", "http/1.1"], false),
        ("python", NAME, ["h2", "http/1.1"], false),
        ("chromium", NAME, ["h2", "http/1.1"], true),
        ("nss", NAME, none, false),
        ("java", NAME, ["h2", "http/1.1"], false),
        ("node", NAME, ["http/1.1"], false),
    ]
}

/// The handshake message, without its records.
fn message(mut wire: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = wire {
        let (fragment, behind) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        message.extend_from_slice(fragment);
        wire = behind;
    }
    message
}

/// The message in records of the sizes given.
fn records(mut message: &[u8], mut size: impl FnMut() -> usize) -> Vec<u8> {
    let mut wire = Vec::new();
    while !message.is_empty() {
        let (fragment, rest) = message.split_at(size().min(message.len()));
        wire.extend_from_slice(&[22, 3, 1]);
        wire.extend_from_slice(&u16::try_from(fragment.len()).unwrap().to_be_bytes());
        wire.extend_from_slice(fragment);
        message = rest;
    }
    wire
}

/// Fed byte by byte, it waits for the last byte and then says the same as at once.
#[track_caller]
fn read_in_every_way(client: &str, wire: &[u8]) -> ClientHello {
    let mut reader = ClientHelloReader::new(MAX);
    for end in 0..wire.len() {
        assert_eq!(reader.read(&wire[..end]), Sniff::Incomplete, "{client}: {end} bytes one by one");
        assert_eq!(client_hello(&wire[..end], MAX), Sniff::Incomplete, "{client}: {end} bytes at once");
    }
    let answer = reader.read(wire);
    assert_eq!(client_hello(wire, MAX), answer, "{client}");
    match answer {
        Sniff::Complete(hello) => hello,
        other => panic!("{client}: {other:?}"),
    }
}

#[test]
fn each_client_is_understood_whatever_the_pieces() {
    for Capture { client, bytes, server_name, alpn, ech } in captures() {
        let hello = read_in_every_way(client, bytes);
        assert_eq!(hello.server_name.as_ref().map(HostName::as_str), server_name, "{client}");
        assert_eq!(hello.alpn.to_strings(), alpn, "{client}");
        assert_eq!(hello.ech, ech, "{client}");
        assert_eq!(hello.wire_len, bytes.len(), "{client}");
    }
}

#[test]
fn records_of_any_size_change_nothing() {
    let mut random = fastrand::Rng::with_seed(1);
    for Capture { client, bytes, .. } in captures() {
        let whole = read_in_every_way(client, bytes);
        let message = message(bytes);
        let check = |wire: Vec<u8>| {
            let hello = read_in_every_way(client, &wire);
            assert_eq!(hello.wire_len, wire.len(), "{client}");
            assert_eq!(ClientHello { wire_len: bytes.len(), ..hello }, whole, "{client}");
        };
        for size in [1, 2, 5] {
            check(records(&message, || size));
        }
        for _ in 0..4 {
            let largest = random.usize(1..=message.len());
            check(records(&message, || random.usize(1..=largest)));
        }
    }
}

#[test]
fn the_limit_counts_the_message_and_holds() {
    for Capture { client, bytes, .. } in captures() {
        let message = message(bytes);
        let wire = records(&message, || 1);
        assert!(matches!(client_hello(&wire, message.len()), Sniff::Complete(_)), "{client}");
        let refused = client_hello(&wire[..6 * 4], message.len() - 1);
        assert_eq!(refused, Sniff::Rejected(Rejection::TooLarge), "{client}");
    }
}

#[test]
fn on_an_http_listener_each_is_told_from_its_second_byte() {
    for Capture { client, bytes, .. } in captures() {
        assert_eq!(http::request_head(&bytes[..2], MAX), Sniff::Rejected(Rejection::TlsOnHttp), "{client}");
    }
}
