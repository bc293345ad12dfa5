//! `edgectl doctor` on PROXY headers: how long they are. Whether each backend expects what it gets is a step of the
//! [probe](crate::daemon::probe).

use std::collections::HashSet;

use crate::{
    connection::Running,
    control::api::{Check, CheckStatus},
    proxy_protocol::{V2_IPV4, V2_IPV6, V2_MAX_SENT},
    spec::ProxyProtocol,
};

/// How long the headers of version 2 are that each pool is sent.
pub(super) fn sizes(running: &Running) -> Vec<Check> {
    let mut seen = HashSet::new();
    let sent = running.destinations().filter(|to| to.proxy_protocol == ProxyProtocol::V2);
    let pools = sent.map(|to| &to.pool).filter(|pool| seen.insert((pool.name(), pool.proxy_tlvs())));
    pools
        .map(|pool| {
            let tlvs = pool.proxy_tlvs();
            let message = if tlvs.is_empty() {
                format!("{V2_IPV4} bytes for clients of IPv4, {V2_IPV6} for those of IPv6")
            } else {
                format!(
                    "up to {V2_MAX_SENT} bytes with {tlvs}: {V2_IPV4} for clients of IPv4, {V2_IPV6} for those of IPv6, and \
                     these TLVs; nginx before 1.23.2 takes no more than 107"
                )
            };
            Check::new(format!("PROXY header size for {}", pool.name()), CheckStatus::Ok, message)
        })
        .collect()
}
