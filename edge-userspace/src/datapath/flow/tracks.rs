//! Keeps flows out of connection tracking. Entries are deleted when the sockets are gone and again when the
//! flow ends, because a stray packet creates a new one.
//!
//! The control runtime deletes them, many at a time; workers only leave a note.

use std::{collections::VecDeque, io, sync::Mutex, time::Duration};

use edge_common::flow::FlowKey;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{handover::GRACE, tier::FlowTier};
use crate::{
    kernel::{Ends, Fill, FlowPair, Tracker},
    lock::lock,
};

/// The time from the end of a hand-over to the deletion of its entries: packets on their way into the stack
/// have arrived by then.
const AFTERWARDS: Duration = GRACE.saturating_mul(2);
/// The most notes that may wait. Further entries are deleted when the flow ends.
const MOST: usize = 1 << 17;
/// Flows a turn; between two of them others have theirs.
const BATCH: usize = 128;

/// A flow whose entries are to be deleted, and when.
#[derive(Clone, Copy, Debug)]
struct Due {
    at: Instant,
    id: u64,
    up_key: FlowKey,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    /// `None` where there is no netlink for it.
    tracker: Mutex<Option<Tracker>>,
    due: Mutex<VecDeque<Due>>,
    added: Notify,
}

impl Tracks {
    pub(super) fn new() -> Self {
        let tracker = Tracker::open().inspect_err(|error| {
            tracing::debug!(%error, "connection tracking cannot be reached");
        });
        Self { tracker: Mutex::new(tracker.ok()), ..Self::default() }
    }

    /// Notes that nothing of this flow goes to the stack any more.
    pub(super) fn is_flow(&self, id: u64, up_key: FlowKey) {
        let mut due = lock(&self.due);
        if due.len() < MOST {
            due.push_back(Due { at: Instant::now() + AFTERWARDS, id, up_key });
            self.added.notify_one();
        }
    }

    /// Deletes now. Must be called while the flow is in the table: no other connection can have its addresses
    /// then.
    pub(super) fn forget(&self, ends: &[Ends]) {
        let mut tracker = lock(&self.tracker);
        let Some(open) = &mut *tracker else { return };
        match open.forget(ends) {
            Ok(()) => {}
            Err(error) if is_refused(&error) => {
                tracing::warn!(
                    %error,
                    "entries of flows stay in connection tracking: give edged CAP_NET_ADMIN, and the kernel its module \
                     nf_conntrack_netlink"
                );
                *tracker = None;
            }
            Err(error) => tracing::debug!(%error, "connection tracking keeps entries of flows"),
        }
    }

    /// Makes the firewall accept the sockets' retransmissions while connections become flows. Must be called
    /// before the hand-over.
    pub(super) fn loosen(&self, ends: &[Ends]) {
        if let Some(open) = &mut *lock(&self.tracker)
            && let Err(error) = open.loosen(ends)
        {
            tracing::debug!(%error, "the firewall may drop what sockets repeat during a hand-over");
        }
    }

    /// Makes the firewall pass a reset or a keepalive probe of a flow. `false` if the table is full: the firewall then
    /// drops the packet.
    pub(super) fn admit(&self, ends: &Ends) -> bool {
        let admitted = lock(&self.tracker).as_mut().map_or(Ok(()), |open| open.admit(ends));
        let Err(error) = admitted else { return true };
        tracing::debug!(%error, "the firewall may drop a reset or a keepalive probe of a flow");
        !Fill::now().is_some_and(Fill::is_full)
    }

    fn next_due(&self, now: Instant) -> Vec<Due> {
        let mut due = lock(&self.due);
        let ready = due.iter().take(BATCH).take_while(|due| due.at <= now).count();
        due.drain(..ready).collect()
    }
}

impl FlowTier {
    /// Deletes the entries of flows as they become due, for as long as the daemon lives.
    pub async fn tend_tracks(&self) {
        let tracks = self.tracks();
        loop {
            let first = lock(&tracks.due).front().map(|due| due.at);
            match first {
                Some(at) => tokio::select! {
                    () = sleep_until(at) => {}
                    () = tracks.added.notified() => {}
                },
                None => tracks.added.notified().await,
            }
            let due = tracks.next_due(Instant::now());
            // One that has ended may have given its addresses to another connection.
            let still = due.iter().filter_map(|due| self.pair(&due.up_key, due.id).ok().flatten());
            let ends: Vec<Ends> = still.flat_map(|pair| ends_of(&pair)).collect();
            if !ends.is_empty() {
                tracks.forget(&ends);
            }
            tokio::task::yield_now().await;
        }
    }
}

/// Whether it will be the same next time.
fn is_refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
        || matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// Both connections that a flow was.
pub(super) fn ends_of(pair: &FlowPair) -> [Ends; 2] {
    let FlowPair { up_key, up, .. } = pair;
    [
        Ends { local: up_key.destination(), peer: up_key.source() },
        Ends { local: up.to.source(), peer: up.to.destination() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_become_due_in_their_order_and_some_at_a_time() {
        let tracks = Tracks::default();
        let before = Instant::now();
        (0..200).for_each(|id| tracks.is_flow(id, FlowKey::default()));
        assert!(tracks.next_due(before).is_empty(), "a packet may still be on its way");
        let later = Instant::now() + AFTERWARDS;
        let ids = |due: Vec<Due>| due.iter().map(|due| due.id).collect::<Vec<_>>();
        assert_eq!(ids(tracks.next_due(later)), (0..BATCH as u64).collect::<Vec<_>>());
        assert_eq!(ids(tracks.next_due(later)), (BATCH as u64..200).collect::<Vec<_>>());
        assert!(tracks.next_due(later).is_empty());
    }

    #[test]
    fn notes_have_a_bound() {
        let tracks = Tracks::default();
        (0..=MOST as u64).for_each(|id| tracks.is_flow(id, FlowKey::default()));
        assert_eq!(lock(&tracks.due).len(), MOST);
    }
}
