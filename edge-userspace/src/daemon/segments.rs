//! The MSS that listeners announce: no more than the paths home of their routes carry.
//!
//! A client learns it with the SYN-ACK, long before its ClientHello shows which route it wants. It is
//! therefore the minimum over all routes of a listener. The client's segments then fit into every tunnel
//! without fragmentation, which a hand-over depends on.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::Daemon;
use crate::{
    connection::Running,
    kernel::segment,
    lock::lock,
    pool::{Backend, Pool},
    spec::Protocol,
    tunnel::path_mtu,
};

/// A look without an event: names resolve, and path MTUs are learned.
const EVERY: Duration = Duration::from_secs(10);
/// The rest between two looks, however much happens.
const REST: Duration = Duration::from_millis(200);

/// The MSS that a listener announces, and the backend that determines it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Clamp {
    /// The MSS, in bytes.
    pub(super) mss: u16,
    /// The largest packet on the narrowest way.
    pub(super) mtu: u32,
    /// Where that way leads.
    pub(super) by: String,
}

/// The MSS of all listeners, and when to look again.
#[derive(Debug)]
pub(super) struct Segments {
    clamps: Mutex<BTreeMap<Arc<str>, Clamp>>,
    ways: Mutex<KnownPaths>,
    /// Routes or listeners changed.
    outdated: Notify,
    /// Changes with the kernel's devices, addresses and routes; `None` if they cannot be watched.
    network_changed: Option<watch::Receiver<()>>,
}

impl Segments {
    pub(super) fn new(network_changed: Option<watch::Receiver<()>>) -> Self {
        Self { clamps: Mutex::default(), ways: Mutex::default(), outdated: Notify::new(), network_changed }
    }

    /// Changes with devices, addresses and routes of the kernel.
    pub(super) fn network_changed(&self) -> Option<watch::Receiver<()>> {
        self.network_changed.clone()
    }

    /// To be called when routes or listeners changed.
    pub(super) fn outdated(&self) {
        self.outdated.notify_one();
    }

    /// The MSS that each listener may announce now.
    fn look(&self, running: &Running) -> BTreeMap<Arc<str>, Clamp> {
        let mut ways = lock(&self.ways);
        let now = Instant::now();
        let found =
            clamps(running, |address, device| ways.settle(address, device, path_mtu(address, device), now));
        ways.forget_others();
        found
    }

    fn note(&self, found: BTreeMap<Arc<str>, Clamp>) {
        let mut known = lock(&self.clamps);
        for (listener, clamp) in found.iter().filter(|(name, clamp)| known.get(*name) != Some(clamp)) {
            let Clamp { mss, mtu, by } = clamp;
            tracing::info!(listener = &**listener, mss, mtu, backend = by, "the narrowest way home");
        }
        *known = found;
    }

    /// The MSS that this listener announces; `None` if nothing limits it.
    pub(super) fn of(&self, listener: &str) -> Option<Clamp> {
        lock(&self.clamps).get(listener).cloned()
    }
}

/// The known paths to backends, including those that are gone at the moment. While a tunnel is being
/// recreated its packets would take the default route. Clients that connect then, such as those that were
/// just reset, must still learn the tunnel's MSS.
#[derive(Debug, Default)]
struct KnownPaths(HashMap<(IpAddr, Option<String>), KnownPath>);

/// One way.
#[derive(Debug)]
struct KnownPath {
    mtu: u32,
    /// Since when it seems to be wider.
    wider: Option<Instant>,
    is_asked_for: bool,
}

impl KnownPaths {
    /// The value in force for a path after this observation: a smaller one at once, a larger one after it has
    /// lasted for [`EVERY`].
    fn settle(
        &mut self,
        address: IpAddr,
        device: Option<&str>,
        found: io::Result<u32>,
        now: Instant,
    ) -> io::Result<u32> {
        let key = (address, device.map(str::to_owned));
        let Some(way) = self.0.get_mut(&key) else {
            let mtu = found?;
            self.0.insert(key, KnownPath { mtu, wider: None, is_asked_for: true });
            return Ok(mtu);
        };
        way.is_asked_for = true;
        match found {
            Ok(mtu) if mtu > way.mtu => {
                let since = *way.wider.get_or_insert(now);
                if now.duration_since(since) >= EVERY {
                    (way.mtu, way.wider) = (mtu, None);
                }
            }
            Ok(mtu) => (way.mtu, way.wider) = (mtu, None),
            Err(_) => way.wider = None,
        }
        Ok(way.mtu)
    }

