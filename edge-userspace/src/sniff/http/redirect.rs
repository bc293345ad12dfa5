//! The address of a request over TLS, for routes with `redirect = "https"`.

use std::fmt::Write;

use super::{Authority, Request, RequestHeadReader, read_request};
use crate::sniff::Rejection;

/// Where the tokens of ACME's HTTP-01 challenge are (RFC 8555 §8.3).
const CHALLENGES: &str = "/.well-known/acme-challenge/";
/// The longest `Location`, in bytes: RFC 9112 §3 recommends request lines of 8000, and an empty send buffer takes it.
const MAX_LOCATION: usize = 8192;

/// The https address of the request in `received`, which begins with a complete head. `None` for an ACME challenge,
/// which is answered in clear text.
///
/// The address has no port: https has its own. It consists of visible ASCII, whatever the request has.
///
/// # Errors
///
/// [`Rejection::Malformed`] for a request that names no host, [`Rejection::TooLarge`] for an address of more than
/// 8 KiB.
pub fn to_https(received: &[u8]) -> Result<Option<String>, Rejection> {
    const NO_HOST: Rejection = Rejection::Malformed("a redirect needs a host, and the request names none");
    let (end, fields) = RequestHeadReader::new(usize::MAX).advance(received)?.ok_or(NO_HOST)?;
    let request = read_request(&received[..end], fields)?;
    let (path, query) = request.path_and_query();
    if is_challenge(path) {
        return Ok(None);
    }
    let mut location = match request.authority {
        Authority::Empty => return Err(NO_HOST),
        Authority::Name(name) => format!("https://{name}"),
        Authority::Address(std::net::IpAddr::V6(address)) => format!("https://[{address}]"),
        Authority::Address(address) => format!("https://{address}"),
    };
    let slash = if path.is_empty() { "/" } else { path };
    for byte in slash.bytes().chain(query.bytes()) {
        if byte.is_ascii_graphic() {
            location.push(byte.into());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(location, "%{byte:02X}");
        }
    }
    if location.len() > MAX_LOCATION { Err(Rejection::TooLarge) } else { Ok(Some(location)) }
}

impl<'head> Request<'head> {
    /// The path, and the query with its `?`; both are empty where the target has none. A fragment, which no target
    /// should have (RFC 9112 §3.2), is left out: the client keeps its own.
    fn path_and_query(&self) -> (&'head str, &'head str) {
        let target = match self.target {
            // Neither CONNECT nor `OPTIONS *` has a path.
            _ if self.method == "CONNECT" => "",
            "*" => "",
            origin if origin.starts_with('/') => origin,
            absolute => {
                let rest = absolute.split_once("://").map_or("", |(_, rest)| rest);
                rest.find(['/', '?', '#']).map_or("", |end| &rest[end..])
            }
        };
        let target = target.split('#').next().unwrap_or_default();
        target.split_at(target.find('?').unwrap_or(target.len()))
    }
}

/// Whether a path is that of a token. Nothing else below that directory is: a server that resolves `..` or `%2e` would
/// answer for another page in clear text.
fn is_challenge(path: &str) -> bool {
    path.strip_prefix(CHALLENGES).is_some_and(|token| {
        !matches!(token, "." | "..")
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn location(head: &str) -> String {
        to_https(head.as_bytes()).unwrap().unwrap()
    }

    fn of(line: &str, host: &str) -> String {
        location(&format!("{line} HTTP/1.1\r\nHost: {host}\r\nA: b\r\n\r\nbody"))
    }

    #[test]
    fn the_address_is_that_of_the_request() {
        for (line, host, location) in [
            ("GET /", "A.Example.", "https://a.example/"),
            ("GET /a?b=c&d=%20", "a.example:8080", "https://a.example/a?b=c&d=%20"),
            ("HEAD //b.example/x", "a.example", "https://a.example//b.example/x"),
            ("POST /\\b.example@c", "a.example", "https://a.example/\\b.example@c"),
            ("GET /a#b?c", "a.example", "https://a.example/a"),
            ("GET http://a.example:80/x?y", "a.example", "https://a.example/x?y"),
            ("GET HTTP://A.example?y", "", "https://a.example/?y"),
            ("GET http://a.example", "a.example", "https://a.example/"),
            ("OPTIONS *", "a.example", "https://a.example/"),
            ("CONNECT a.example:443", "a.example", "https://a.example/"),
            ("GET /x", "192.0.2.1:80", "https://192.0.2.1/x"),
            ("GET /x", "[2001:DB8::1]:80", "https://[2001:db8::1]/x"),
        ] {
            assert_eq!(of(line, host), location, "{line}, {host}");
        }
        assert_eq!(location("\r\nGET /x HTTP/1.0\nHost: a.example\n\n"), "https://a.example/x");
        assert_eq!(location("SOURCE /x ICE/1.0\r\nHost: a.example\r\n\r\n"), "https://a.example/x");
    }

    #[test]
    fn a_challenge_is_one_token_below_its_directory() {
        let challenge = |target: &str| {
            to_https(format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n").as_bytes()) == Ok(None)
        };
        for token in ["", "abc_DEF-123", "test.txt", "a?b=/../c"] {
            assert!(challenge(&format!("{CHALLENGES}{token}")), "{token}");
            assert!(challenge(&format!("http://a.example{CHALLENGES}{token}")), "{token}");
        }
        for token in ["..", ".", "../x", "a/b", "a/../../x", "%2e%2e/x", "..%2fx", "a\\b", "a;b"] {
            assert!(!challenge(&format!("{CHALLENGES}{token}")), "{token}");
        }
        for target in [
            "/.well-known/acme-challenge",
            "/.WELL-KNOWN/acme-challenge/a",
            "/x?/.well-known/acme-challenge/a",
        ] {
            assert!(!challenge(target), "{target}");
        }
    }

    #[test]
    fn what_has_no_host_or_too_long_an_address_is_refused() {
        let nameless = [&b"GET / HTTP/1.0\r\n\r\n"[..], b"GET / HTTP/1.1\r\nHost:\r\n\r\n"];
        for head in nameless {
            assert!(matches!(to_https(head), Err(Rejection::Malformed(_))), "{}", head.escape_ascii());
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a.example\r\n\r\n", "a".repeat(9000));
        assert_eq!(to_https(long.as_bytes()), Err(Rejection::TooLarge));
    }

    proptest! {
        #[test]
        fn no_request_breaks_out_of_its_line(target in prop::collection::vec(any::<u8>(), 0..60)) {
            let head = [&b"GET /"[..], &target, b" HTTP/1.1\r\nHost: a.example\r\n\r\n"].concat();
            if let Ok(Some(location)) = to_https(&head) {
                prop_assert!(location.starts_with("https://a.example/"));
                prop_assert!(location.bytes().all(|byte| byte.is_ascii_graphic()), "{location:?}");
            }
        }
    }
}
