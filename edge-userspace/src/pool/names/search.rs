//! The names that a name may stand for: itself, and itself below each search domain. Pure;
//! [`resolve`](super::resolve) sends the queries.

use std::iter;

use hickory_resolver::{config::ResolverConfig, proto::rr::Name};

use crate::spec::HostName;

/// Search domains, as `search` and `ndots` of resolv.conf(5) have them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Search {
    domains: Vec<HostName>,
    /// A name with so many dots is tried as it is before the domains are.
    dots: usize,
}

impl Search {
    /// These domains, for names without a dot before those names themselves.
    pub(super) fn new(domains: &[HostName]) -> Self {
        Self { domains: domains.to_vec(), dots: 1 }
    }

    /// The system's search domains. Domains that are not names, such as the root, are left out.
    pub(super) fn of_system(config: &ResolverConfig, ndots: usize) -> Self {
        let domain = |name: &Name| HostName::parse(name.to_ascii().as_bytes()).ok();
        Self { domains: config.domain.iter().chain(&config.search).filter_map(domain).collect(), dots: ndots }
    }

    /// The names to query in place of `name`, in turn until one exists. Never empty.
    pub(super) fn names(&self, name: &HostName) -> Vec<HostName> {
        if is_localhost(name) {
            return vec![name.clone()];
        }
        // A name that becomes too long is left out.
        let longer = self.domains.iter().filter_map(|domain| format!("{name}.{domain}").parse().ok());
        let alone = iter::once(name.clone());
        let mut names: Vec<HostName> = if name.as_str().matches('.').count() < self.dots {
            longer.chain(alone).collect()
        } else {
            alone.chain(longer).collect()
        };
        names.dedup();
        names
    }
}

/// Names of this machine, which no name server is asked for (RFC 6761 §6.3).
fn is_localhost(name: &HostName) -> bool {
    name.as_str().rsplit('.').next() == Some("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    fn asked(search: &Search, text: &str) -> Vec<String> {
        search.names(&name(text)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_name_without_a_dot_is_first_looked_for_in_the_domains() {
        let search = Search::new(&["tail1234.ts.net", "lan"].map(name));
        assert_eq!(asked(&search, "nas"), ["nas.tail1234.ts.net", "nas.lan", "nas"]);
        assert_eq!(asked(&search, "nas.home"), ["nas.home", "nas.home.tail1234.ts.net", "nas.home.lan"]);
        assert_eq!(asked(&search, "localhost"), ["localhost"]);
        assert_eq!(asked(&Search::default(), "nas"), ["nas"]);
        let long = [&*"a".repeat(63); 3].join(".");
        assert_eq!(asked(&search, &format!("{long}.{}", "b".repeat(55))).len(), 2, "one domain still fits");
    }

    #[test]
    fn the_systems_domains_are_taken_as_they_are() {
        let domain = |text| Name::from_ascii(text).unwrap();
        let config = ResolverConfig::from_parts(
            Some(domain("home.example")),
            vec![domain("home.example."), domain("."), domain("LAN")],
            Vec::new(),
        );
        let search = Search::of_system(&config, 2);
        assert_eq!(asked(&search, "nas.a"), ["nas.a.home.example", "nas.a.lan", "nas.a"]);
        assert_eq!(asked(&search, "nas.a.b")[0], "nas.a.b");
    }
}
