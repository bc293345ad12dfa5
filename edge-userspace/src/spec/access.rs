//! Which sources may use a listener or a route.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

/// Allowed sources and denied sources. Serialises with the keys of `[[listener]]` and `[[route]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Access {
    /// Sources that may; empty means all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// Sources that may not; wins over `allow`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<IpNet>,
}

impl Access {
    /// Whether every source may.
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether this source may; an IPv4-mapped address counts as IPv4.
    pub fn admits(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        let listed = |list: &[IpNet]| list.iter().any(|net| net.contains(&source));
        !listed(&self.deny) && (self.allow.is_empty() || listed(&self.allow))
    }

    /// The same in the one form in which equal ones compare equal: each list sorted, nothing twice.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        for nets in [&mut self.allow, &mut self.deny] {
            nets.sort_unstable();
            nets.dedup();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_wins_over_allow_and_mapped_addresses_are_ipv4() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let access = |allow: &[&str], deny: &[&str]| Access { allow: nets(allow), deny: nets(deny) };
        let admits = |access: &Access, source: &str| access.admits(source.parse().unwrap());
        assert!(Access::default().is_open() && admits(&Access::default(), "192.0.2.1"));
        let open = access(&[], &["192.0.2.0/24"]);
        assert!(admits(&open, "203.0.113.1") && !admits(&open, "192.0.2.1"));
        assert!(!admits(&open, "::ffff:192.0.2.1") && !open.is_open());
        let closed = access(&["192.0.2.0/24"], &["192.0.2.9/32"]);
        assert!(admits(&closed, "::ffff:192.0.2.1") && !admits(&closed, "192.0.2.9"));
        assert!(!admits(&closed, "2001:db8::1"));
    }
}
