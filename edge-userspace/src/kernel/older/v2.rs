//! Layout 2: the first that left flows on users' machines. Keys have no protocol, because all flows are TCP.
//!
//! These types never change: they describe the kernel's maps on machines that upgrade from there.
#![expect(unsafe_code, reason = "aya asks for a promise that the types are plain bytes")]

use aya::Pod;
use edge_common::flow::{CHANGES_FAMILY, Flow, FlowEvent, FlowKey, FlowReason, Pending, TCP, Tuple};

use super::table::Layout;
use crate::kernel::flow_events::Report;

/// As in the directory of its pins, `v2`.
#[derive(Debug)]
pub(super) struct V2;

impl V2 {
    pub(super) const NAME: &str = "v2";
}

/// The key of [`Entry`]s.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Key {
    source: [u32; 4],
    destination: [u32; 4],
    ports: u32,
}

/// One direction of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    to: Key,
    seq_delta: u32,
    ack_delta: u32,
    tsval_delta: u32,
    tsecr_delta: u32,
    ingress: u32,
    egress: u32,
    window_left: u8,
    window_right: u8,
    direction: u8,
    changes_family: u8,
    flags: [u8; 8],
    fin: u32,
    peer_fin: u32,
    start: u32,
    acked: u32,
    window: u32,
    floor: u32,
    ceiling: u32,
    ack_ceiling: u32,
    repeated: u32,
    label: u32,
    id: u64,
    accepted: u64,
    last_seen: u64,
    packets: u64,
    position: u64,
    connect_time: u32,
    stamp: u32,
}

/// A hand-over under way.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unfinished {
    up_key: Key,
    watch: [u32; 2],
}

/// The description of a flow, as text padded with zeros.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Text([u8; 440]);

impl AsRef<[u8]> for Text {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

const _: () = {
    assert!(size_of::<Key>() == 36 && size_of::<Entry>() == 160 && size_of::<Unfinished>() == 44);
    assert!(core::mem::offset_of!(Entry, id) == 112 && core::mem::offset_of!(Entry, flags) == 64);
};

// SAFETY: `repr(C)`, integers only, and by the assertions above no padding: every bit pattern is a value.
unsafe impl Pod for Key {}
// SAFETY: as above.
unsafe impl Pod for Entry {}
// SAFETY: as above.
unsafe impl Pod for Unfinished {}
// SAFETY: as above.
unsafe impl Pod for Text {}

/// Its counters, in the order of their indices.
const REASONS: [FlowReason; 20] = [
    FlowReason::Forwarded,
    FlowReason::UnusualOptions,
    FlowReason::Fragment,
    FlowReason::ExtensionHeader,
    FlowReason::SynOnClosed,
    FlowReason::SynOnLive,
    FlowReason::SynAck,
    FlowReason::WrongDevice,
    FlowReason::Malformed,
    FlowReason::HopLimit,
    FlowReason::TooBig,
    FlowReason::Refused,
    FlowReason::OutOfWindow,
    FlowReason::ResetOutOfWindow,
    FlowReason::TooBigTranslated,
    FlowReason::TooBigDisbelieved,
    FlowReason::Guarded,
    FlowReason::SynRewritten,
    FlowReason::ForSocket,
    FlowReason::EventLost,
];

impl From<Key> for Tuple {
    fn from(Key { source, destination, ports }: Key) -> Self {
        Self { source, destination, ports }
    }
}

impl Layout for V2 {
    const NAME: &str = Self::NAME;
    const PRIORITY: u16 = 0xed9e;
    type Key = Key;
    type Entry = Entry;
    type Pending = Unfinished;
    type Label = Text;

    fn key(key: &Key) -> FlowKey {
        FlowKey::of((*key).into(), TCP)
    }

    fn own_key(key: &FlowKey) -> Option<Key> {
        let Tuple { source, destination, ports } = key.tuple;
        (key.protocol == u32::from(TCP)).then_some(Key { source, destination, ports })
    }

    fn entry(entry: &Entry) -> Flow {
        Flow {
            to: entry.to.into(),
            scales: Flow::with_scales(entry.window_left, entry.window_right),
            shape: if entry.changes_family == 0 { 0 } else { CHANGES_FAMILY },
            reserved: 0,
            seq_delta: entry.seq_delta,
            ack_delta: entry.ack_delta,
            tsval_delta: entry.tsval_delta,
            tsecr_delta: entry.tsecr_delta,
            ingress: entry.ingress,
            egress: entry.egress,
            direction: entry.direction,
            flags: entry.flags,
            fin: entry.fin,
            peer_fin: entry.peer_fin,
            start: entry.start,
            acked: entry.acked,
            window: entry.window,
            floor: entry.floor,
            ceiling: entry.ceiling,
            ack_ceiling: entry.ack_ceiling,
            repeated: entry.repeated,
            label: entry.label,
            id: entry.id,
            accepted: entry.accepted,
            last_seen: entry.last_seen,
            packets: entry.packets,
            position: entry.position,
            connect_time: entry.connect_time,
            stamp: entry.stamp,
        }
    }

    fn pending(&Unfinished { up_key, watch }: &Unfinished) -> Pending {
        Pending { up_key: Self::key(&up_key), watch, ..Pending::default() }
    }

    fn event(bytes: &[u8]) -> Option<FlowEvent> {
        let report = Report(bytes);
        let key = |at| Some(FlowKey::of(report.tuple(at)?, TCP));
        Some(FlowEvent {
            key: key(40)?,
            to: key(76)?,
            kind: report.half(112)?,
            direction: report.half(116)?,
            label: report.half(120)?,
            resets: report.half(124)?,
            connect_time: report.half(128)?,
            reserved: 0,
            ..report.counts()?
        })
    }

    fn reason(reason: FlowReason) -> Option<u32> {
        let at = REASONS.iter().position(|own| *own == reason)?;
        u32::try_from(at).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_there_and_back_and_tcp_s_alone() {
        let key = FlowKey::new("198.51.100.7:50000".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap());
        let own = V2::own_key(&key).unwrap();
        assert_eq!(V2::key(&own), key);
        assert_eq!(V2::own_key(&FlowKey { protocol: 17, ..key }), None);
    }

    #[test]
    fn an_entry_says_the_same_in_this_layout() {
        let entry = Entry {
            to: Key { source: [1; 4], destination: [2; 4], ports: 3 },
            window_left: 7,
            window_right: 14,
            direction: 1,
            changes_family: 1,
            flags: [0, 1, 0, 1, 0, 1, 0, 1],
            id: 77,
            position: 1 << 40,
            ..Entry::default()
        };
        let flow = V2::entry(&entry);
        assert_eq!((flow.sender_scale(), flow.offered_scale()), (7, 14));
        assert!(flow.changes_family() && flow.protocol() == TCP);
        assert_eq!(V2::own_key(&flow.reverse_key()).unwrap().source, [2; 4]);
        assert_eq!((flow.flags, flow.id, flow.position), (entry.flags, 77, 1 << 40));
    }

    #[test]
    fn every_counter_has_a_place_of_its_own() {
        for (index, reason) in REASONS.into_iter().enumerate() {
            assert_eq!(V2::reason(reason), u32::try_from(index).ok());
        }
    }
}
