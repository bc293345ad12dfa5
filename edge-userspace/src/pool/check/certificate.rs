//! The certificate that a backend shows: its validity and its names. For `doctor`; nothing is verified here,
//! because nothing is decided by it.
//!
//! TLS 1.3 encrypts the certificate and TLS 1.2 does not, so the ClientHello offers at most 1.2. A backend
//! that speaks only 1.3 does not show it. Pure: bytes in, certificate out.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

/// The longest flight of handshake messages that is read: chains of a few certificates.
pub const MAX_FLIGHT: usize = 64 * 1024;
/// Names that are kept; certificates of large hosters have hundreds.
const MAX_NAMES: usize = 256;

/// The contents of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// From when it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// Its names and addresses, wildcards as they stand (`*.example.com`).
    pub names: Vec<String>,
}

impl Certificate {
    /// Whether it is valid for this name: a wildcard stands for one label, the first (RFC 9525 §6.3).
    pub fn covers(&self, name: &str) -> bool {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|own| match own.strip_prefix("*.") {
            Some(suffix) => parent.is_some_and(|parent| parent.eq_ignore_ascii_case(suffix)),
            None => own.eq_ignore_ascii_case(name),
        })
    }
}

/// The contents of a server's first flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Not enough of it yet.
    Incomplete,
    /// Its certificate, the first of the chain.
    Certificate(Certificate),
    /// An alert in its place; 70 (`protocol_version`) means that it speaks no TLS 1.2.
    Alert(u8),
    /// Something else than a certificate, or one that cannot be read.
    Nothing,
}

/// Reads the server's flight from its first byte on.
pub fn shown(received: &[u8]) -> Shown {
    const ALERT: u8 = 21;
    const HANDSHAKE: u8 = 22;
    let mut messages = Vec::new();
    let mut rest = received;
    // Records (RFC 5246 §6.2.1), whose fragments make up the messages.
    let after = loop {
        let [kind, 3, _, high, low, body @ ..] = rest else {
            break match rest {
                [HANDSHAKE | ALERT] | [HANDSHAKE | ALERT, 3, ..] | [] => Shown::Incomplete,
                _ => Shown::Nothing,
            };
        };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let fragment = &body[..len.min(body.len())];
        match (*kind, fragment) {
            (HANDSHAKE, fragment) => messages.extend_from_slice(fragment),
            (ALERT, [_, description, ..]) => break Shown::Alert(*description),
            (ALERT, _) => break Shown::Incomplete,
            _ => break Shown::Nothing,
        }
        rest = body.get(len..).unwrap_or_default();
    };
    // Bytes behind the messages do not change the result: the answer must not depend on how much was read at
    // once.
    match message(&messages) {
        Shown::Incomplete => after,
        shown => shown,
    }
}

/// Looks for the certificate among the messages (RFC 5246 §7.4).
fn message(mut messages: &[u8]) -> Shown {
    const SERVER_HELLO: u8 = 2;
    const CERTIFICATE: u8 = 11;
    loop {
        let [kind, a, b, c, body @ ..] = messages else { return Shown::Incomplete };
        let len = u24([*a, *b, *c]);
        match *kind {
            SERVER_HELLO => match body.get(len..) {
                Some(rest) => messages = rest,
                None => return Shown::Incomplete,
            },
            CERTIFICATE => {
                // The length of the list, then of the first certificate in it.
                let [_, _, _, a, b, c, list @ ..] = body else { return Shown::Incomplete };
                return match list.get(..u24([*a, *b, *c])) {
                    Some(der) => parse(der).map_or(Shown::Nothing, Shown::Certificate),
                    None => Shown::Incomplete,
                };
            }
            _ => return Shown::Nothing,
        }
    }
}

