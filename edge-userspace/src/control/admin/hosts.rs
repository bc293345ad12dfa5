//! Decides by its Host whether a request is meant for the admin address.
//!
//! A web page may point its own name at this address (DNS rebinding), and could then read the answers as its
//! own. It cannot choose the Host header, which contains its name. Requests are therefore answered only under
//! names that nobody else controls: addresses, localhost (RFC 6761 §6.3), this machine's name, and names that
//! the operator lists.

use axum::http::{HeaderMap, Uri, header::HOST, uri::Authority};

use crate::spec::HostName;

/// A requested host that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Misdirected {
    /// Another name.
    Name(String),
    /// Two Hosts, or one that is none (RFC 9112 §3.2).
    Malformed,
}

/// Checks the authority of a request: in its target, otherwise in its Host. A request without any does not
/// come from a browser, and is answered.
pub(super) fn check(uri: &Uri, headers: &HeaderMap, names: &[HostName]) -> Result<(), Misdirected> {
    let mut hosts = headers.get_all(HOST).iter();
    let header = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(Authority::try_from(host.as_bytes()).map_err(|_| Misdirected::Malformed)?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Misdirected::Malformed),
    };
    let asked = uri.authority().or(header.as_ref());
    match asked.map(Authority::host) {
        Some(host) if !is_ours(host, names) => Err(Misdirected::Name(host.to_owned())),
        _ => Ok(()),
    }
}

fn is_ours(host: &str, names: &[HostName]) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if address.parse::<std::net::IpAddr>().is_ok() {
        return true;
    }
    let Ok(name) = HostName::parse(host.as_bytes()) else { return false };
    let name_is = |own: &str| name.as_str().eq_ignore_ascii_case(own);
    name_is("localhost")
        || name.as_str().ends_with(".localhost")
        || names.contains(&name)
        || own_name().is_some_and(|own| name_is(&own))
}

/// This machine's host name.
fn own_name() -> Option<String> {
    rustix::system::uname().nodename().to_str().ok().map(str::to_owned).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(uri: &str, hosts: &[&str]) -> Result<(), Misdirected> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, host.parse().unwrap());
        }
        check(&uri.parse().unwrap(), &headers, &["vps.tail1234.ts.net".parse().unwrap()])
    }

    #[test]
    fn names_that_nobody_else_controls_are_answered() {
        for host in [
            "localhost",
            "LocalHost:9464",
            "edge.localhost:9464",
            "127.0.0.1:9464",
            "[::1]:9464",
            "[::1]",
            "100.64.0.1:9464",
            "vps.tail1234.ts.net:9464",
            "VPS.tail1234.ts.net.",
        ] {
            assert_eq!(asked("/metrics", &[host]), Ok(()), "{host}");
        }
        let own = own_name().unwrap();
        assert_eq!(asked("/", &[&format!("{own}:9464")]), Ok(()), "{own}");
        assert_eq!(asked("/", &[]), Ok(()), "HTTP/1.0");
    }

    #[test]
    fn other_names_are_not() {
        for host in
            ["evil.example", "evil.example:9464", "tail1234.ts.net", "localhost.evil.example", "1.2.3.4.5"]
        {
            let bare = host.split(':').next().unwrap().to_owned();
            assert_eq!(asked("/", &[host]), Err(Misdirected::Name(bare)), "{host}");
        }
        let absolute = Err(Misdirected::Name("evil.example".into()));
        assert_eq!(asked("http://evil.example/", &["localhost"]), absolute);
        for hosts in [&["localhost", "evil.example"][..], &["a b"], &[""]] {
            assert_eq!(asked("/", hosts), Err(Misdirected::Malformed), "{hosts:?}");
        }
    }
}
