//! Warnings about a configuration that is valid and probably not intended.

use std::net::{IpAddr, Ipv6Addr};

use super::settings::Settings;
use crate::spec::{BackendAddress, BackendHost, RouteSpec, Target};

/// Common ports behind addresses. Other numbers at the end of an IPv6 address are probably part of it:
/// Tailscale's addresses may end in any number.
const PORTS: [u16; 20] =
    [22, 25, 53, 80, 143, 443, 465, 587, 853, 993, 995, 1194, 3000, 3306, 5000, 5432, 8000, 8080, 8443, 9443];

impl Settings {
    /// The warnings, one line each. `runtime` holds the routes that were added at run time.
    pub fn warnings(&self, runtime: &[RouteSpec]) -> Vec<String> {
        let mut warnings = Vec::new();
        let uses = self.uses(runtime);
        let leads_nowhere = self.listeners.iter().all(|listener| listener.to.is_none());
        if leads_nowhere && self.routes.is_empty() && runtime.is_empty() {
            warnings.push("there is no route: every client is refused until there is a [[route]] or `edgectl routes add` adds one".to_owned());
        }
        for pool in self.pools.iter().filter(|pool| !uses.has(&Target::One(pool.name.clone()))) {
            warnings.push(format!(
                "no route and no listener leads to the pool `{0}`: it is not used; a route does with to = \"{0}\"",
                pool.name
            ));
        }
        warnings.extend(self.addresses().iter().filter_map(looks_like_a_port));
        for added in runtime {
            let same =
                self.routes.iter().find(|route| route.conditions == added.conditions && *route != added);
            warnings.extend(same.map(|route| {
                format!(
                    "there are two routes for {}: the one added at run time (to {}) wins over the one of the file (to {}), \
                     which no client meets; `edgectl routes remove {}` takes the former away",
                    added.conditions.host, added.to, route.to, added.conditions.host
                )
            }));
        }
        warnings
    }

    /// The addresses of all backends that are written in the file.
    fn addresses(&self) -> Vec<BackendAddress> {
        let is_pool = |name: &str| self.pools.iter().any(|pool| &*pool.name == name);
        let targets = self.routes.iter().map(|route| &route.to);
        let targets = targets.chain(self.listeners.iter().filter_map(|listener| listener.to.as_ref()));
        let mut addresses: Vec<_> =
            self.pools.iter().flat_map(|pool| &pool.backends).map(|backend| backend.to.clone()).collect();
        for target in targets {
            match target {
                Target::One(name) if !is_pool(name) => addresses.extend(name.parse::<BackendAddress>()),
                Target::One(_) | Target::Refuse => {}
                Target::Many(many) => addresses.extend(many.iter().cloned()),
            }
        }
        addresses
    }
}

/// `fd7a::2:443` is an address whose last group is 443, and no address with a port.
fn looks_like_a_port(address: &BackendAddress) -> Option<String> {
    let (BackendHost::Ip(IpAddr::V6(ip)), None) = (&address.host, address.port) else { return None };
    let text = ip.to_string();
    let (rest, group) = text.rsplit_once(':')?;
    let port = group.parse::<u16>().ok().filter(|port| PORTS.contains(port))?;
    let ip = rest.parse::<Ipv6Addr>().ok()?;
    Some(format!("{text} is an address without a port; for port {port} of {ip} write \"[{ip}]:{port}\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(text: &str) -> Vec<String> {
        Settings::parse("test", text).unwrap().warnings(&[])
    }

    const ROUTE: &str = "[[route]]\nhost = \"*\"\nto = \"10.0.0.1\"\n";

    #[test]
    fn an_address_that_ends_like_a_port_is_told() {
        let of = |to: &str| warnings(&ROUTE.replace("10.0.0.1", to));
        let found = of("fd7a::2:443");
        assert!(found[0].contains("[fd7a::2]:443") && found.len() == 1, "{found:?}");
        for to in
            ["fd7a::2", "[fd7a::2]:443", "fd7a::443", "fd7a::2:4430", "fd7a:115c:a1e0::ab12:4843", "::1"]
        {
            assert!(of(to).is_empty(), "{to}");
        }
        let list = warnings(
            "[[listener]]\nname = \"l\"\nbind = [\"[::]:1\"]\nprotocol = \"tcp\"\nto = [\"fd7a::1\", \"fd7a::2:22\"]\n",
        );
        assert!(list[0].contains("[fd7a::2]:22"), "{list:?}");
    }

    #[test]
    fn a_configuration_that_does_nothing_says_so() {
        assert!(warnings("")[0].contains("every client is refused"));
        let pool = "[[pool]]\nname = \"caddy\"\n[[pool.backend]]\nto = \"10.0.0.1\"\n";
        let found = warnings(&format!("{pool}{ROUTE}"));
        assert!(found.len() == 1 && found[0].contains("pool `caddy`"), "{found:?}");
        assert!(warnings(&format!("{pool}{}", ROUTE.replace("10.0.0.1", "caddy"))).is_empty());
    }

    #[test]
    fn a_route_that_another_hides_is_told_with_both() {
        let settings = Settings::parse("test", ROUTE).unwrap();
        let mut added = settings.routes.clone();
        assert!(settings.warnings(&added).is_empty(), "the same twice is settled otherwise");
        added[0].to = Target::One("10.0.0.2".into());
        let found = settings.warnings(&added);
        assert!(found[0].contains("10.0.0.1") && found[0].contains("10.0.0.2"), "{found:?}");
    }
}
