//! Watches the tunnels: kernel events report devices, addresses and routes; WireGuard's handshakes have no
//! events and are polled.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rtnetlink::Handle;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until},
};

use super::{
    ask,
    link::{self, Events},
    peer::Vigil,
    state::{Device, Fault, TunnelPath, Tunnels},
    uapi,
};
use crate::spec::TunnelSpec;

/// The rest after an event, in which more may come: `ip link set down` is a handful of them.
const GAP: Duration = Duration::from_millis(50);
/// Between two looks at the handshakes.
const CALM: Duration = Duration::from_secs(5);
/// The same while a peer does not answer.
const UNEASY: Duration = Duration::from_secs(1);
/// Before events are asked for again after the kernel closed the socket on us.
const REOPEN: Duration = Duration::from_secs(5);

/// The devices and peers to watch, and how to judge them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    ways: BTreeSet<TunnelPath>,
    options: TunnelSpec,
}

/// Watches the tunnels until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    wanted: watch::Sender<Wanted>,
    tunnels: watch::Receiver<Arc<Tunnels>>,
    network_changed: watch::Receiver<()>,
    task: AbortHandle,
}

impl Watcher {
    /// Starts watching, on the tokio runtime that it is called in.
    pub fn start(options: TunnelSpec) -> io::Result<Self> {
        let (wanted, wishes) = watch::channel(Wanted { ways: BTreeSet::new(), options });
        let (publish, tunnels) = watch::channel(Arc::default());
        let (stir, network_changed) = watch::channel(());
        let (connection, netlink, _) = rtnetlink::new_connection()?;
        // Ends with its handle, and that with the task below.
        tokio::spawn(connection);
        let sight = Sight { netlink, vigils: HashMap::new(), next_poll: None };
        let news = News { publish, stir };
        let task = tokio::spawn(run(sight, Events::open()?, wishes, news)).abort_handle();
        Ok(Self { wanted, tunnels, network_changed, task })
    }

    /// Follows these ways and no others from now on.
    pub fn follow(&self, ways: BTreeSet<TunnelPath>) {
        self.change(|wanted| wanted.ways = ways);
    }

    /// Judges by these options from now on.
    pub fn judge(&self, options: TunnelSpec) {
        self.change(|wanted| wanted.options = options);
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) {
        self.wanted.send_if_modified(|wanted| {
            let before = wanted.clone();
            change(wanted);
            *wanted != before
        });
    }

    /// The current state. It changes with a device or with the verdict on a path. Empty before the first
    /// look.
    pub fn tunnels(&self) -> watch::Receiver<Arc<Tunnels>> {
        self.tunnels.clone()
    }