fn u24([a, b, c]: [u8; 3]) -> usize {
    usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)
}

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0] version` and `[3] extensions` of a `TBSCertificate`.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `[2] dNSName` and `[7] iPAddress` of a `GeneralName` (RFC 5280 §4.2.1.6).
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// id-ce-subjectAltName, 2.5.29.17
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// Reads a certificate (RFC 5280 §4.1).
fn parse(der: &[u8]) -> Option<Certificate> {
    let mut certificate = Der(Der(der).expect(SEQUENCE)?);
    let mut tbs = Der(certificate.expect(SEQUENCE)?);
    tbs.skip(VERSION);
    tbs.expect(INTEGER)?;
    let _signature = tbs.expect(SEQUENCE)?;
    let _issuer = tbs.expect(SEQUENCE)?;
    let mut validity = Der(tbs.expect(SEQUENCE)?);
    let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
    let _subject = tbs.expect(SEQUENCE)?;
    let _key = tbs.expect(SEQUENCE)?;
    let mut names = Vec::new();
    while let Some((tag, value)) = tbs.next() {
        if tag == EXTENSIONS {
            names = subject_alt_names(value).unwrap_or_default();
        }
    }
    Some(Certificate { not_before, not_after, names })
}

fn subject_alt_names(extensions: &[u8]) -> Option<Vec<String>> {
    let mut extensions = Der(Der(extensions).expect(SEQUENCE)?);
    while let Some(extension) = extensions.expect(SEQUENCE) {
        let mut extension = Der(extension);
        if extension.expect(OBJECT_ID)? != SUBJECT_ALT_NAME {
            continue;
        }
        // `critical` may stand between the two.
        let value = loop {
            if let (OCTET_STRING, value) = extension.next()? {
                break value;
            }
        };
        let mut general = Der(Der(value).expect(SEQUENCE)?);
        let mut names = Vec::new();
        while let (Some((tag, value)), true) = (general.next(), names.len() < MAX_NAMES) {
            match tag {
                DNS_NAME => names.push(value.escape_ascii().to_string()),
                IP_ADDRESS => names.extend(ip(value).map(|ip| ip.to_string())),
                _ => {}
            }
        }
        return Some(names);
    }
    None
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

/// Reads a time (RFC 5280 §4.1.2.5): always in UTC, with seconds.
fn time((tag, text): (u8, &[u8])) -> Option<SystemTime> {
    let digits = text.strip_suffix(b"Z")?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    let [month, day, hour, minute, second] =
        <[u64; 5]>::try_from(rest.chunks(2).map(number).collect::<Option<Vec<_>>>()?).ok()?;
    let valid =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 61;
    if !valid || rest.len() != 10 {
        return None;
    }
    let days = days_since_epoch(year, month, day)?;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

fn number(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar; `None` before it.
fn days_since_epoch(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years begin in March, so that the leap day is the last of one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    days.checked_sub(719_468)
}

/// A reader of DER (X.690): tag, length, value, one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let [tag, first, rest @ ..] = self.0 else { return None };
        let (len, rest) = match (*first, rest) {
            (short @ 0..=0x7f, rest) => (usize::from(short), rest),
            (0x81, [a, rest @ ..]) => (usize::from(*a), rest),
            (0x82, [a, b, rest @ ..]) => (u24([0, *a, *b]), rest),
            (0x83, [a, b, c, rest @ ..]) => (u24([*a, *b, *c]), rest),
            _ => return None,
        };
        let (value, after) = rest.split_at_checked(len)?;
        self.0 = after;
        Some((*tag, value))
    }

    /// The next value, if it has this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value)
    }

    /// Passes over a value if it has this tag.
    fn skip(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.next();
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Made by openssl 3.0: self-signed, for `cloud.example.com`, `*.home.example` and 192.0.2.1.
    pub(in crate::pool) const DER: &[u8] = include_bytes!("testdata/certificate.der");

    fn expected() -> Certificate {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Certificate {
            not_before: at(1_795_442_899),
            not_after: at(2_584_361_299),
            names: ["cloud.example.com", "*.home.example", "192.0.2.1"].map(str::to_owned).to_vec(),
        }
    }

    /// A ServerHello and the certificate, in records of at most `fragment` bytes.
    fn flight(fragment: usize) -> Vec<u8> {
        let u24 = |len: usize| u32::try_from(len).unwrap().to_be_bytes()[1..].to_vec();
        let list = [&u24(DER.len())[..], DER].concat();
        let body = [&u24(list.len())[..], &list].concat();
        let messages = [&[2, 0, 0, 38][..], &[7; 38], &[11], &u24(body.len()), &body].concat();
        let record = |bytes: &[u8]| {
            [&[22, 3, 3][..], &u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
        };
        messages.chunks(fragment).flat_map(record).collect()
    }

    #[test]
    fn a_certificate_is_read_however_it_is_cut() {
        for fragment in [1, 7, 100, 16384] {
            let flight = flight(fragment);
            assert_eq!(shown(&flight), Shown::Certificate(expected()));
            for len in 0..flight.len() {
                assert_eq!(shown(&flight[..len]), Shown::Incomplete, "{len} bytes in records of {fragment}");
            }
        }
    }

    #[test]
    fn what_follows_the_certificate_changes_nothing() {
        for after in [&[21, 3, 3, 0, 2, 2, 40][..], &[20, 3, 3, 0, 1, 1], b"HTTP/1.1 400"] {
            assert_eq!(shown(&[&flight(100), after].concat()), Shown::Certificate(expected()));
        }
    }

    #[test]
    fn a_wildcard_covers_one_label() {
        let certificate = expected();
        for (name, covered) in [
            ("cloud.example.com", true),
            ("CLOUD.example.com", true),
            ("x.cloud.example.com", false),
            ("nas.home.example", true),
            ("a.nas.home.example", false),
            ("home.example", false),
        ] {
            assert_eq!(certificate.covers(name), covered, "{name}");
        }
    }

    #[test]
    fn what_is_none_is_told_apart() {
        assert_eq!(shown(&[21, 3, 3, 0, 2, 2, 70]), Shown::Alert(70));
        assert_eq!(shown(&[21, 3, 3, 0, 2, 2]), Shown::Incomplete);
        assert_eq!(shown(b"HTTP/1.1 400"), Shown::Nothing);
        // A wrong version, which no more bytes make a record.
        assert_eq!(shown(&[22, 2]), Shown::Nothing);
        let hello_done = [22, 3, 3, 0, 4, 14, 0, 0, 0];
        assert_eq!(shown(&hello_done), Shown::Nothing);
    }

    #[test]
    fn a_broken_certificate_is_no_panic() {
        for at in 0..DER.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut broken = DER.to_vec();
                broken[at] ^= flip;
                let _ = parse(&broken);
            }
            assert_eq!(parse(&DER[..at]), None);
        }
    }

    #[test]
    fn times_are_in_utc() {
        let seconds = |tag, text: &[u8]| {
            time((tag, text)).map(|at| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
        };
        assert_eq!(seconds(UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(seconds(UTC_TIME, b"491231235959Z"), Some(2_524_607_999));
        assert_eq!(seconds(GENERALIZED_TIME, b"20000229120000Z"), Some(951_825_600));
        assert_eq!(seconds(GENERALIZED_TIME, b"99991231235959Z"), Some(253_402_300_799));
        for bad in [&b"491231235959"[..], b"4912312359Z", b"491331235959Z", b"49123123595xZ", b"Z", b""] {
            assert_eq!(seconds(UTC_TIME, bad), None, "{bad:?}");
        }
        assert_eq!(seconds(GENERALIZED_TIME, b"19690101000000Z"), None);
    }
}
