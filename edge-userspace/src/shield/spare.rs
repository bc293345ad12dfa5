//! Addresses that no block may cut off. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::kernel::Prefix;

/// Whether an IPv6 prefix contains the mapped IPv4 addresses, `::ffff:0:0/96`, without being one of them.
pub(super) fn is_too_wide(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.prefix_len() < 96 && v6.contains(&std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
}

/// The first of these addresses that the prefix holds, whichever way it is written.
pub(super) fn cut(net: &IpNet, spare: &[IpAddr]) -> Option<IpAddr> {
    let net = IpNet::from(Prefix::from(*net));
    spare.iter().find(|address| net.contains(&address.to_canonical())).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn what_must_be_reached_is_found_in_either_spelling() {
        let spare = ["::ffff:192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        for (prefix, cuts) in [
            ("192.0.2.0/24", true),
            ("::ffff:192.0.2.0/120", true),
            ("192.0.3.0/24", false),
            ("2001:db8::/32", true),
            ("2001:db9::/32", false),
            ("0.0.0.0/0", true),
        ] {
            assert_eq!(cut(&net(prefix), &spare).is_some(), cuts, "{prefix}");
        }
    }

    #[test]
    fn ipv6_prefixes_that_hold_ipv4_are_too_wide() {
        for prefix in ["::/0", "::/1", "::/80"] {
            assert!(is_too_wide(&net(prefix)), "{prefix}");
        }
        for prefix in ["2000::/3", "::ffff:0:0/96", "0.0.0.0/0", "::1/128"] {
            assert!(!is_too_wide(&net(prefix)), "{prefix}");
        }
    }
}