    /// Changes whenever the kernel reports any change of a device, an address, a route or a rule.
    pub fn network_changed(&self) -> watch::Receiver<()> {
        self.network_changed.clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where what is seen goes.
struct News {
    publish: watch::Sender<Arc<Tunnels>>,
    stir: watch::Sender<()>,
}

async fn run(
    mut sight: Sight,
    mut events: Events,
    mut wishes: watch::Receiver<Wanted>,
    News { publish, stir }: News,
) {
    let mut blind = false;
    let mut judged = None;
    loop {
        let wanted = wishes.borrow_and_update().clone();
        if judged.replace(wanted.options) != Some(wanted.options) {
            // Earlier observations used another limit.
            sight.vigils.clear();
        }
        let seen = sight.look(&wanted).await;
        let was_blind = std::mem::replace(&mut blind, seen.is_err());
        match seen {
            Ok(seen) => {
                publish.send_if_modified(|known| {
                    let news = !known.agrees_with(&seen);
                    *known = Arc::new(seen);
                    news
                });
            }
            Err(error) if !was_blind => tracing::warn!(%error, "the state of the tunnels cannot be read"),
            Err(_) => {}
        }
        let next_poll = sight.next_poll;
        tokio::select! {
            event = events.next() => match event {
                Ok(()) => {
                    sleep(GAP).await;
                    stir.send_replace(());
                }
                Err(error) => {
                    tracing::warn!(%error, "no more events about devices and routes; trying again");
                    sleep(REOPEN).await;
                    if let Ok(reopened) = Events::open() {
                        events = reopened;
                    }
                }
            },
            changed = wishes.changed() => if changed.is_err() {
                return;
            },
            () = sleep_until(next_poll.unwrap_or_else(Instant::now)), if next_poll.is_some() => {}
        }
    }
}

/// The watcher's view of devices and peers.
struct Sight {
    netlink: Handle,
    vigils: HashMap<Arc<str>, Vigil>,
    /// When to look at the handshakes again; `None` while no way leads through WireGuard.
    next_poll: Option<Instant>,
}

impl Sight {
    async fn look(&mut self, Wanted { ways, options }: &Wanted) -> io::Result<Tunnels> {
        let devices = link::devices()?;
        self.look_at_peers(&devices, ways, *options).await;
        let mut faults = HashMap::new();
        for way in ways {
            let (Some(device), Some(address)) = (devices.get(&way.device), way.address) else { continue };
            if !device.up {
                continue;
            }
            if !link::is_routed(&self.netlink, address, device.index).await? {
                faults.insert(way.clone(), Fault::NoRoute);
            } else if let Some(fault) = self.vigils.get(&way.device).and_then(|vigil| vigil.fault(address)) {
                faults.insert(way.clone(), fault);
            }
        }
        let peers = self.vigils.iter().map(|(name, vigil)| (Arc::clone(name), vigil.peers().to_vec()));
        Ok(Tunnels { devices, peers: peers.collect(), faults })
    }

    /// Asks about the peers of devices that some way leads through, if it is time.
    async fn look_at_peers(
        &mut self,
        devices: &BTreeMap<Arc<str>, Device>,
        ways: &BTreeSet<TunnelPath>,
        options: TunnelSpec,
    ) {
        let used: BTreeSet<&Arc<str>> = ways.iter().map(|way| &way.device).collect();
        let used = used.into_iter().filter_map(|name| devices.get_key_value(name));
        let used: Vec<_> = used.filter(|(_, device)| device.up).collect();
        self.vigils.retain(|name, _| used.iter().any(|(used, _)| *used == name));
        let known = used.iter().all(|(name, _)| self.vigils.contains_key(*name));
        if known && self.next_poll.is_some_and(|at| Instant::now() < at) {
            return;
        }
        for (name, device) in used {
            let peers = match (device.wireguard, uapi::socket(name)) {
                (false, None) => continue,
                _ => ask::ask(name).await,
            };
            match peers {
                Ok(peers) => {
                    let limit = options.handshake;
                    let vigil = self.vigils.entry(Arc::clone(name)).or_insert_with(|| Vigil::new(limit));
                    vigil.observe(Instant::now().into_std(), SystemTime::now(), peers);
                }
                // Then the device alone is judged.
                Err(error) => {
                    tracing::debug!(device = &**name, %error, "WireGuard's peers could not be read");
                    self.vigils.remove(name);
                }
            }
        }
        self.next_poll = match self.vigils.values() {
            vigils if vigils.len() == 0 => None,
            mut vigils => Some(Instant::now() + if vigils.any(Vigil::is_uneasy) { UNEASY } else { CALM }),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::namespace::{in_namespace, sh};

    /// Waits for a verdict.
    async fn until(watcher: &Watcher, way: &TunnelPath, expected: Option<Fault>) {
        let mut tunnels = watcher.tunnels();
        let seen = tunnels.wait_for(|tunnels| !tunnels.devices.is_empty() && tunnels.fault(way) == expected);
        let seen = tokio::time::timeout(Duration::from_secs(20), seen).await.is_ok();
        assert!(seen, "{way:?}: {:?} and not {expected:?}", watcher.tunnels().borrow().fault(way));
    }

    fn way(device: &str, address: &str) -> TunnelPath {
        TunnelPath { device: device.into(), address: Some(address.parse().unwrap()) }
    }

    #[test]
    fn devices_and_routes_are_followed_by_event() {
        in_namespace("link", &[], async || {
            sh("ip link set lo up && ip link add v0 type veth peer name v1");
            sh("ip addr add 10.9.0.1/24 dev v0 && ip addr add fd09::1/64 dev v0 nodad");
            let watcher = Watcher::start(TunnelSpec::default()).unwrap();
            let (v4, v6, far) = (way("v0", "10.9.0.2"), way("v0", "fd09::2"), way("v0", "192.0.2.1"));
            watcher.follow([&v4, &v6, &far].map(TunnelPath::clone).into());
            until(&watcher, &v4, Some(Fault::Down)).await;
            sh("ip link set v0 up");
            until(&watcher, &v4, Some(Fault::Down)).await;
            sh("ip link set v1 up");
            until(&watcher, &v4, None).await;
            until(&watcher, &v6, None).await;
            // A default route by another device is none by this one.
            sh("ip route add default dev lo");
            until(&watcher, &far, Some(Fault::NoRoute)).await;
            sh("ip route add 192.0.2.0/24 via 10.9.0.2");
            until(&watcher, &far, None).await;
            let egress = async |address: &str, device| link::egress(address.parse().unwrap(), device).await;
            let expected = link::Egress {
                device: "v0".into(),
                mtu: 1500,
                source: Some("10.9.0.1".parse().unwrap()),
                by_default: false,
            };
            assert_eq!(egress("192.0.2.1", None).await.unwrap(), expected);
            assert_eq!(egress("192.0.2.1", Some("v0")).await.unwrap(), expected);
            assert!(egress("192.0.2.1", Some("no-device")).await.is_err());
            let other = egress("203.0.113.1", None).await.unwrap();
            assert_eq!((&*other.device, other.by_default), ("lo", true));
            sh("ip route change 192.0.2.0/24 via 10.9.0.2 mtu 1300");
            assert_eq!(egress("192.0.2.1", None).await.unwrap().mtu, 1300);
            sh("ip link set v1 down");
            until(&watcher, &v4, Some(Fault::Down)).await;
            sh("ip link del v0");
            until(&watcher, &v4, Some(Fault::Gone)).await;
        });
    }

    /// wireguard-go in the foreground; gone when dropped.
    struct WireguardGo(Child);

    impl WireguardGo {
        async fn start(device: &str) -> Self {
            let child = Command::new("wireguard-go")
                .args(["-f", device])
                .env("LOG_LEVEL", "silent")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let started = Self(child);
            let ready = async {
                while uapi::socket(device).is_none() {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), ready).await.expect("wireguard-go starts");
            started
        }
    }

    impl Drop for WireguardGo {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_wireguard_peer_that_dies_is_noticed() {
        in_namespace("wg", &["wireguard-go", "wg"], async || {
            sh("ip link set lo up");
            let near = WireguardGo::start("edgewga").await;
            let far = WireguardGo::start("edgewgb").await;
            sh("a=$(wg genkey) b=$(wg genkey); A=$(echo $a | wg pubkey) B=$(echo $b | wg pubkey); \
                echo $a | wg set edgewga listen-port 47001 private-key /dev/stdin \
                  peer $B endpoint 127.0.0.1:47002 allowed-ips 10.8.0.2/32; \
                echo $b | wg set edgewgb listen-port 47002 private-key /dev/stdin \
                  peer $A allowed-ips 10.8.0.1/32");
            sh("ip addr add 10.8.0.1/24 dev edgewga && ip link set edgewga up && ip link set edgewgb up");
            let watcher = Watcher::start(TunnelSpec { handshake: Duration::from_secs(2) }).unwrap();
            let (home, nobody) = (way("edgewga", "10.8.0.2"), way("edgewga", "10.8.0.3"));
            watcher.follow([&home, &nobody].map(TunnelPath::clone).into());
            until(&watcher, &nobody, Some(Fault::NoPeer)).await;
            until(&watcher, &home, None).await;
            let socket = tokio::net::UdpSocket::bind("10.8.0.1:0").await.unwrap();
            let traffic = tokio::spawn(async move {
                loop {
                    let _ = socket.send_to(b"hello", "10.8.0.2:9").await;
                    sleep(Duration::from_millis(500)).await;
                }
            });
            let tunnels = watcher.tunnels();
            let shaken = async {
                while tunnels.borrow().peers["edgewga"].iter().all(|peer| peer.handshake.is_none()) {
                    // The counters are no change, so there is no event to wait for.
                    sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(15), shaken).await.expect("a handshake");
            drop(far);
            until(&watcher, &home, Some(Fault::Silent(Duration::from_secs(2)))).await;
            traffic.abort();
            drop(near);
            until(&watcher, &home, Some(Fault::Gone)).await;
        });
    }
}
