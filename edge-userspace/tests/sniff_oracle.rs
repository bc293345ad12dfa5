//! The ClientHello reader against an independent one: `rustls::server::Acceptor`.
//!
//! Where rustls accepts a hello we must accept it too and read the same server name and ALPN list from it. The
//! exceptions are in [`known_difference`], each with its reason. The other way round, we must refuse what rustls
//! finds wrong with the fields that we read ([`is_ours_to_refuse`]); it judges ciphers and keys as well, which is no
//! affair of the edge.
//!
//! `EDGE_ORACLE_HELLOS` sets how many hellos are made, 100,000 by default.

#![expect(clippy::unwrap_used, reason = "what cannot be converted is a failing test")]

use std::io::Cursor;

use edge::{
    sniff::{
        Rejection, Sniff,
        tls::{ClientHello, ClientHelloReader, MAX_RECORDS, client_hello},
    },
    spec::HostName,
};
use proptest::{collection::vec, option::weighted, prelude::*, sample::Index, test_runner::TestRunner};
use rustls::{Error, InvalidMessage, server::Acceptor};

/// rustls takes a body of 65,535 bytes.
const MAX: usize = 65535 + 4;

type Extension = (u16, Vec<u8>);

fn vector8(data: &[u8]) -> Vec<u8> {
    [&[u8::try_from(data.len()).unwrap()], data].concat()
}

fn vector16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

/// A ClientHello and how it goes on the wire.
#[derive(Clone, Debug)]
struct Hello {
    /// Everything before the extensions.
    fixed: Vec<u8>,
    extensions: Vec<Extension>,
    /// Sizes of its records, taken in turn.
    records: Vec<usize>,
    /// The bytes behind the last record.
    behind: Vec<u8>,
}

impl Hello {
    /// The handshake message.
    fn message(&self) -> Vec<u8> {
        let encode = |(kind, data): &Extension| [&kind.to_be_bytes()[..], &vector16(data)].concat();
        let extensions: Vec<u8> = self.extensions.iter().flat_map(encode).collect();
        [&[1, 0][..], &vector16(&[&self.fixed[..], &vector16(&extensions)].concat())].concat()
    }

    /// The data of the extension of this type.
    fn data_of(&mut self, kind: u16) -> Option<&mut Vec<u8>> {
        self.extensions.iter_mut().find(|extension| extension.0 == kind).map(|(_, data)| data)
    }

    /// A message in the records of this hello.
    fn wire(&self, mut message: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        let mut sizes = self.records.iter().cycle();
        // No more records than are taken.
        let least = message.len().div_ceil(MAX_RECORDS).max(1);
        while !message.is_empty() {
            let size = sizes.next().copied().unwrap_or(usize::MAX).clamp(least, 16384);
            let (fragment, rest) = message.split_at(size.min(message.len()));
            wire.extend_from_slice(&[22, 3, 1]);
            wire.extend_from_slice(&vector16(fragment));
            message = rest;
        }
        wire.extend_from_slice(&self.behind);
        wire
    }
}

/// The expected result for a well-formed hello.
#[derive(Clone, Debug)]
struct Expected {
    server_name: Option<String>,
    alpn: Vec<Vec<u8>>,
}

fn grease() -> impl Strategy<Value = u16> {
    (0_u16..16).prop_map(|n| n << 12 | 0x0a00 | n << 4 | 0x000a)
}

/// A list of 16-bit numbers with now and then a GREASE value (RFC 8701).
fn numbers(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![4 => any::<u16>(), 1 => grease()], count)
        .prop_map(|list| list.iter().flat_map(|number| number.to_be_bytes()).collect())
}

/// A name that rustls takes: its labels neither begin nor end with a hyphen, the last has a letter, and there are
/// no more than 253 octets with a dot at the end.
fn host_name() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,20}[a-zA-Z0-9])?\\.){0,4}[a-zA-Z][a-zA-Z0-9]{0,20}",
        1 => "([a-z]{62}[a-z0-9]\\.){3}[a-z]{60}",
    ]
}

/// The entries of a `ServerNameList`, and the name that is in it.
fn server_name() -> impl Strategy<Value = (Vec<u8>, Option<String>)> {
    let entry = |name: &str| [&[0][..], &vector16(name.as_bytes())].concat();
    prop_oneof![
        8 => host_name().prop_map(move |name| (entry(&name), Some(name.to_ascii_lowercase()))),
        1 => host_name().prop_map(move |name| (entry(&format!("{name}.")), Some(name.to_ascii_lowercase()))),
        1 => any::<std::net::IpAddr>().prop_map(move |address| (entry(&address.to_string()), None)),
        // A type that is not yet defined, behind the name: rustls passes over it.
        1 => (host_name(), 1_u8.., vec(any::<u8>(), 0..20)).prop_map(move |(name, kind, other)| {
            ([entry(&name), vec![kind], vector16(&other)].concat(), Some(name.to_ascii_lowercase()))
        }),
    ]
}

