//! Reports of the flow programs, through a ring buffer.
#![expect(unsafe_code, reason = "registering a descriptor with the runtime")]

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, RingBuf},
};
use edge_common::flow::{FlowEvent, FlowKey, Tuple};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    KernelError,
    load::{map, take},
};

pub(super) const FLOW_EVENTS: &str = "FLOW_EVENTS";

/// The reports; one reader. Unread reports remain for the next daemon.
pub struct FlowEvents {
    ring: RingBuf<MapData>,
    /// Parses a report; `None` if there are too few bytes.
    read: fn(&[u8]) -> Option<FlowEvent>,
    /// Maps labels of another layout's table to this one's; `None` for this one's own.
    labels: Option<Arc<HashMap<u32, u32>>>,
    /// Registered with the runtime that first waits.
    readiness: Option<AsyncFd<OwnedFd>>,
    /// Whether the first report in the ring was given out.
    is_given: bool,
}

impl FlowEvents {
    pub(super) fn take(ebpf: &mut Ebpf, object: &'static str) -> Result<Self, KernelError> {
        Ok(Self {
            ring: take(ebpf, object, FLOW_EVENTS)?,
            read,
            labels: None,
            readiness: None,
            is_given: false,
        })
    }

    /// The reports of an older layout's programs.
    pub(super) fn of(
        ring: MapData,
        read: fn(&[u8]) -> Option<FlowEvent>,
        labels: Arc<HashMap<u32, u32>>,
    ) -> Result<Self, KernelError> {
        let ring = RingBuf::try_from(Map::RingBuf(ring));
        let ring = ring.map_err(map("opening", FLOW_EVENTS))?;
        Ok(Self { ring, read, labels: Some(labels), readiness: None, is_given: false })
    }

    /// Waits until there may be a report.
    pub async fn readable(&mut self) -> io::Result<()> {
        if self.readiness.is_none() {
            let descriptor = self.ring.as_fd().try_clone_to_owned()?;
            // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, together with the `AsyncFd`.
            let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?;
            self.readiness = Some(registered);
        }
        if let Some(readiness) = &self.readiness {
            // Before the look: what comes after it makes it ready again.
            readiness.readable().await?.clear_ready();
        }
        Ok(())
    }
}

impl fmt::Debug for FlowEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowEvents").finish_non_exhaustive()
    }
}

impl Iterator for FlowEvents {
    type Item = FlowEvent;

    /// The next event, if there is one already. Otherwise wait for readability of the descriptor.
    ///
    /// The one before leaves the ring now and not earlier: until it was handed on, it is there for the next daemon.
    fn next(&mut self) -> Option<FlowEvent> {
        if std::mem::take(&mut self.is_given) {
            drop(self.ring.next());
        }
        let item = self.ring.next()?;
        let event = (self.read)(&item);
        // Dropped, it would leave the ring.
        std::mem::forget(item);
        self.is_given = true;
        let mut event = event?;
        if let Some(labels) = &self.labels {
            event.label = labels.get(&event.label).copied().unwrap_or(0);
        }
        Some(event)
    }
}

/// The bytes of a report: the fields of [`FlowEvent`] in their order, without padding between them. Every method returns
/// `None` where there are too few bytes.
pub(super) struct Report<'a>(pub(super) &'a [u8]);

impl Report<'_> {
    fn word(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.get(at..at + 8)?.try_into().ok()?))
    }

    pub(super) fn half(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at + 4)?.try_into().ok()?))
    }

    fn address(&self, at: usize) -> Option<[u32; 4]> {
        Some([self.half(at)?, self.half(at + 4)?, self.half(at + 8)?, self.half(at + 12)?])
    }

    pub(super) fn tuple(&self, at: usize) -> Option<Tuple> {
        Some(Tuple {
            source: self.address(at)?,
            destination: self.address(at + 16)?,
            ports: self.half(at + 32)?,
        })
    }

    /// The fields at the beginning, which are the same in every layout.
    pub(super) fn counts(&self) -> Option<FlowEvent> {
        Some(FlowEvent {
            id: self.word(0)?,
            bytes: self.word(8)?,
            peer_bytes: self.word(16)?,
            accepted: self.word(24)?,
            last_seen: self.word(32)?,
            ..FlowEvent::default()
        })
    }
}

fn read(item: &[u8]) -> Option<FlowEvent> {
    let report = Report(item);
    let key = |at: usize| Some(FlowKey { tuple: report.tuple(at)?, protocol: report.half(at + 36)? });
    Some(FlowEvent {
        key: key(40)?,
        to: key(80)?,
        kind: report.half(120)?,
        direction: report.half(124)?,
        label: report.half(128)?,
        resets: report.half(132)?,
        connect_time: report.half(136)?,
        reserved: report.half(140)?,
        ..report.counts()?
    })
}
