//! The checks that are running: one task a backend, which mostly sleeps.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{CheckError, Plan, check};
use crate::pool::{backend::Backend, identity::BackendId};

/// The most checks under way at once: when all backends are dead, each holds a socket for its whole timeout.
const AT_ONCE: usize = 1024;
/// The first check comes within this time, so that a start with thousands of backends is no storm.
const FIRST_WITHIN: Duration = Duration::from_secs(1);
/// A failed client brings the next check forward, but not closer to the last one than this.
const AFTER_SUSPICION: Duration = Duration::from_millis(200);

/// The checks that are running. Dropping it ends them.
#[derive(Debug)]
pub struct Checks {
    running: HashMap<BackendId, Running>,
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Running {
    backend: Arc<Backend>,
    plan: Plan,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self { running: HashMap::new(), permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Checks {
    /// Checks only these backends from now on; those with an unchanged plan continue undisturbed. Backends
    /// whose checks are off belong here too: the same task brings them back after failures.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime; the checks run on the one that this is called in.
    pub fn set(&mut self, wanted: impl IntoIterator<Item = (Arc<Backend>, Plan)>) {
        let mut before = std::mem::take(&mut self.running);
        for (backend, plan) in wanted {
            // Routes may lead to the same backend with other plans: the first one's counts.
            if self.running.contains_key(backend.id()) {
                continue;
            }
            let kept = before.remove(backend.id());
            let kept = kept.filter(|kept| kept.plan == plan && Arc::ptr_eq(&kept.backend, &backend));
            let running = kept.unwrap_or_else(|| {
                backend.check_on(plan.port);
                let permits = Arc::clone(&self.permits);
                let task = tokio::spawn(run(Arc::clone(&backend), plan.clone(), permits));
                Running { backend: Arc::clone(&backend), plan, task: task.abort_handle() }
            });
            self.running.insert(backend.id().clone(), running);
        }
    }
}

async fn run(backend: Arc<Backend>, mut plan: Plan, permits: Arc<Semaphore>) {
    let checked = !plan.asks.is_empty();
    if checked {
        sleep(plan.health.interval.min(FIRST_WITHIN).mul_f64(fastrand::f64())).await;
    }
    loop {
        let mut start = Instant::now();
        // A name that is not resolved keeps the backend down by itself, and says so better.
        if checked && backend.is_located() {
            // The semaphore is never closed; if it were, checking without a limit would be the lesser harm.
            let _permit = permits.acquire().await;
            start = Instant::now();
            match check(&backend, &plan).await {
                Ok((answered, rtt)) => {
                    // The protocol that it answered in is tried first from now on.
                    plan.asks.sort_by_key(|&ask| ask != answered);
                    backend.checked(Ok(rtt));
                }
                // Out of sockets: no news of the backend.
                Err(CheckError::Connect(error)) if !error.blames_backend() => {
                    tracing::warn!(backend = %backend.id(), %error, "health check not done");
                }
                Err(error) => backend.checked(Err(&error.to_string())),
            }
        }
        let next = backend.next_check(fastrand::f64());
        tokio::select! {
            () = sleep(next.unwrap_or(Duration::MAX).saturating_sub(start.elapsed())), if next.is_some() => {
                backend.retry();
            }
            () = backend.suspected() => sleep_until(start + AFTER_SUSPICION).await,
        }
    }
}

#[cfg(test)]
mod tests;