fn alpn() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let known = prop::sample::select(vec![&b"h2"[..], b"http/1.1", b"acme-tls/1", b"\x0a\x0a"]);
    prop_oneof![
        4 => vec(known.prop_map(<[u8]>::to_vec), 1..5),
        1 => vec(vec(any::<u8>(), 1..=255), 1..10),
        1 => vec(vec(any::<u8>(), 1..4), 60..=64),
    ]
}

/// Extensions that do not steer, as clients send them; rustls decodes each of these types.
fn others() -> impl Strategy<Value = Vec<Extension>> {
    let key_shares =
        vec((any::<u16>(), prop_oneof![Just(32_usize), Just(65), Just(1216)]), 1..4).prop_map(|keys| {
            let entry = |(group, length): &(u16, usize)| {
                [&group.to_be_bytes()[..], &vector16(&vec![7; *length])].concat()
            };
            vector16(&keys.iter().flat_map(entry).collect::<Vec<u8>>())
        });
    // cipher suite, config_id, enc and payload behind the type of the outer form (RFC 9849 §5)
    let ech = (any::<[u8; 5]>(), 0_usize..200).prop_map(|(fixed, payload)| {
        [&[0][..], &fixed, &vector16(&[1; 32]), &vector16(&vec![2; payload + 1])].concat()
    });
    (
        weighted(0.9, numbers(1..8).prop_map(|list| (10, vector16(&list)))),
        weighted(0.8, Just((11, vec![1, 0]))),
        weighted(0.8, numbers(1..5).prop_map(|list| (43, vector8(&list)))),
        weighted(0.8, key_shares.prop_map(|data| (51, data))),
        weighted(0.8, Just((45, vec![1, 1]))),
        weighted(0.5, Just((23, vec![]))),
        weighted(0.5, Just((5, vec![1, 0, 0, 0, 0]))),
        weighted(0.5, Just((0xff01, vec![0]))),
        weighted(0.5, vec(any::<u8>(), 0..100).prop_map(|ticket| (35, ticket))),
        weighted(0.4, ech.prop_map(|data| (0xfe0d, data))),
        weighted(0.4, (0_usize..600).prop_map(|length| (21, vec![0; length]))),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i, j, k)| {
            [a, b, c, d, e, f, g, h, i, j, k].into_iter().flatten().collect()
        })
}

/// GREASE and types that nobody has defined, each once.
fn unknown() -> impl Strategy<Value = Vec<Extension>> {
    let kind = prop_oneof![2 => grease(), 1 => 0x4000_u16..0x5000];
    vec((kind, vec(any::<u8>(), 0..30)), 0..4).prop_map(|mut list| {
        list.sort();
        list.dedup_by_key(|extension| extension.0);
        list
    })
}

fn record_sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        6 => Just(vec![16384]),
        3 => vec(1_usize..600, 1..6),
        1 => vec(1_usize..4, 1..4),
    ]
}

/// Bytes that may follow a hello outside its last record.
fn behind() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => Just(vec![]),
        1 => Just(b"\x14\x03\x03\x00\x01\x01".to_vec()),
        1 => vec(any::<u8>(), 1..40).prop_map(|data| [&[23, 3, 3][..], &vector16(&data)].concat()),
    ]
}

prop_compose! {
    fn well_formed()(
        version in prop_oneof![8 => Just(0x0303_u16), 1 => 0x0300_u16..0x0305],
        random in any::<[u8; 32]>(),
        session_id in prop_oneof![3 => vec(any::<u8>(), 32), 1 => vec(any::<u8>(), 0..32)],
        ciphers in numbers(1..30),
        signatures in numbers(1..10),
        server_name in weighted(0.9, server_name()),
        alpn in weighted(0.7, alpn()),
        others in others(),
        unknown in unknown(),
    )(
        extensions in {
            let mut list: Vec<Extension> = [others, unknown].concat();
            list.push((13, vector16(&signatures)));
            list.extend(server_name.as_ref().map(|(entries, _)| (0, vector16(entries))));
            list.extend(alpn.as_ref().map(|names| {
                (16, vector16(&names.iter().flat_map(|name| vector8(name)).collect::<Vec<u8>>()))
            }));
            Just(list).prop_shuffle()
        },
        fixed in Just([&version.to_be_bytes()[..], &random, &vector8(&session_id), &vector16(&ciphers), &[1, 0]].concat()),
        expected in Just(Expected {
            server_name: server_name.and_then(|(_, name)| name),
            alpn: alpn.unwrap_or_default(),
        }),
        records in record_sizes(),
        behind in behind(),
    ) -> (Hello, Expected) {
        (Hello { fixed, extensions, records, behind }, expected)
    }
}

