//! A flow for tests.

use edge_common::flow::{DOWN, Flow, FlowKey, UP};

use crate::kernel::FlowPair;

/// Both sides have sent and acknowledged 1000 bytes. Each acknowledges the other's data in its own leg's numbers, shifted by
/// the other's difference.
pub(super) fn pair() -> FlowPair {
    let flow = |direction, start: u32, other: u32, delta: u32| Flow {
        direction,
        start,
        position: 1000,
        acked: other.wrapping_add(1000),
        seq_delta: delta,
        packets: 5,
        ..Flow::default()
    };
    FlowPair {
        up_key: FlowKey::default(),
        up: flow(UP, 100, 70_000 + 7, 40),
        down: flow(DOWN, 70_000, 100 + 40, 7),
    }
}
