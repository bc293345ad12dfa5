//! The lab itself: client — edge — home, joined by veth pairs.
//!
//! ```text
//!  client 198.18.1.2 ── 198.18.1.1 edge 198.18.2.1 ── 198.18.2.2 home
//!         fd18:1::2      fd18:1::1      fd18:2::1      fd18:2::2
//!                                  100.64.0.1 ══ wg ══ 100.64.0.2   (with a tunnel)
//!                                  100.64.1.1 ══ wg ══ 100.64.1.2   (with a second one)
//! ```
//!
//! Every lab has its own namespaces, so all use the same addresses and cases run side by side.

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{
    firewall,
    host::Host,
    netns::{self, NetNs},
    process,
    router::Router,
    teardown,
    wireguard::{self, FIRST, SECOND, Tunnel},
};

/// Prefix of the names of all lab namespaces and directories.
const PREFIX: &str = "edge-lab-";

/// The edge as home sees it on the link.
pub const EDGE_INSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 2, 1);
/// The same in IPv6.
pub const EDGE_INSIDE_V6: Ipv6Addr = Ipv6Addr::new(0xfd18, 2, 0, 0, 0, 0, 0, 1);
/// A second address of the client, for limits that count sources.
pub const CLIENT_SECOND: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 3);
/// The edge inside the tunnel.
pub const TUNNEL_EDGE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// Home inside the tunnel.
pub const TUNNEL_HOME: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// The edge inside the tunnel, IPv6.
pub const TUNNEL_EDGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 1);
/// Home inside the tunnel, IPv6.
pub const TUNNEL_HOME_V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 0, 0, 0, 0, 0, 0, 2);
/// The edge inside the second tunnel.
pub const SECOND_EDGE: Ipv4Addr = Ipv4Addr::new(100, 64, 1, 1);
/// Home inside the second tunnel.
pub const SECOND_HOME: Ipv4Addr = Ipv4Addr::new(100, 64, 1, 2);
/// The edge inside the second tunnel, IPv6.
pub const SECOND_EDGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 1, 0, 0, 0, 0, 0, 1);
/// Home inside the second tunnel, IPv6.
pub const SECOND_HOME_V6: Ipv6Addr = Ipv6Addr::new(0xfd64, 1, 0, 0, 0, 0, 0, 2);

/// The options of a lab.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is asked for on its own")]
pub struct Plan {
    name: Option<String>,
    tunnels: usize,
    relayed: bool,
    forwarding: bool,
    routers: bool,
    firewalled: bool,
}

impl Plan {
    /// With a WireGuard tunnel from the edge to home.
    #[must_use]
    pub fn tunnel(mut self) -> Self {
        self.tunnels = 1;
        self
    }

    /// With two WireGuard tunnels to the same home, the second one with an MTU of 1280.
    #[must_use]
    pub fn two_tunnels(mut self) -> Self {
        self.tunnels = 2;
        self
    }

    /// The tunnels run over a [`Relay`](crate::relay::Relay) each.
    #[must_use]
    pub fn relayed(mut self) -> Self {
        self.relayed = true;
        self
    }

    /// The edge also forwards packets between client and home, as a plain router.
    #[must_use]
    pub fn forwarding(mut self) -> Self {
        self.forwarding = true;
        self
    }

    /// A router stands in the link to the client and one in the link to home; see [`Lab::routers`].
    #[must_use]
    pub fn routers(mut self) -> Self {
        self.routers = true;
        self
    }

    /// A stateful firewall stands on the edge, see [`firewall`]. It takes `nft`.
    #[must_use]
    pub fn firewalled(mut self) -> Self {
        self.firewalled = true;
        self
    }

    /// A fixed name instead of one made from the process id. A lab of that name that is still up is removed
    /// first.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Makes the lab.
    pub fn build(self) -> Result<Lab> {
        Lab::build(self)
    }

    /// Creates the lab and runs a case in it; if the case fails, shows the logs of its programs.
    pub fn case(self, body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
        let lab = self.build()?;
        let outcome = body(&lab);
        if outcome.is_err() {
            show_logs(lab.directory());
        }
        outcome
    }
}

/// Three hosts. Dropping it removes them and all that runs there.
#[derive(Debug)]
pub struct Lab {
    /// Where clients are.
    pub client: Host,
    /// Where the daemon is.
    pub edge: Host,
    /// Where services are.
    pub home: Host,
    /// The tunnel from the edge to home.
    pub tunnel: Option<Tunnel>,
    /// The second one to the same home.
    pub second: Option<Tunnel>,
    routers: Option<[Router; 2]>,
    guard: Guard,
}