/// Damage done to bytes.
#[derive(Clone, Debug)]
enum Mutation {
    Set(Index, u8),
    /// Adds to a byte: lengths that are off by little.
    Add(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Copies a piece to another place: extensions and names that appear twice.
    Copy(Index, usize, Index),
    Truncate(Index),
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match self {
            Self::Set(at, value) => *at.get_mut(bytes) = *value,
            Self::Add(at, value) => {
                let byte = at.get_mut(bytes);
                *byte = byte.wrapping_add(*value);
            }
            Self::Insert(at, piece) => {
                let at = at.index(length);
                bytes.splice(at..at, piece.iter().copied());
            }
            Self::Remove(at, count) => {
                let at = at.index(length);
                bytes.drain(at..length.min(at + count));
            }
            Self::Copy(from, count, to) => {
                let from = from.index(length);
                let piece = bytes[from..length.min(from + count)].to_vec();
                let to = to.index(length);
                bytes.splice(to..to, piece);
            }
            Self::Truncate(at) => bytes.truncate(at.index(length)),
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = any::<Index>;
    prop_oneof![
        3 => (index(), any::<u8>()).prop_map(|(at, value)| Mutation::Set(at, value)),
        3 => (index(), prop_oneof![Just(1), Just(255), Just(2), Just(4)]).prop_map(|(at, n)| Mutation::Add(at, n)),
        1 => (index(), vec(any::<u8>(), 1..8)).prop_map(|(at, piece)| Mutation::Insert(at, piece)),
        1 => (index(), 1_usize..40).prop_map(|(at, count)| Mutation::Remove(at, count)),
        2 => (index(), 1_usize..60, index()).prop_map(|(from, count, to)| Mutation::Copy(from, count, to)),
        1 => index().prop_map(Mutation::Truncate),
    ]
}

/// Where a hello is damaged.
#[derive(Clone, Debug)]
enum Place {
    /// Its `ServerNameList` is another, of these types and names.
    Names(Vec<(u8, String)>),
    /// In the data of an extension of this type; the lengths around it are right.
    Extension(u16),
    /// In the message; the length of the message is right.
    Message,
    /// Anywhere.
    Wire,
}

/// Wire bytes of a hello that has been damaged.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![4 => Just(0_u8), 1 => any::<u8>()];
    let name = prop_oneof![4 => host_name(), 1 => Just(String::new()), 1 => "[ -~]{1,20}"];
    let place = prop_oneof![
        2 => vec((kind, name), 0..4).prop_map(Place::Names),
        3 => prop::sample::select(vec![0, 16]).prop_map(Place::Extension),
        2 => Just(Place::Message),
        2 => Just(Place::Wire),
    ];
    (well_formed(), vec(mutation(), 1..4), place).prop_map(|((mut hello, _), mutations, place)| {
        let damage = |bytes: &mut Vec<u8>| {
            for mutation in &mutations {
                mutation.apply(bytes);
            }
        };
        match place {
            Place::Names(names) => {
                let entry = |(kind, name): &(u8, String)| [&[*kind], &vector16(name.as_bytes())[..]].concat();
                let list = vector16(&names.iter().flat_map(entry).collect::<Vec<u8>>());
                if let Some(data) = hello.data_of(0) {
                    *data = list;
                }
            }
            Place::Extension(kind) => {
                if let Some(data) = hello.data_of(kind) {
                    damage(data);
                }
            }
            Place::Message => {
                let mut message = hello.message();
                damage(&mut message);
                if let Some(body) = message.len().checked_sub(4) {
                    message[1..4].copy_from_slice(&u32::try_from(body).unwrap().to_be_bytes()[1..]);
                }
                return hello.wire(&message);
            }
            Place::Wire => {
                let mut wire = hello.wire(&hello.message());
                damage(&mut wire);
                return wire;
            }
        }
        hello.wire(&hello.message())
    })
}

#[derive(Debug)]
enum Oracle {
    Accepts { server_name: Option<String>, alpn: Vec<Vec<u8>> },
    Waits,
    Refuses(Error),
}

fn oracle(wire: &[u8]) -> Oracle {
    let mut acceptor = Acceptor::default();
    let mut wire = Cursor::new(wire);
    loop {
        match acceptor.read_tls(&mut wire) {
            Ok(0) => return Oracle::Waits,
            Ok(_) => {}
            Err(error) => return Oracle::Refuses(Error::General(error.to_string())),
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let alpn = hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect());
                return Oracle::Accepts {
                    server_name: hello.server_name().map(str::to_owned),
                    alpn: alpn.unwrap_or_default(),
                };
            }
            Err((error, _)) => return Oracle::Refuses(error),
        }
    }
}

