//! What the flow programs report, through a ring buffer.
#![expect(unsafe_code, reason = "registering a descriptor with the runtime")]

use std::{
    fmt, io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use edge_common::flow::{FlowEvent, FlowKey};
use tokio::io::{Interest, unix::AsyncFd};

use super::{KernelError, load::take};

pub(super) const FLOW_EVENTS: &str = "FLOW_EVENTS";

/// The reports; one reader. What is not read is there for the next daemon.
pub struct FlowEvents {
    ring: RingBuf<MapData>,
    /// Registered with the runtime that first waits.
    readiness: Option<AsyncFd<OwnedFd>>,
}

impl FlowEvents {
    pub(super) fn take(ebpf: &mut Ebpf, object: &'static str) -> Result<Self, KernelError> {
        Ok(Self { ring: take(ebpf, object, FLOW_EVENTS)?, readiness: None })
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
    fn next(&mut self) -> Option<FlowEvent> {
        let item = self.ring.next()?;
        let word = |at: usize| Some(u64::from_ne_bytes(item.get(at..at + 8)?.try_into().ok()?));
        let half = |at: usize| Some(u32::from_ne_bytes(item.get(at..at + 4)?.try_into().ok()?));
        let address = |at: usize| Some([half(at)?, half(at + 4)?, half(at + 8)?, half(at + 12)?]);
        let key = |at: usize| {
            Some(FlowKey { source: address(at)?, destination: address(at + 16)?, ports: half(at + 32)? })
        };
        // In the order of the fields, which have no padding between them.
        Some(FlowEvent {
            id: word(0)?,
            bytes: word(8)?,
            peer_bytes: word(16)?,
            accepted: word(24)?,
            last_seen: word(32)?,
            key: key(40)?,
            to: key(76)?,
            kind: half(112)?,
            direction: half(116)?,
            label: half(120)?,
            resets: half(124)?,
            connect_time: half(128)?,
            reserved: half(132)?,
        })
    }
}
