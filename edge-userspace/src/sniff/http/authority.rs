//! `host [":" port]`, as a Host field and a request target have it (RFC 9110 §7.2, RFC 3986 §3.2).

use std::net::{IpAddr, Ipv6Addr};

use crate::{
    sniff::Rejection,
    spec::{HostName, HostNameError},
};

/// Whom an authority names. The port is checked and dropped: the listener knows its own.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Authority {
    /// A Host field without a value: the target has no authority (RFC 9110 §7.2).
    Empty,
    Name(HostName),
    Address(IpAddr),
}

impl Authority {
    /// User information before the host is refused (RFC 9110 §4.2.4), as `@` is in no host name.
    pub(super) fn parse(authority: &[u8]) -> Result<Self, Rejection> {
        const BAD: Rejection = Rejection::Malformed("the host is neither a name nor an address");
        if authority.is_empty() {
            return Ok(Self::Empty);
        }
        if let Some(rest) = authority.strip_prefix(b"[") {
            let end = rest.iter().position(|&byte| byte == b']').ok_or(BAD)?;
            check_port(&rest[end + 1..])?;
            let address =
                std::str::from_utf8(&rest[..end]).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
            return address.map(|address| Self::Address(address.into())).ok_or(BAD);
        }
        let end = authority.iter().position(|&byte| byte == b':').unwrap_or(authority.len());
        let (host, port) = authority.split_at(end);
        check_port(port)?;
        match HostName::parse(host) {
            Ok(name) => Ok(Self::Name(name)),
            Err(HostNameError::IpLiteral) => {
                let host = host.strip_suffix(b".").unwrap_or(host);
                let address = std::str::from_utf8(host).ok().and_then(|text| text.parse().ok());
                address.map(Self::Address).ok_or(BAD)
            }
            Err(error) => Err(Rejection::BadName(error)),
        }
    }

    /// The name to route by; an address is none.
    pub(super) fn into_name(self) -> Option<HostName> {
        match self {
            Self::Name(name) => Some(name),
            Self::Empty | Self::Address(_) => None,
        }
    }
}

/// Nothing, or a colon and a number of 16 bits, which may be missing (RFC 3986 §3.2.3).
fn check_port(port: &[u8]) -> Result<(), Rejection> {
    let digits = match port {
        [] => return Ok(()),
        [b':', digits @ ..] => digits,
        _ => return Err(Rejection::Malformed("characters behind the host")),
    };
    let mut number = 0_u32;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(Rejection::Malformed("the port is no number"));
        }
        number = number * 10 + u32::from(digit - b'0');
        if number > u16::MAX.into() {
            return Err(Rejection::Malformed("the port is larger than 65535"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_checked_and_dropped() {
        let name = HostName::parse(b"a.example").unwrap();
        for text in ["a.example", "A.Example:80", "a.example.:", "a.example:0065535"] {
            assert_eq!(Authority::parse(text.as_bytes()), Ok(Authority::Name(name.clone())), "{text}");
        }
        for text in
            ["a.example:65536", "a.example:http", "a.example:-1", "a.example:8 0", "a.example:99999999999"]
        {
            assert!(matches!(Authority::parse(text.as_bytes()), Err(Rejection::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn addresses_are_no_names() {
        for text in
            ["192.0.2.1", "192.0.2.1:80", "192.0.2.1.", "[2001:db8::1]", "[2001:DB8::1]:8080", "[::1]:"]
        {
            let authority = Authority::parse(text.as_bytes()).unwrap();
            assert!(matches!(authority, Authority::Address(_)), "{text}");
            assert_eq!(authority.into_name(), None);
        }
        assert_eq!(Authority::parse(b"[2001:db8::1]:80"), Authority::parse(b"[2001:DB8:0::1]"));
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in
            ["[2001:db8::1", "[a.example]", "[fe80::1%25eth0]", "[::1]x", "[::1]:x", "2001:db8::1", ":80x"]
        {
            assert!(matches!(Authority::parse(text.as_bytes()), Err(Rejection::Malformed(_))), "{text}");
        }
        for text in
            ["user@a.example", "a.example@b.example", "a b", "a,b", "a%2eb", ":80", ".", "a\\b", "a\0"]
        {
            assert!(matches!(Authority::parse(text.as_bytes()), Err(Rejection::BadName(_))), "{text}");
        }
    }
}