/// Removes a lab, be it complete or left half made by an error.
#[derive(Debug)]
struct Guard {
    tag: String,
    directory: PathBuf,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show_logs(&self.directory);
        }
        teardown::remove(&self.tag);
        let _ = fs::remove_dir_all(pins(&self.tag));
    }
}

/// The daemon keeps its files here as the user that it becomes, where the machine has it.
fn give_to_daemon(directory: &Path) -> Result<()> {
    let users = fs::read_to_string("/etc/passwd")?;
    let ids = users.lines().find_map(|line| {
        let mut fields = line.strip_prefix("edge:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    let Some((user, group)) = ids else { return Ok(()) };
    chown(directory, Some(user), Some(group))
        .with_context(|| format!("giving away {}", directory.display()))?;
    // A daemon of before stays root and gives up the right to write here.
    Ok(fs::set_permissions(directory, fs::Permissions::from_mode(0o777))?)
}

/// Where daemons of a lab pin what they have in the kernel.
fn pins(tag: &str) -> PathBuf {
    Path::new("/sys/fs/bpf").join(format!("{PREFIX}{tag}"))
}

impl Lab {
    /// A plain lab; see [`Plan`] for more.
    pub fn plan() -> Plan {
        Plan::default()
    }

    /// Makes a plain lab and runs a case in it.
    pub fn case(body: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::plan().case(body)
    }

    fn build(plan: Plan) -> Result<Self> {
        static SWEEP: Once = Once::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(|| {
            teardown::sweep(PREFIX, &std::env::temp_dir());
            allow_many_descriptors();
        });

        let tag = match plan.name {
            Some(name) => name,
            None => format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)),
        };
        let of_lab = |host: &str| format!("{PREFIX}{tag}-{host}");
        let names = ["client", "edge", "home"].map(of_lab);
        let routers = ["client-router", "home-router"].map(of_lab);
        let directory = std::env::temp_dir().join(format!("{PREFIX}{tag}"));
        let remains = teardown::Remains {
            sockets: wireguard::sockets(&tag),
            namespaces: [&names[..], &routers[..]].concat(),
            directory: Some(directory.clone()),
        };
        remains.remove();
        teardown::note(&tag, |noted| *noted = remains);
        let guard = Guard { tag: tag.clone(), directory: directory.clone() };
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
        give_to_daemon(&directory)?;

        let [client, edge, home] = &names;
        let client = Host::new(
            NetNs::create(client)?,
            Ipv4Addr::new(198, 18, 1, 2),
            Ipv6Addr::new(0xfd18, 1, 0, 0, 0, 0, 0, 2),
            &directory,
        );
        let edge = Host::new(
            NetNs::create(edge)?,
            Ipv4Addr::new(198, 18, 1, 1),
            Ipv6Addr::new(0xfd18, 1, 0, 0, 0, 0, 0, 1),
            &directory,
        );
        let home = Host::new(
            NetNs::create(home)?,
            Ipv4Addr::new(198, 18, 2, 2),
            Ipv6Addr::new(0xfd18, 2, 0, 0, 0, 0, 0, 2),
            &directory,
        );
        let routers = if plan.routers { Some(Router::both(routers, &directory)?) } else { None };
        wire([&client, &edge, &home], routers.as_ref(), plan.forwarding)?;
        let tunnel = |number: usize, line| {
            let wanted = plan.tunnels >= number;
            wanted.then(|| Tunnel::between(&edge, &home, line, &tag, plan.relayed)).transpose()
        };
        let (tunnel, second) = (tunnel(1, &FIRST)?, tunnel(2, &SECOND)?);
        if plan.firewalled || env::var_os(firewall::EVERYWHERE).is_some() {
            firewall::stateful(&edge)?;
        }
        Ok(Self { client, edge, home, tunnel, second, routers, guard })
    }

    /// A directory of the lab's own, removed with it.
    pub fn directory(&self) -> &Path {
        &self.guard.directory
    }

    /// Where its daemons pin what they have in the kernel; removed with the lab.
    pub fn pins(&self) -> PathBuf {
        pins(&self.guard.tag)
    }

    /// Shows the ends of the logs of all programs, for a case that failed.
    pub fn show_logs(&self) {
        show_logs(self.directory());
    }

    /// Writes a file into the lab's directory.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.directory().join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The tunnels of a lab with two.
    pub fn tunnels(&self) -> Result<[&Tunnel; 2]> {
        let both = self.tunnel.as_ref().zip(self.second.as_ref());
        both.map(|(first, second)| [first, second]).context("the lab has not two tunnels")
    }

    /// The router in the link to the client, and the one in the link to home.
    pub fn routers(&self) -> Result<&[Router; 2]> {
        self.routers.as_ref().context("the lab has no routers")
    }

    /// Home as the edge reaches it: through the tunnel where there is one.
    pub fn home_address(&self) -> IpAddr {
        if self.tunnel.is_some() { TUNNEL_HOME.into() } else { self.home.v4.into() }
    }

    /// [`home_address`](Self::home_address) with a port.
    pub fn home_at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.home_address(), port)
    }

    /// Leaves the lab and its programs running when the process ends. Each program must be detached.
    pub fn keep(self) {
        let Self { tunnel, second, guard, .. } = self;
        for tunnel in tunnel.into_iter().chain(second) {
            tunnel.keep();
        }
        teardown::forget(&guard.tag);
        std::mem::forget(guard);
    }

    /// Removes a lab with a fixed name that was left up.
    pub fn remove(name: &str) {
        let namespaces = netns::with_prefix(&format!("{PREFIX}{name}-"));
        let directory = Some(std::env::temp_dir().join(format!("{PREFIX}{name}")));
        teardown::Remains { namespaces, directory, sockets: wireguard::sockets(name) }.remove();
    }
}

