//! The live account of one connection.
//!
//! In user space one task writes and anybody reads: plain loads and stores on atomics, without locked
//! instructions on the data path. While a kernel tier carries, the kernel counts, and readers query it.

use std::{
    fmt::Debug,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwapOption;
use crossbeam_utils::atomic::AtomicCell;

use super::Side;
use crate::{lock::lock, spec::Tier};

// A lock in the cell would be one on the data path.
const _: () = assert!(AtomicCell::<Tier>::is_lock_free());

/// Bytes and tier of one connection, as the client and the backend see the stream: the ClientHello counts, a
/// PROXY header does not.
#[derive(Debug, Default)]
pub struct Meter {
    up: AtomicU64,
    down: AtomicU64,
    kernel: ArcSwapOption<KernelCounts>,
    tier: AtomicCell<Tier>,
    spilled: AtomicBool,
    half_closed: AtomicBool,
}

impl Meter {
    /// Bytes delivered to the backend's socket.
    pub fn up(&self) -> u64 {
        self.from(Side::Client)
    }

    /// Bytes delivered to the client's socket.
    pub fn down(&self) -> u64 {
        self.from(Side::Backend)
    }

    /// Bytes both ways that user space has counted.
    pub(super) fn on_sockets(&self) -> u64 {
        self.up.load(Relaxed) + self.down.load(Relaxed)
    }

    /// So many bytes have come from this side at least.
    pub(crate) fn raise(&self, from: Side, bytes: u64) {
        self.counter(from).0.fetch_max(bytes, Relaxed);
    }

    /// The tier that carries now, or carried last.
    pub fn tier(&self) -> Tier {
        self.tier.load()
    }

    /// Whether the kernel has left a direction to user space, because its reader was too slow.
    pub fn spilled(&self) -> bool {
        self.spilled.load(Relaxed)
    }

    /// Whether one direction has ended, as far as user space has seen.
    pub fn half_closed(&self) -> bool {
        self.half_closed.load(Relaxed)
    }

    pub(super) fn set_half_closed(&self) {
        self.half_closed.store(true, Relaxed);
    }

    pub(super) fn set_tier(&self, tier: Tier) {
        self.tier.store(tier);
    }

    pub(super) fn set_spilled(&self) {
        self.spilled.store(true, Relaxed);
    }

    /// The counter of what goes to the backend; for the one task that carries.
    pub(super) fn counter_up(&self) -> Counter<'_> {
        self.counter(Side::Client)
    }

    /// The counter of what goes to the client; for the one task that carries.
    pub(super) fn counter_down(&self) -> Counter<'_> {
        self.counter(Side::Backend)
    }

    /// The counter of what comes from this side; for the one task that carries.
    pub(super) fn counter(&self, from: Side) -> Counter<'_> {
        match from {
            Side::Client => Counter(&self.up),
            Side::Backend => Counter(&self.down),
        }
    }

    /// Bytes that came from this side.
    pub(super) fn from(&self, side: Side) -> u64 {
        let Counter(bytes) = self.counter(side);
        match self.kernel.load().as_ref().and_then(|kernel| kernel.of(side).bytes()) {
            // Other readers may have queried the kernel at the same time, in any order: the count only grows.
            Some(counted) => bytes.fetch_max(counted, Relaxed).max(counted),
            None => bytes.load(Relaxed),
        }
    }

    /// From now on the kernel counts what comes from the client and what comes from the backend.
    pub(super) fn enter_kernel(&self, client: Arc<dyn KernelCount>, backend: Arc<dyn KernelCount>) {
        let counts = KernelCounts {
            client: Counting { before: self.up.load(Relaxed), count: Mutex::new(Some(client)) },
            backend: Counting { before: self.down.load(Relaxed), count: Mutex::new(Some(backend)) },
        };
        self.kernel.store(Some(Arc::new(counts)));
    }

    /// The kernel has carried this many bytes from this side and will carry no more; user space continues to
    /// count. Only the first call has an effect.
    pub(super) fn leave_kernel(&self, from: Side, bytes: u64) {
        if let Some(kernel) = &*self.kernel.load()
            && let Some(total) = kernel.of(from).end(bytes)
        {
            self.counter(from).0.store(total, Relaxed);
        }
    }
}

/// Where the kernel counts one direction.
pub(super) trait KernelCount: Debug + Send + Sync {
    /// Bytes since the kernel took over; `None` where it cannot be asked.
    fn bytes(&self) -> Option<u64>;
}

#[derive(Debug)]
struct KernelCounts {
    client: Counting,
    backend: Counting,
}

impl KernelCounts {
    fn of(&self, side: Side) -> &Counting {
        match side {
            Side::Client => &self.client,
            Side::Backend => &self.backend,
        }
    }
}

#[derive(Debug)]
struct Counting {
    /// Bytes before the kernel took over.
    before: u64,
    /// `None` once user space counts again.
    count: Mutex<Option<Arc<dyn KernelCount>>>,
}

impl Counting {
    fn bytes(&self) -> Option<u64> {
        let count = lock(&self.count);
        Some(self.before + count.as_ref()?.bytes()?)
    }

    fn end(&self, bytes: u64) -> Option<u64> {
        let count = lock(&self.count).take();
        count.map(|_| self.before + bytes)
    }
}

/// A counter with a single writer.
#[derive(Clone, Copy)]
pub(super) struct Counter<'a>(&'a AtomicU64);

impl Counter<'_> {
    pub(super) fn add(self, bytes: usize) {
        self.0.store(self.0.load(Relaxed) + bytes as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Kernel(AtomicU64);

    impl KernelCount for Kernel {
        fn bytes(&self) -> Option<u64> {
            Some(self.0.load(Relaxed))
        }
    }

    #[test]
    fn the_tier_is_the_one_set_last() {
        let meter = Meter::default();
        assert_eq!(meter.tier(), Tier::Copy);
        for tier in [Tier::Splice, Tier::Sockmap, Tier::Flow, Tier::Copy] {
            meter.set_tier(tier);
            assert_eq!(meter.tier(), tier);
        }
    }

    #[test]
    fn counts_of_user_space_and_kernel_are_one() {
        let (meter, kernel) = (Meter::default(), Arc::new(Kernel::default()));
        meter.counter_up().add(100);
        meter.enter_kernel(Arc::clone(&kernel) as _, Arc::new(Kernel::default()));
        assert_eq!(meter.up(), 100);
        kernel.0.store(11, Relaxed);
        assert_eq!((meter.up(), meter.down()), (111, 0));
        meter.leave_kernel(Side::Client, 12);
        meter.counter_up().add(1);
        kernel.0.store(1000, Relaxed);
        assert_eq!((meter.up(), meter.down()), (113, 0));
        meter.leave_kernel(Side::Client, 1000);
        assert_eq!(meter.up(), 113);
    }
}
