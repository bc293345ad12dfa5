//! Addresses and names of a configuration, each with what to write instead when it is none.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;
use toml::de::DeValue;

use super::{
    problem::Refusal,
    value::{Value, list, one_of, quoted},
};
use crate::spec::{BackendAddress, BackendAddressError, BackendHost, HostName, HostNameError};

/// The longest name of a network device (`IFNAMSIZ` of the kernel without the NUL).
const MAX_DEVICE: usize = 15;
/// The longest name of a listener or a pool: they are metric labels and columns of tables.
const MAX_LABEL: usize = 64;
/// Ports below are those of services (RFC 6335 §6).
const FIRST_PORT: u16 = 1024;
/// With fewer, a port would be wanted again before the backend has forgotten the connection that had it.
pub(super) const FEWEST_PORTS: u16 = 64;
/// Where name servers listen.
const DNS_PORT: u16 = 53;

/// A prefix, or an address that is its own prefix. Bits behind the prefix are dropped, IPv4-mapped is IPv4.
pub(super) fn prefix(value: &Value<'_>) -> Option<IpNet> {
    const EXPECTED: &str = r#"an address or a prefix such as "192.0.2.0/24" or "2001:db8::/32""#;
    let text = value.text(EXPECTED)?;
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    match net.map(|net| net.trunc()) {
        Some(net) => Some(unmapped(net)),
        None => value.expected(EXPECTED),
    }
}

/// A list of such prefixes.
pub(super) fn prefixes(value: &Value<'_>) -> Option<Vec<IpNet>> {
    list("addresses and prefixes such as [\"192.0.2.0/24\"]", prefix)(value)
}

/// A prefix of `::ffff:0:0/96` as the IPv4 prefix that it means: sources are compared in that form.
fn unmapped(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(net) => net.addr().to_ipv4_mapped().zip(net.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok()).map_or(net, IpNet::V4)
}

/// An address and port to listen on.
pub(super) fn bind(value: &Value<'_>) -> Option<SocketAddr> {
    const EXPECTED: &str = r#"an address and a port such as "[::]:443" or "192.0.2.1:443""#;
    let text = value.text(EXPECTED)?;
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let port = text.strip_prefix(':').or(text.strip_prefix("*:")).unwrap_or(text);
    let hint = match text.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => Some(format!("add the port: \"{}\"", SocketAddr::new(address, 443))),
        Err(_) if port.parse::<u16>().is_ok() => Some(format!("for all addresses write \"[::]:{port}\"")),
        Err(_) => None,
    };
    let message = format!("expected {EXPECTED}, got {}", quoted(text));
    value.refuse(Refusal { message, hint })
}

/// The name of a protocol, or of a check that speaks one.
pub(super) fn spoken_name<T: for<'t> Deserialize<'t>>(value: &Value<'_>) -> Option<T> {
    match value.get() {
        DeValue::String(text) if text.eq_ignore_ascii_case("https") => value.refuse(
            Refusal::new("edge does not tell https from other protocols in TLS")
                .hint("write \"tls\": it is passed on as it is, and ends at the backend"),
        ),
        _ => one_of(value),
    }
}

/// Local ports to connect from, both ends included.
pub(super) fn ports(value: &Value<'_>) -> Option<RangeInclusive<u16>> {
    const EXPECTED: &str = r#"a range of ports such as "10240-32767""#;
    let text = value.text(EXPECTED)?;
    let bound = |text: &str| text.trim().parse::<u16>().ok();
    let Some((first, last)) = text.split_once('-').and_then(|(first, last)| bound(first).zip(bound(last)))
    else {
        return value.expected(EXPECTED);
    };
    if first > last {
        return value.refuse(
            Refusal::new(format!("the range {} ends before it begins", quoted(text)))
                .hint(format!("write \"{last}-{first}\"")),
        );
    }
    if first < FIRST_PORT {
        return value.expected(format_args!("ports from {FIRST_PORT} to {}", u16::MAX));
    }
    if last - first < FEWEST_PORTS - 1 {
        return value.expected(format_args!("at least {FEWEST_PORTS} ports"));
    }
    Some(first..=last)
}