/// Writes the ends of all logs to standard error.
fn show_logs(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut logs: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    for log in logs {
        let text = process::tail(&log);
        if !text.is_empty() {
            let name = log.file_name().unwrap_or_default().to_string_lossy();
            eprintln!("--- end of {name}:\n{}\n---", text.trim_end());
        }
    }
}

/// Peers with thousands of connections run in this process; the usual soft limit is 1024.
fn allow_many_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        eprintln!("lab: the limit of open files stays as it is: {error}");
    }
}

/// Joins the hosts and gives them addresses, routes and limits fit for tests.
fn wire([client, edge, home]: [&Host; 3], routers: Option<&[Router; 2]>, forwarding: bool) -> Result<()> {
    match routers {
        None => {
            join((client, "eth0"), (edge, "front"))?;
            join((edge, "back"), (home, "eth0"))?;
        }
        Some([to_client, to_home]) => {
            to_client.cable((edge, "front"), (client, "eth0"))?;
            to_home.cable((edge, "back"), (home, "eth0"))?;
        }
    }
    for (host, device, v4, v6) in [
        (client, "eth0", client.v4, client.v6),
        (edge, "front", edge.v4, edge.v6),
        (edge, "back", EDGE_INSIDE, EDGE_INSIDE_V6),
        (home, "eth0", home.v4, home.v6),
    ] {
        add_address(host, device, v4.into(), 24)?;
        add_address(host, device, v6.into(), 64)?;
        host.ip(&["link", "set", device, "up"])?;
    }
    add_address(client, "eth0", CLIENT_SECOND.into(), 24)?;
    for (host, v4, v6) in [
        (client, edge.v4.to_string(), edge.v6.to_string()),
        (home, EDGE_INSIDE.to_string(), EDGE_INSIDE_V6.to_string()),
    ] {
        host.ip(&["route", "add", "default", "via", &v4])?;
        host.ip(&["-6", "route", "add", "default", "via", &v6])?;
    }
    if let Some([to_client, to_home]) = routers {
        to_client.lead((edge, "front", edge.v4, edge.v6), (client, "eth0", client.v4, client.v6))?;
        to_home.lead((edge, "back", EDGE_INSIDE, EDGE_INSIDE_V6), (home, "eth0", home.v4, home.v6))?;
    }
    for host in [client, edge, home] {
        host.sysctl(&[
            ("net.core.somaxconn", "8192"),
            ("net.ipv4.tcp_max_syn_backlog", "8192"),
            ("net.ipv4.ip_local_port_range", "10240 65000"),
            // Thousands of short connections between two addresses must not run out of ports.
            ("net.ipv4.tcp_tw_reuse", "1"),
        ])?;
    }
    let forward = if forwarding { "1" } else { "0" };
    edge.sysctl(&[("net.ipv4.ip_forward", forward), ("net.ipv6.conf.all.forwarding", forward)])
}

/// A veth pair between two hosts.
pub(crate) fn join(left: (&Host, &str), right: (&Host, &str)) -> Result<()> {
    let (left, left_device) = left;
    let (right, right_device) = right;
    netns::ip(&[
        "link",
        "add",
        left_device,
        "netns",
        left.namespace().name(),
        "type",
        "veth",
        "peer",
        "name",
        right_device,
        "netns",
        right.namespace().name(),
    ])
}

/// Adds an address; IPv6 without duplicate address detection, which would delay its use.
pub(crate) fn add_address(host: &Host, device: &str, address: IpAddr, prefix: u8) -> Result<()> {
    let text = format!("{address}/{prefix}");
    let mut arguments = vec!["address", "add", &text, "dev", device];
    if address.is_ipv6() {
        arguments.push("nodad");
    }
    host.ip(&arguments)
}
