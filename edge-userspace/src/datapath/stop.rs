//! The order to end a connection, from outside its task: by the operator, the idle sweep or the shutdown.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicBool, AtomicU8, Ordering},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

/// Why the edge itself ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StopReason {
    /// No byte either way for `limits.idle_timeout`.
    Idle = 1,
    /// `edgectl connections close`.
    Operator = 2,
    /// `edgectl routes remove --close`.
    RouteRemoved = 3,
    /// The daemon ends.
    Shutdown = 4,
    /// `edgectl block add`.
    Blocked = 5,
    /// The device that its way home is bound to is gone.
    TunnelGone = 6,
    /// Its first bytes have to give way to those of others.
    HelloMemory = 7,
    /// Its listener or its route refuses its client since a reload.
    Denied = 8,
}

/// Where the order is left and the task that has to obey is woken. The first order stands.
#[derive(Debug, Default)]
pub struct Stop {
    order: AtomicU8,
    nudge: AtomicBool,
    last_call: AtomicBool,
    task: AtomicWaker,
}

impl Stop {
    /// Orders the end.
    pub fn order(&self, reason: StopReason) {
        if self.order.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
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
        match self.order.load(Ordering::Acquire) {
            0 => None,
            1 => Some(StopReason::Idle),
            2 => Some(StopReason::Operator),
            3 => Some(StopReason::RouteRemoved),
            4 => Some(StopReason::Shutdown),
            5 => Some(StopReason::Blocked),
            6 => Some(StopReason::TunnelGone),
            7 => Some(StopReason::HelloMemory),
            _ => Some(StopReason::Denied),
        }
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
