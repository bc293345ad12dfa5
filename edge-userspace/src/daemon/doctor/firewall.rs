//! The effects of this machine's firewall and routes on connections: how full connection tracking is, and why
//! connections stay on their sockets.

use crate::{
    connection::Flows,
    control::api::{Check, CheckStatus},
    kernel::Fill,
};

/// Reasons that are a matter of this machine's settings: what stands between, and how to mend it.
const MATTERS: [(&str, &str, &str); 5] = [
    (
        "translated",
        "NAT or SYNPROXY on this machine changes their packets",
        "take edged's connections out of it: listen on the port that clients use instead of redirecting it, and accept \
         what leaves for the backends before `masquerade`",
    ),
    (
        "policy_route",
        "a rule of policy routing (port, mark, user) leads their packets another way than those of a flow",
        "look at `ip rule`; rules by address and device are no hindrance",
    ),
    (
        "ipsec",
        "an IPsec policy is for their packets",
        "nothing, if that is meant; `ip xfrm policy` shows the policies",
    ),
    (
        "asymmetric_route",
        "their packets arrive by another device than the answers leave by",
        "compare `ip route get` for their addresses with the device that they come in by",
    ),
    (
        "handshake_not_seen",
        "edged did not see their handshakes. They were open before it started, or its listeners belong to the cgroup of an \
         earlier start",
        "where the number grows, give the service `Slice=edge.slice`, as the unit that comes with edged does",
    ),
];

/// How full connection tracking is.
pub(super) fn conntrack() -> Check {
    const NAME: &str = "conntrack";
    let Some(fill @ Fill { entries, limit }) = Fill::now() else {
        return Check::new(NAME, CheckStatus::Ok, "the kernel tracks no connections");
    };
    let message = format!("{entries} of {limit} entries are taken");
    if !fill.is_nearly_full() {
        return Check::new(NAME, CheckStatus::Ok, message);
    }
    Check::new(NAME, CheckStatus::Warn, format!("{message}: beyond, every new connection to this machine is dropped"))
        .remedy(format!(
            "raise the limit: `sysctl -w net.netfilter.nf_conntrack_max={}`, 320 bytes each; `conntrack -L` shows whose \
             entries they are, flows have none",
            limit.saturating_mul(4)
        ))
}

/// Reasons why connections do not become flows, as far as the operator can change them.
pub(super) fn hindrances(flows: &Flows) -> Vec<Check> {
    let counts = flows.tier().stay_counts();
    let count = |reason| counts.iter().find(|(counted, _)| *counted == reason).map_or(0, |(_, count)| *count);
    let check = |&(reason, why, remedy): &(&'static str, &str, &str)| {
        let count = count(reason);
        let message = format!("{count} connections stayed on their sockets (`{reason}`): {why}");
        (count != 0).then(|| Check::new("flows", CheckStatus::Warn, message).remedy(remedy))
    };
    MATTERS.iter().filter_map(check).collect()
}