    /// Forgets the ways that were not asked for since the last time.
    fn forget_others(&mut self) {
        self.0.retain(|_, way| std::mem::take(&mut way.is_asked_for));
    }
}

impl Daemon {
    /// Updates the announced MSS after changes of routes and tunnels, for as long as the daemon lives.
    pub(super) async fn keep_announcing(&self) {
        let mut network_changed = self.segments.network_changed();
        loop {
            sleep(REST).await;
            tokio::select! {
                () = self.segments.outdated.notified() => {}
                () = network_change(network_changed.as_mut()) => {}
                () = sleep(EVERY) => {}
            }
            self.announce();
        }
    }

    /// Has the listeners announce what fits now.
    pub(super) fn announce(&self) {
        let running = self.edge.running.load_full();
        let found = self.segments.look(&running);
        // Told each time: a socket that a reload opened does not know yet.
        for name in running.listeners.keys() {
            self.workers.announce(name, found.get(name).map(|clamp| clamp.mss));
        }
        self.segments.note(found);
    }
}

/// Ends when something changed; never where nothing is watched.
pub(super) async fn network_change(network_changed: Option<&mut watch::Receiver<()>>) {
    if let Some(network_changed) = network_changed
        && network_changed.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// The MSS that each listener may announce. `mtu` returns the MTU of the path to an address through a device.
/// Listeners without a known path are left out.
fn clamps(
    running: &Running,
    mut mtu: impl FnMut(IpAddr, Option<&str>) -> io::Result<u32>,
) -> BTreeMap<Arc<str>, Clamp> {
    let mut pools: HashMap<*const Pool, Option<Clamp>> = HashMap::new();
    let mut of_pool = |pool: &Arc<Pool>| {
        let found = pools.entry(Arc::as_ptr(pool)).or_insert_with(|| {
            pool.backends()
                .iter()
                .filter_map(|backend| narrowest(backend, &mut mtu))
                .min_by_key(|clamp| clamp.mss)
        });
        found.clone()
    };
    let mut clamps: BTreeMap<Arc<str>, Clamp> = BTreeMap::new();
    let mut limit = |listener: &Arc<str>, clamp: &Clamp| {
        if clamps.get(listener).is_none_or(|known| clamp.mss < known.mss) {
            clamps.insert(Arc::clone(listener), clamp.clone());
        }
    };
    for listener in running.listeners.values() {
        if let Some(clamp) = listener.destination.as_ref().and_then(|to| of_pool(&to.pool)) {
            limit(&listener.spec.name, &clamp);
        }
    }
    let routing = || running.listeners.values().filter(|listener| listener.spec.protocol != Protocol::Tcp);
    for rule in &running.routes {
        let Some(clamp) = of_pool(&rule.target.pool) else { continue };
        let listeners = &rule.conditions.listeners;
        for listener in routing() {
            if listeners.is_empty() || listeners.contains(&listener.spec.name) {
                limit(&listener.spec.name, &clamp);
            }
        }
    }
    clamps
}

/// The narrowest of the ways to a backend; `None` while none is known.
fn narrowest(
    backend: &Backend,
    mut mtu: impl FnMut(IpAddr, Option<&str>) -> io::Result<u32>,
) -> Option<Clamp> {
    let device = backend.device().map(|device| &**device);
    let mut of = |ip: IpAddr| {
        let mtu = mtu(ip, device).ok()?;
        let mss = segment::limit(segment::fitting(mtu, ip.to_canonical().is_ipv4()))?;
        Some(Clamp { mss, mtu, by: backend.id().to_string() })
    };
    backend.addresses(0).iter().filter_map(|address| of(address.ip())).min_by_key(|clamp| clamp.mss)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Settings,
        daemon::build::{Retained, build},
    };

    /// Two tunnels, a wide link, and nothing else.
    fn mtu(address: IpAddr, device: Option<&str>) -> io::Result<u32> {
        match (address.to_string().as_str(), device) {
            ("10.0.0.1" | "fd00::1", None) => Ok(1420),
            ("10.0.0.1", Some("wg1")) => Ok(1280),
            ("127.0.0.1", None) => Ok(65536),
            ("10.0.0.9", None) => Ok(60),
            _ => gone(),
        }
    }

    fn gone() -> io::Result<u32> {
        Err(io::ErrorKind::NetworkUnreachable.into())
    }

    fn announced(text: &str) -> Vec<(String, u16)> {
        let settings = Settings::parse("test", text).unwrap();
        let built = build(&settings, &[], &mut Retained::default());
        clamps(&built.running, mtu).into_iter().map(|(name, clamp)| (name.to_string(), clamp.mss)).collect()
    }

    fn all(mss: u16) -> Vec<(String, u16)> {
        vec![("http".into(), mss), ("https".into(), mss)]
    }

    #[test]
    fn the_narrowest_way_of_all_routes_counts() {
        let v4 = "[[route]]\nhost = \"a.example\"\nto = \"10.0.0.1\"\n";
        let v6 = "[[route]]\nhost = \"b.example\"\nto = \"fd00::1\"\n";
        assert_eq!(announced(v4), all(1380));
        assert_eq!(announced(&[v4, v6].concat()), all(1360), "an IPv6 header is longer");
        let backup = "[[pool]]\nname = \"p\"\n[[pool.backend]]\nto = \"10.0.0.1\"\n[[pool.backend]]\n\
                      to = \"10.0.0.1:1\"\ndevice = \"wg1\"\nbackup = true\n[[route]]\nhost = \"*\"\nto = \"p\"\n";
        assert_eq!(announced(backup), all(1240), "one that is used in need counts too");
    }

    #[test]
    fn a_listener_is_limited_by_its_own_routes_only() {
        let text = "[[listener]]\nname = \"in\"\nbind = [\"[::]:443\"]\n[[listener]]\nname = \"out\"\n\
                    bind = [\"[::]:8443\"]\n[[listener]]\nname = \"raw\"\nbind = [\"[::]:1\"]\nprotocol = \"tcp\"\n\
                    to = \"fd00::1\"\n[[route]]\nhost = \"*\"\nto = \"10.0.0.1\"\nlistener = [\"in\"]\n";
        assert_eq!(announced(text), [("in".into(), 1380), ("raw".into(), 1360)]);
    }

    #[test]
    fn what_is_not_known_or_no_limit_is_left_out() {
        let route = |to: &str| format!("[[route]]\nhost = \"*\"\nto = \"{to}\"\n");
        for to in ["192.0.2.1", "unresolved.example", "127.0.0.1"] {
            assert_eq!(announced(&route(to)), [], "{to}");
        }
        assert_eq!(announced(&route("10.0.0.9")), all(88), "the kernel takes no less");
    }

    #[test]
    fn a_way_that_is_gone_for_a_moment_is_no_wider() {
        let (mut ways, start) = (KnownPaths::default(), Instant::now());
        let home: IpAddr = "10.0.0.1".parse().unwrap();
        let mut settle = |found, seconds| {
            let now = start + Duration::from_secs(seconds);
            let mtu = ways.settle(home, None, found, now).ok();
            ways.forget_others();
            mtu
        };
        assert_eq!(settle(gone(), 0), None, "never seen");
        assert_eq!(settle(Ok(1420), 1), Some(1420));
        assert_eq!(settle(gone(), 100), Some(1420));
        assert_eq!(settle(Ok(1500), 200), Some(1420), "the default route");
        assert_eq!(settle(gone(), 205), Some(1420));
        assert_eq!(settle(Ok(1500), 209), Some(1420));
        assert_eq!(settle(Ok(1500), 218), Some(1420));
        assert_eq!(settle(Ok(1280), 219), Some(1280), "less counts at once");
        assert_eq!(settle(Ok(1500), 220), Some(1280));
        assert_eq!(settle(Ok(1500), 230), Some(1500), "it has been so for long enough");
        ways.forget_others();
        assert!(ways.settle(home, None, gone(), start).is_err(), "no route leads there any more");
    }
}