/// A name server; its port is 53 unless it is written.
pub(super) fn name_server(value: &Value<'_>) -> Option<SocketAddr> {
    const EXPECTED: &str = r#"the address of a name server such as "100.100.100.100" or "[fd7a::53]:53""#;
    let text = value.text(EXPECTED)?;
    let alone = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS_PORT));
    text.parse().ok().or_else(alone).or_else(|| value.expected(EXPECTED))
}

/// A name suffix that name servers answer for.
pub(super) fn suffix(text: &str) -> Result<HostName, Refusal> {
    text.parse().map_err(|error: HostNameError| {
        Refusal::new(format!("{} is no name suffix: {error}", quoted(text)))
            .hint("write it like \"ts.net\", without `*.` or a dot in front")
    })
}

/// Where a backend is.
pub(super) fn backend_address(text: &str) -> Result<BackendAddress, Refusal> {
    let address: BackendAddress = text.parse().map_err(|error| match error {
        BackendAddressError::Unix(error) => Refusal::new(format!("{}: {error}", quoted(text))),
        BackendAddressError::Label(error) => Refusal::new(format!("{}: {error}", quoted(text))),
        BackendAddressError::Other if text.starts_with('/') => {
            Refusal::new(format!("{} is no address", quoted(text)))
                .hint(format!("for a Unix socket write \"unix:{text}\""))
        }
        error @ BackendAddressError::Other => {
            Refusal::new(format!("{} is no address: {error}", quoted(text)))
        }
    })?;
    match &address.host {
        // "100.64.0.256" is made of the characters of a name, but names do not end in a number (RFC 1123 §2.1).
        BackendHost::Name(name) if ends_in_number(name) => {
            Err(Refusal::new(format!("{} is no address, and no name ends in a number", quoted(text))))
        }
        _ => Ok(address),
    }
}

fn ends_in_number(name: &HostName) -> bool {
    let last = name.as_str().rsplit('.').next().unwrap_or_default();
    last.bytes().all(|byte| byte.is_ascii_digit())
}

/// The name of a listener or a pool.
pub(super) fn label(value: &Value<'_>) -> Option<Arc<str>> {
    const EXPECTED: &str = "a name of letters, digits, `-`, `_` and `.`";
    value.text_as(EXPECTED, |text| {
        let character = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if text.is_empty() || text.len() > MAX_LABEL || !text.bytes().all(character) {
            let message = format!("expected {EXPECTED}, at most {MAX_LABEL} of them, got {}", quoted(text));
            return Err(Refusal::new(message));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err(Refusal::new(format!("an address cannot be a name, got {}", quoted(text))));
        }
        Ok(text.into())
    })
}

/// The name of a network device, as the kernel's `dev_valid_name` has it.
pub(super) fn device(value: &Value<'_>) -> Option<Arc<str>> {
    const EXPECTED: &str = "the name of a network device such as \"wg0\"";
    let text = value.text(EXPECTED)?;
    let odd = |character: char| character == '/' || character == ':' || character.is_whitespace();
    if matches!(text, "" | "." | "..") || text.len() > MAX_DEVICE || text.contains(odd) {
        return value.expected(EXPECTED);
    }
    Some(text.into())
}

/// A protocol name of ALPN: 1 to 255 octets (RFC 7301 §3.1).
pub(super) fn alpn(value: &Value<'_>) -> Option<Arc<str>> {
    const EXPECTED: &str = "an ALPN protocol name such as \"h2\" or \"acme-tls/1\"";
    match value.text(EXPECTED)? {
        text if (1..=255).contains(&text.len()) => Some(text.into()),
        _ => value.expected(EXPECTED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_prefix_is_the_ipv4_prefix() {
        for (net, meant) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.1/128", "192.0.2.1/32"),
            ("::/0", "::/0"),
            ("::ffff:0:0/95", "::ffff:0:0/95"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
        ] {
            assert_eq!(unmapped(net.parse().unwrap()), meant.parse().unwrap(), "{net}");
        }
    }

    #[test]
    fn what_looks_like_an_address_is_no_name() {
        for text in ["100.64.0.256", "100.64.0", "1.2.3.4.5:443", "443"] {
            assert!(backend_address(text).is_err(), "{text}");
        }
        for text in ["100.64.0.2", "fd7a::2", "node1.ts.net", "1.2.3.4.example:80", "caddy:443"] {
            assert!(backend_address(text).is_ok(), "{text}");
        }
    }
}
