//! How many connections there may be: all together, and of one source, now and in a second.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use tokio::sync::Notify;

use super::rate::Rates;
use crate::{lock::lock, source::source_of};

/// Counts connections, and says no or not yet.
#[derive(Debug)]
pub struct Admission {
    live: AtomicUsize,
    limit: AtomicUsize,
    freed: Notify,
    sources: Mutex<HashMap<IpAddr, usize>>,
    rates: Rates,
}

/// The right of one connection to be; given back when dropped.
#[derive(Debug)]
pub struct Slot(Arc<Admission>);

/// The place of one connection among those of its source; given back when dropped.
#[derive(Debug)]
pub struct SourceSlot {
    /// `None` where sources are not limited: then nothing is counted. Boxed: it lives as long as the connection.
    counted: Option<Box<(Arc<Admission>, IpAddr)>>,
}

impl Admission {
    /// At most `limit` connections at the same time.
    pub fn new(limit: usize) -> Self {
        Self {
            live: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            freed: Notify::new(),
            sources: Mutex::default(),
            rates: Rates::default(),
        }
    }

    /// Changes the limit; connections above a lower one go on.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
        self.freed.notify_waiters();
    }

    /// The limit.
    pub fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// Connections on sockets now, those that are refused included.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Waits until there may be one more connection, without taking its place.
    pub async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            if self.live.load(Ordering::Relaxed) < self.limit() {
                return;
            }
            freed.await;
        }
    }

    /// Waits until there may be one more connection, and takes its place.
    pub async fn slot(self: &Arc<Self>) -> Slot {
        loop {
            let freed = self.freed.notified();
            if let Some(slot) = self.try_slot() {
                return slot;
            }
            freed.await;
        }
    }

    /// A slot, if one is free now.
    pub fn try_slot(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.limit();
        self.live
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |live| (live < limit).then_some(live + 1))
            .is_ok()
            .then(|| Slot(Arc::clone(self)))
    }

    /// Waits until some connection ends.
    pub async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Counts a connection of this source; `None` where it has `limit` already (0: no limit).
    pub fn source(self: &Arc<Self>, address: IpAddr, limit: usize) -> Option<SourceSlot> {
        if limit == 0 {
            return Some(SourceSlot { counted: None });
        }
        let source = source_of(address);
        let mut sources = self.sources();
        let count = sources.entry(source).or_insert(0);
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(SourceSlot { counted: Some(Box::new((Arc::clone(self), source))) })
    }

    /// Counts that this source connects; says whether it may, by `rate` a second (0: no limit).
    pub fn connects(&self, address: IpAddr, rate: u32) -> bool {
        self.rates.admits(source_of(address), rate, Instant::now())
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        lock(&self.sources)
    }
}

impl SourceSlot {
    /// Whether it is one of a limited number.
    pub fn is_counted(&self) -> bool {
        self.counted.is_some()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::AcqRel);
        // Every waiting acceptor looks again: a stored permit could go to one that does not need it.
        self.0.freed.notify_waiters();
    }
}

impl Drop for SourceSlot {
    fn drop(&mut self) {
        let Some((admission, source)) = self.counted.as_deref() else { return };
        let mut sources = admission.sources();
        if let Some(count) = sources.get_mut(source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_counted_by_address_and_by_64() {
        let admission = Arc::new(Admission::new(10));
        let admit = |address: &str| admission.source(address.parse().unwrap(), 1);
        let first = admit("2001:db8::1");
        assert!(first.is_some());
        assert!(admit("2001:db8::2").is_none());
        let other = admit("2001:db8:0:1::2");
        assert!(other.is_some());
        let v4 = admit("192.0.2.1");
        assert!(v4.is_some());
        assert!(admit("::ffff:192.0.2.1").is_none());
        drop(first);
        assert!(admit("2001:db8::2").is_some());
        drop((other, v4));
        assert!(admission.sources().is_empty());
    }

    #[tokio::test]
    async fn a_full_house_waits_for_one_to_leave() {
        let admission = Arc::new(Admission::new(1));
        let slot = admission.slot().await;
        assert!(admission.try_slot().is_none());
        let waiting = tokio::spawn({
            let admission = admission.clone();
            async move {
                admission.room().await;
                admission.slot().await
            }
        });
        tokio::task::yield_now().await;
        drop(slot);
        let _slot = waiting.await.unwrap();
        assert!(admission.try_slot().is_none());
    }
}
