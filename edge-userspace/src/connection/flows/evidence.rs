//! Searches for flows that work, where flows of others to the same backend have failed: see
//! [`FlowTier::judge`](crate::datapath::flow::FlowTier::judge).

use std::{collections::HashMap, net::IpAddr};

use edge_common::flow::{Flow, FlowKey, UP};

use super::{Flows, since, sweep::Sweep};
use crate::{datapath::flow::Suspected, kernel::FlowPair, source::network_of};

/// Flows that are looked at closely in one sweep, each of another network and backend.
const LOOKED_AT: usize = 1024;

/// Where a sweep may find that a suspected backend works.
#[derive(Debug)]
pub(super) struct Evidence {
    suspected: Suspected,
    /// By the client's network and the backend, the flow whose client spoke last.
    flows: HashMap<(IpAddr, IpAddr), (u64, FlowKey, u64)>,
}

impl Evidence {
    pub(super) fn of(suspected: Suspected) -> Self {
        Self { suspected, flows: HashMap::new() }
    }

    /// Looks at one entry of the table.
    pub(super) fn look_at(&mut self, key: &FlowKey, flow: &Flow) {
        if self.suspected.is_empty() || flow.direction != UP || flow.is_reset() || flow.packets == 0 {
            return;
        }
        let (client, backend) = (key.source().ip(), flow.to.destination().ip());
        if !self.suspected.includes(client, backend) {
            return;
        }
        let is_full = self.flows.len() >= LOOKED_AT;
        let upstream = (network_of(client), backend);
        match self.flows.get_mut(&upstream) {
            Some(latest) if latest.0 < flow.last_seen => *latest = (flow.last_seen, *key, flow.id),
            None if !is_full => drop(self.flows.insert(upstream, (flow.last_seen, *key, flow.id))),
            _ => {}
        }
    }
}

impl Flows {
    /// Tells the tier which flows work, and has it judge the backends.
    pub(super) fn weigh(&self, sweep: &mut Sweep, evidence: Evidence, now: u64) {
        let Evidence { suspected, flows } = evidence;
        if suspected.is_empty() {
            return;
        }
        let before = std::mem::take(&mut sweep.acknowledged);
        for (_, up_key, id) in flows.into_values() {
            let Some(pair) = self.tier.pair(&up_key, id).unwrap_or_default() else { continue };
            let both = [pair.up.acked, pair.down.acked];
            sweep.acknowledged.insert(pair.up.id, both);
            let is_moving = before.get(&pair.up.id).is_some_and(|before| *before != both);
            if works(&pair, is_moving) {
                let (client, backend) = (up_key.source().ip(), pair.up.to.destination().ip());
                self.tier.worked(client, backend, since(now, pair.down.last_seen));
            }
        }
        self.tier.judge(&suspected);
    }
}

/// Whether both sides have sent data through the flow, and each has acknowledged all of the other's, or more
/// of it than at the previous sweep.
fn works(pair: &FlowPair, is_moving: bool) -> bool {
    let FlowPair { up, down, .. } = pair;
    let has =
        |acknowledged: &Flow, sent: &Flow| acknowledged.acked == sent.sent().wrapping_add(sent.seq_delta);
    let have_spoken = up.packets > 0 && down.packets > 0 && !up.is_reset() && !down.is_reset();
    have_spoken && (is_moving || has(up, down) && has(down, up))
}

#[cfg(test)]
mod tests {
    use super::{super::example::pair, *};

    #[test]
    fn a_flow_works_when_both_sides_have_all_that_the_other_sent() {
        type Change = fn(&mut FlowPair);
        assert!(works(&pair(), false));
        let changes: [Change; 4] = [
            |pair| pair.up.position += 1,
            |pair| pair.down.position += 1,
            |pair| pair.down.packets = 0,
            |pair| pair.up.flags[edge_common::flow::RESET] = 1,
        ];
        for change in changes {
            let mut pair = pair();
            change(&mut pair);
            assert!(!works(&pair, false));
        }
        let mut streaming = pair();
        streaming.down.position += 100_000;
        assert!(works(&streaming, true));
        streaming.down.packets = 0;
        assert!(!works(&streaming, true));
    }
}
