//! Addresses that no block may cut off. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::ShieldError;
use crate::kernel::Prefix;

/// Whether an IPv6 prefix contains the mapped IPv4 addresses, `::ffff:0:0/96`, without being one of them.
pub(super) fn is_too_wide(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.prefix_len() < 96 && v6.contains(&std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
}

/// The widest prefixes that are blocked without being forced. An IPv4 registry gives nobody more than a /8, and an IPv6
/// registry hardly anybody more than a /19: what is wider is rather a slip of the hand.
const WIDEST: (u8, u8) = (8, 19);

/// Whether a prefix holds more than anybody has.
fn is_sweeping(net: &IpNet) -> bool {
    match IpNet::from(Prefix::from(*net)) {
        IpNet::V4(net) => net.prefix_len() < WIDEST.0,
        IpNet::V6(net) => net.prefix_len() < WIDEST.1,
    }
}

/// Refuses a prefix that holds more than any one network has.
pub fn forbid_sweeping(net: IpNet) -> Result<(), ShieldError> {
    if is_sweeping(&net) { Err(ShieldError::Sweeping(net)) } else { Ok(()) }
}

/// A prefix as messages name it: the address alone where it is one.
pub(super) fn one(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// Something that must stay reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vital {
    /// Its address, or a prefix that no block may hold all of.
    pub net: IpNet,
    /// Its description, which follows "holds 192.0.2.1, ".
    pub what: String,
}

impl Vital {
    /// Something at one address, however it is written.
    pub fn at(address: IpAddr, what: impl Into<String>) -> Self {
        Self { net: address.to_canonical().into(), what: what.into() }
    }
}

/// The first of these that the prefix holds, whichever way it is written.
pub fn cut<'a>(net: &IpNet, spare: &'a [Vital]) -> Option<&'a Vital> {
    let net = IpNet::from(Prefix::from(*net));
    spare.iter().find(|vital| net.contains(&IpNet::from(Prefix::from(vital.net))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn what_must_be_reached_is_found_in_either_spelling() {
        let spare =
            ["::ffff:192.0.2.9", "2001:db8::9"].map(|address| Vital::at(address.parse().unwrap(), "here"));
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

    #[test]
    fn a_prefix_is_cut_only_where_all_of_it_is_held() {
        let spare = [Vital { net: net("198.51.100.0/24"), what: "proxies".into() }];
        assert_eq!(cut(&net("198.51.100.7/32"), &spare), None);
        assert_eq!(cut(&net("198.51.0.0/16"), &spare), Some(&spare[0]));
        assert_eq!(cut(&net("::ffff:198.51.100.0/120"), &spare), Some(&spare[0]));
    }

    #[test]
    fn prefixes_wider_than_anybody_has_are_sweeping() {
        for prefix in ["0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/7", "::ffff:0:0/96", "2000::/3", "2001::/18"] {
            assert!(is_sweeping(&net(prefix)), "{prefix}");
        }
        for prefix in ["10.0.0.0/8", "::ffff:10.0.0.0/104", "2001::/19", "2001:db8::/32", "192.0.2.1/32"] {
            assert!(!is_sweeping(&net(prefix)), "{prefix}");
        }
    }
}
