//! Which flows of an earlier daemon that daemon has accounted for.

use std::collections::HashSet;

use edge_common::flow::{DOWN, Flow, PEER_FIN_ACKED};

/// Flows whose end an earlier daemon has accounted for, found in a scan of the table.
///
/// It accounts for a flow when it reads [`CLOSED`](edge_common::flow::CLOSED), which the programs report once both
/// sides have acknowledged the other's FIN. [`REPORTED`](edge_common::flow::REPORTED) says less: it is also set for a
/// reset, which a daemon disregards until its sweep ends the flow, because the sides may belie it.
#[derive(Debug, Default)]
pub(super) struct Accounted {
    /// Entries whose sender has acknowledged the receiver's FIN: client → backend, and backend → client.
    acknowledged: [HashSet<u64>; 2],
}

impl Accounted {
    /// Looks at one entry of the table.
    pub(super) fn look_at(&mut self, flow: &Flow) {
        if flow.has(PEER_FIN_ACKED) {
            self.acknowledged[usize::from(flow.direction == DOWN)].insert(flow.id);
        }
    }

    /// Their numbers.
    pub(super) fn ids(self) -> HashSet<u64> {
        let [mut up, down] = self.acknowledged;
        up.retain(|id| down.contains(id));
        up
    }
}

#[cfg(test)]
mod tests {
    use edge_common::flow::{PEER_RESET, REPORTED, RESET};

    use super::{super::example::pair, *};
    use crate::kernel::FlowPair;

    fn is_accounted(change: impl FnOnce(&mut FlowPair)) -> bool {
        let mut pair = pair();
        change(&mut pair);
        let mut accounted = Accounted::default();
        accounted.look_at(&pair.down);
        accounted.look_at(&pair.up);
        accounted.ids().contains(&pair.up.id)
    }

    fn close(pair: &mut FlowPair) {
        for flow in [&mut pair.up, &mut pair.down] {
            flow.flags[PEER_FIN_ACKED] = 1;
            flow.flags[REPORTED] = 1;
        }
    }

    fn reset(pair: &mut FlowPair) {
        pair.up.flags[RESET] = 1;
        pair.down.flags[PEER_RESET] = 1;
        for flow in [&mut pair.up, &mut pair.down] {
            flow.flags[REPORTED] = 1;
        }
    }

    #[test]
    fn a_flow_is_accounted_for_once_both_fins_were_acknowledged() {
        assert!(!is_accounted(|_| ()));
        assert!(!is_accounted(|pair| pair.up.flags[PEER_FIN_ACKED] = 1));
        assert!(!is_accounted(|pair| pair.down.flags[PEER_FIN_ACKED] = 1));
        assert!(is_accounted(close));
    }

    #[test]
    fn a_reported_reset_is_not_accounted_for_because_it_may_be_belied() {
        assert!(!is_accounted(reset));
        let half_closed = |pair: &mut FlowPair| {
            pair.up.flags[PEER_FIN_ACKED] = 1;
            reset(pair);
        };
        assert!(!is_accounted(half_closed));
    }

    #[test]
    fn a_reset_after_the_end_changes_nothing() {
        let closed_then_reset = |pair: &mut FlowPair| {
            close(pair);
            reset(pair);
        };
        assert!(is_accounted(closed_then_reset));
        // The rules clear the mark with a reset that is belied.
        let belied = |pair: &mut FlowPair| {
            close(pair);
            pair.up.flags[REPORTED] = 0;
            pair.down.flags[REPORTED] = 0;
        };
        assert!(is_accounted(belied));
    }
}