/// Where we refuse what rustls accepts, on purpose.
fn known_difference(rejection: Rejection) -> bool {
    matches!(
        rejection,
        // rustls allows 2^14 + 2048 bytes, the bound for encrypted records.
        Rejection::Malformed(
            "a record is longer than 2^14 bytes"
            // rustls stops at the first name of an unknown type and takes the bytes behind it for granted; another
            // server might read a second host name there.
            | "a name in server_name is cut" | "server_name has two host names"
        )
    )
}

/// Where rustls refuses what we must refuse too.
fn is_ours_to_refuse(error: &Error) -> bool {
    let Error::InvalidMessage(error) = error else { return false };
    match error {
        InvalidMessage::DuplicateExtension(_) => true,
        InvalidMessage::TrailingData(what) => *what == "ClientHelloPayload",
        InvalidMessage::IllegalEmptyList(what) => {
            ["ServerNames", "ProtocolNames", "CipherSuites", "Compressions"].contains(what)
        }
        _ => false,
    }
}

/// Our answer, which must be the same in one piece and in two.
fn ours(wire: &[u8]) -> Sniff<ClientHello> {
    let answer = client_hello(wire, MAX);
    let mut reader = ClientHelloReader::new(MAX);
    let first = reader.read(&wire[..wire.len() / 2]);
    assert_eq!(if first == Sniff::Incomplete { reader.read(wire) } else { first }, answer);
    answer
}

fn compare(wire: &[u8]) -> Result<(), TestCaseError> {
    match (oracle(wire), ours(wire)) {
        (Oracle::Accepts { server_name, alpn }, Sniff::Complete(hello)) => {
            prop_assert_eq!(hello.server_name.as_ref().map(HostName::as_str), server_name.as_deref());
            prop_assert_eq!(hello.alpn.iter().collect::<Vec<_>>(), alpn);
        }
        (Oracle::Accepts { .. }, Sniff::Rejected(rejection)) => {
            prop_assert!(known_difference(rejection), "rustls accepts, we say {}", rejection);
        }
        (Oracle::Waits, Sniff::Complete(hello)) => {
            prop_assert!(false, "rustls waits for more, we have {:?}", hello);
        }
        (oracle @ Oracle::Accepts { .. }, Sniff::Incomplete) => {
            prop_assert!(false, "we wait for more, rustls has {:?}", oracle);
        }
        // A name that cannot be a host name is no reason to refuse the client, but is not used for routing.
        (
            Oracle::Refuses(Error::InvalidMessage(InvalidMessage::InvalidServerName)),
            Sniff::Complete(hello),
        ) => {
            prop_assert!(hello.server_name.is_none(), "rustls finds no name, we have {:?}", hello);
        }
        (Oracle::Refuses(error), Sniff::Complete(hello)) => {
            prop_assert!(!is_ours_to_refuse(&error), "rustls says {}, we have {:?}", error, hello);
        }
        (Oracle::Waits | Oracle::Refuses(_), _) => {}
    }
    Ok(())
}

fn runner() -> TestRunner {
    let hellos: u32 = std::env::var("EDGE_ORACLE_HELLOS").map_or(100_000, |number| number.parse().unwrap());
    // Half for each of the two properties. Recordings of failures would be written next to the sources.
    TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(hellos / 2) })
}

#[test]
fn well_formed_hellos_are_read_as_they_were_meant() {
    let all = runner().run(&well_formed(), |(hello, expected)| {
        let wire = hello.wire(&hello.message());
        let Sniff::Complete(found) = ours(&wire) else {
            return Err(TestCaseError::fail(format!("{:?}", ours(&wire))));
        };
        prop_assert_eq!(found.server_name.as_ref().map(HostName::as_str), expected.server_name.as_deref());
        prop_assert_eq!(found.alpn.iter().collect::<Vec<_>>(), expected.alpn);
        prop_assert_eq!(found.wire_len, wire.len() - hello.behind.len());
        prop_assert!(matches!(oracle(&wire), Oracle::Accepts { .. }), "rustls: {:?}", oracle(&wire));
        compare(&wire)
    });
    all.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn damaged_hellos_are_never_read_differently() {
    let all = runner().run(&damaged(), |wire| compare(&wire));
    all.unwrap_or_else(|failure| panic!("{failure}"));
}
