//! Backends behind a tunnel device follow it: down when it is, before a connection fails on it.

use std::sync::Arc;

use tokio::{
    task::AbortHandle,
    time::{Duration, sleep},
};

use super::{backend::Backend, condition::Obstacle};
use crate::{
    spec::BackendHost,
    tunnel::{TunnelPath, Tunnels, Watcher},
};

/// How often the addresses of backends with both a device and a name are looked at.
const NAMES: Duration = Duration::from_secs(1);

/// Keeps the backends with a device in step with the tunnels until it is dropped.
#[derive(Debug)]
pub struct TunnelPaths {
    watcher: Arc<Watcher>,
    task: Option<AbortHandle>,
}

impl TunnelPaths {
    /// Follows nothing yet.
    pub fn new(watcher: Arc<Watcher>) -> Self {
        Self { watcher, task: None }
    }

    /// Follows the tunnels of only these backends from now on; backends without a device cost nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn set(&mut self, wanted: impl IntoIterator<Item = Arc<Backend>>) {
        self.stop();
        let backends: Vec<_> = wanted.into_iter().filter(|backend| backend.device().is_some()).collect();
        self.task = Some(tokio::spawn(run(Arc::clone(&self.watcher), backends)).abort_handle());
    }

    fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for TunnelPaths {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn run(watcher: Arc<Watcher>, backends: Vec<Arc<Backend>>) {
    let mut tunnels = watcher.tunnels();
    let named = backends.iter().any(|backend| matches!(backend.to().host, BackendHost::Name(_)));
    loop {
        watcher.follow(backends.iter().flat_map(|backend| ways(backend)).collect());
        let seen = Arc::clone(&tunnels.borrow_and_update());
        // Before the first look nothing is known, not even which devices there are.
        if !seen.devices.is_empty() {
            for backend in &backends {
                backend.obstacle(Obstacle::Tunnel, fault(&seen, backend).as_deref());
            }
        }
        tokio::select! {
            changed = tunnels.changed() => if changed.is_err() {
                return;
            },
            () = sleep(NAMES), if named => {}
        }
    }
}

/// The ways to a backend, one an address.
fn ways(backend: &Backend) -> Vec<TunnelPath> {
    let Some(device) = backend.device() else { return Vec::new() };
    let way = |address| TunnelPath { device: Arc::clone(device), address };
    match &*backend.addresses(0) {
        [] => vec![way(None)],
        addresses => addresses.iter().map(|address| way(Some(address.ip()))).collect(),
    }
}

/// The fault that makes every address of a backend unreachable.
fn fault(tunnels: &Tunnels, backend: &Backend) -> Option<String> {
    let mut first = None;
    for way in ways(backend) {
        let fault = tunnels.fault(&way)?;
        first.get_or_insert_with(|| way.explain(fault));
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        namespace::{in_namespace, sh},
        pool::{BackendState, Backends, Endpoint},
        spec::{BackendSpec, HealthKind, HealthSpec, PoolSpec, TunnelSpec},
    };

    fn backend(to: &str, device: &str) -> BackendSpec {
        BackendSpec { device: Some(device.into()), ..BackendSpec::new(to.parse().unwrap()) }
    }

    async fn until(backend: &Backend, state: BackendState) -> String {
        let wait = async {
            loop {
                let changed = backend.changed();
                if backend.state() == state {
                    return backend.status().reason.unwrap_or_default().to_string();
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("in time")
    }

    #[test]
    fn a_backend_is_down_with_its_device_and_back_with_it() {
        in_namespace("ways", &[], async || {
            sh("ip link add wg0 type veth peer name far0 && ip link add wg1 type veth peer name far1");
            sh("for d in wg0 far0 wg1 far1; do ip link set $d up; done");
            sh("ip addr add 10.9.0.1/24 dev wg0 && ip addr add 10.9.0.3/24 dev wg1");
            let health = HealthSpec { kind: HealthKind::Off, ..HealthSpec::default() };
            let spec = PoolSpec {
                health,
                ..PoolSpec::new(
                    "home",
                    vec![
                        backend("10.9.0.2", "wg0"),
                        BackendSpec { backup: true, ..backend("10.9.0.2", "wg1") },
                    ],
                )
            };
            let pool = Backends::default().pool(&spec);
            let [fibre, mobile] = pool.backends() else { panic!() };
            let mut ways = TunnelPaths::new(Arc::new(Watcher::start(TunnelSpec::default()).unwrap()));
            ways.set(pool.backends().iter().cloned());
            sh("ip link set wg0 down");
            assert_eq!(until(fibre, BackendState::Down).await, "the device wg0 is down");
            assert_eq!(mobile.state(), BackendState::Unchecked);
            let first = pool.attempts("192.0.2.1".parse().unwrap()).next().unwrap();
            assert!(Arc::ptr_eq(&first, mobile));
            sh("ip link set wg0 up");
            assert_eq!(until(fibre, BackendState::Unchecked).await, "its tunnel works");
            sh("ip link del wg1");
            assert_eq!(until(mobile, BackendState::Down).await, "the device wg1 does not exist");
        });
    }

    #[tokio::test]
    async fn one_address_that_can_be_reached_is_enough() {
        let pool =
            Backends::default().pool(&PoolSpec::new("home", vec![backend("caddy.home.example", "lo")]));
        let backend = &pool.backends()[0];
        assert_eq!(ways(backend), [TunnelPath { device: "lo".into(), address: None }]);
        let tunnels = Tunnels::default();
        assert_eq!(fault(&tunnels, backend).unwrap(), "the device lo does not exist");
        let endpoint = |ip: &str| Endpoint { ip: ip.parse().unwrap(), port: None };
        backend.resolved(Ok(vec![endpoint("192.0.2.1"), endpoint("127.0.0.1")]));
        let watcher = Watcher::start(TunnelSpec::default()).unwrap();
        watcher.follow(ways(backend).into_iter().collect());
        let mut tunnels = watcher.tunnels();
        let no_route = |tunnels: &Arc<Tunnels>| tunnels.fault(&ways(backend)[0]).is_some();
        let seen =
            tunnels.wait_for(|tunnels| !tunnels.devices.is_empty() && no_route(tunnels)).await.unwrap();
        assert_eq!(fault(&seen, backend), None);
    }
}
