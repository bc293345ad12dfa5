//! The order to end a connection, from outside its task: by the operator, the idle sweep or the shutdown.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use crossbeam_utils::atomic::AtomicCell;
use futures_util::task::AtomicWaker;

/// Why the edge itself ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// No byte either way for `limits.idle_timeout`.
    Idle,
    /// `edgectl connections close`.
    Operator,
    /// `edgectl routes remove --close`.
    RouteRemoved,
    /// The daemon ends.
    Shutdown,
    /// `edgectl block add`.
    Blocked,
    /// The device that its way home is bound to is gone.
    TunnelGone,
    /// Its first bytes have to give way to those of others.
    HelloMemory,
    /// Its listener or its route refuses its client since a reload.
    Denied,
}

// Every turn of a connection's task looks at it.
const _: () = assert!(AtomicCell::<Option<StopReason>>::is_lock_free());

/// Where the order is left and the task that has to obey is woken. The first order stands.
#[derive(Debug, Default)]
pub struct Stop {
    order: AtomicCell<Option<StopReason>>,
    nudge: AtomicBool,
    last_call: AtomicBool,
    task: AtomicWaker,
}

impl Stop {
    /// Orders the end.
    pub fn order(&self, reason: StopReason) {
        if self.order.compare_exchange(None, Some(reason)).is_ok() {
            self.task.wake();
        }
    }

    /// Wakes the task to look whether it is time for something.
    pub fn nudge(&self) {
        self.nudge.store(true, Ordering::Release);
        self.task.wake();
    }

    /// The same, where the daemon is about to end: what stays on sockets now ends with it.
    pub fn last_call(&self) {
        self.last_call.store(true, Ordering::Release);
        self.nudge();
    }

    /// Whether the daemon is about to end.
    pub(super) fn is_last_call(&self) -> bool {
        self.last_call.load(Ordering::Acquire)
    }

    /// Whether it was nudged since this was last asked.
    pub(super) fn take_nudge(&self) -> bool {
        self.nudge.load(Ordering::Acquire) && self.nudge.swap(false, Ordering::AcqRel)
    }

    /// Ready once the end was ordered. Only one task may wait.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<StopReason> {
        if let Some(reason) = self.ordered() {
            return Poll::Ready(reason);
        }
        self.task.register(cx.waker());
        // The order may have come between the look and the registration.
        self.ordered().map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits for the order.
    pub async fn ordered_end(&self) -> StopReason {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// The order, if there is one.
    pub fn ordered(&self) -> Option<StopReason> {
        self.order.load()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_call_is_a_nudge_and_stands() {
        let stop = Stop::default();
        stop.nudge();
        assert!(stop.take_nudge() && !stop.take_nudge() && !stop.is_last_call());
        stop.last_call();
        assert!(stop.take_nudge() && !stop.take_nudge() && stop.is_last_call());
    }

    #[test]
    fn the_reason_given_is_the_reason_read() {
        for reason in [
            StopReason::Idle,
            StopReason::Operator,
            StopReason::RouteRemoved,
            StopReason::Shutdown,
            StopReason::Blocked,
            StopReason::TunnelGone,
            StopReason::HelloMemory,
            StopReason::Denied,
        ] {
            let stop = Stop::default();
            assert_eq!(stop.ordered(), None);
            stop.order(reason);
            assert_eq!(stop.ordered(), Some(reason));
        }
    }

    #[tokio::test]
    async fn the_first_order_wakes_and_stands() {
        let stop = std::sync::Arc::new(Stop::default());
        let waiting = tokio::spawn({
            let stop = stop.clone();
            async move { stop.ordered_end().await }
        });
        tokio::task::yield_now().await;
        stop.order(StopReason::Idle);
        stop.order(StopReason::Shutdown);
        assert_eq!(waiting.await.unwrap(), StopReason::Idle);
        assert_eq!(stop.ordered_end().await, StopReason::Idle);
    }
}
