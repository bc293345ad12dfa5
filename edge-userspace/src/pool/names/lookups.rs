//! Backends that are given by name: a task for each resolves the name when the last answer expires.
//!
//! Nothing waits for this: a backend without an address is down until it has one, and keeps the last valid
//! address.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    answers::{Memory, Schedule},
    resolve::Resolver,
};
use crate::{
    pool::{Backend, BackendId, BackendState},
    spec::{BackendHost, HostName},
};

/// The names that are being looked up. Dropping it ends that; the addresses found stay.
#[derive(Debug)]
pub struct Names {
    resolver: Arc<Resolver>,
    running: HashMap<BackendId, Running>,
}

#[derive(Debug)]
struct Running {
    backend: Arc<Backend>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Names {
    /// Looks up nothing yet.
    pub fn new(resolver: Resolver) -> Self {
        Self { resolver: Arc::new(resolver), running: HashMap::new() }
    }

    /// Looks up only these backends from now on; those that are given by address cost nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime; the questions are asked on the one that this is called in.
    pub fn set(&mut self, wanted: impl IntoIterator<Item = Arc<Backend>>) {
        let mut before = std::mem::take(&mut self.running);
        for backend in wanted {
            if let Some(labels) = backend.labels() {
                labels.set_resolver(&self.resolver);
            }
            let BackendHost::Name(name) = &backend.to().host else { continue };
            let kept = before.remove(backend.id()).filter(|kept| Arc::ptr_eq(&kept.backend, &backend));
            let running = kept.unwrap_or_else(|| {
                let task = tokio::spawn(run(Arc::clone(&self.resolver), name.clone(), Arc::clone(&backend)));
                Running { backend: Arc::clone(&backend), task: task.abort_handle() }
            });
            self.running.insert(backend.id().clone(), running);
        }
    }
}

async fn run(resolver: Arc<Resolver>, name: HostName, backend: Arc<Backend>) {
    let mut memory = Memory::default();
    let mut schedule = Schedule::default();
    let mut failing = false;
    loop {
        let outcome = resolver.resolve(&name, &mut memory).await;
        let asked = Instant::now();
        let wait = schedule.next(outcome.as_ref().ok().and_then(|found| found.ttl));
        match &outcome {
            Ok(_) if failing => tracing::info!(%name, "the name resolves again"),
            Err(error) if !failing => tracing::warn!(%name, error, "the name does not resolve"),
            _ => {}
        }
        failing = outcome.is_err();
        match outcome {
            Ok(found) => backend.resolved(Ok(found.endpoints)),
            Err(error) => backend.resolved(Err(&error)),
        }
        tokio::select! {
            () = sleep(wait) => {}
            () = went_down(&backend) => sleep_until(asked + resolver.patience.down).await,
        }
    }
}

async fn went_down(backend: &Backend) {
    loop {
        backend.changed().await;
        if backend.state() == BackendState::Down {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use super::*;
    use crate::{
        pool::{
            Backends, Pool,
            names::resolve::tests::{IMPATIENT, address, ip, server},
        },
        spec::{BackendSpec, PoolSpec},
    };

    fn pool(name: &str) -> Pool {
        let spec = PoolSpec::new("home", vec![BackendSpec::new(name.parse().unwrap())]);
        Backends::default().pool(&spec)
    }

    async fn until(backend: &Backend, done: impl Fn(&Backend) -> bool) {
        let wait = async {
            loop {
                let changed = backend.changed();
                if done(backend) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time");
    }

    #[tokio::test]
    async fn a_backend_comes_up_when_its_name_resolves_and_moves_with_it() {
        let (server, zone) = server().await;
        let pool = pool("caddy.home.example");
        let backend = &pool.backends()[0];
        let mut names = Names::new(Resolver::with_patience(&[server], [], None, IMPATIENT));
        names.set([Arc::clone(backend)]);
        assert_eq!(backend.state(), BackendState::Down, "and nobody waited");
        address(&zone, "caddy.home.example.", "127.0.0.1");
        until(backend, |backend| backend.state() == BackendState::Up).await;
        assert_eq!(backend.addresses(443)[..], [SocketAddr::from(([127, 0, 0, 1], 443))]);

        // Home got another address long before the TTL expires. Clients fail, and the name is resolved again.
        address(&zone, "caddy.home.example.", "127.0.0.2");
        tokio::task::yield_now().await;
        for _ in 0..3 {
            backend.failed(443, backend.epoch(), "connection timed out");
        }
        let moved = async {
            while backend.addresses(443)[0].ip() != ip("127.0.0.2") {
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), moved).await.expect("in time");
        names.set([]);
        assert_eq!(backend.addresses(443).len(), 1, "kept when nobody asks any more");
    }
}
