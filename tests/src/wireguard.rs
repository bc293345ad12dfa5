//! A WireGuard tunnel between two hosts: the kernel's where it has the module, otherwise wireguard-go.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::{
    host::Host,
    lock::lock,
    process::{self, Process},
    relay::Relay,
    topology::{
        self, EDGE_INSIDE, SECOND_EDGE, SECOND_EDGE_V6, SECOND_HOME, SECOND_HOME_V6, TUNNEL_EDGE,
        TUNNEL_EDGE_V6, TUNNEL_HOME, TUNNEL_HOME_V6,
    },
    wait,
};

/// Where wireguard-go has its sockets, one for each device name, whatever the namespace.
pub(crate) const SOCKETS: &str = "/var/run/wireguard";

/// Prefix of device names; the lab's tag and the letters for the end follow.
pub(crate) const PREFIX: &str = "wg";

/// One of the tunnels that a lab may have.
#[derive(Debug)]
pub(crate) struct Line {
    /// The ends' letters in the names of devices.
    letters: [&'static str; 2],
    /// Where both ends listen.
    port: u16,
    mtu: u32,
    edge: (Ipv4Addr, Ipv6Addr),
    home: (Ipv4Addr, Ipv6Addr),
}

/// WireGuard's own default MTU: what is left of 1500 after the outer IPv6 and WireGuard headers.
pub(crate) const FIRST: Line = Line {
    letters: ["e", "h"],
    port: 51820,
    mtu: 1420,
    edge: (TUNNEL_EDGE, TUNNEL_EDGE_V6),
    home: (TUNNEL_HOME, TUNNEL_HOME_V6),
};

/// The least that IPv6 allows, and what Tailscale has.
pub(crate) const SECOND: Line = Line {
    letters: ["ee", "hh"],
    port: 51821,
    mtu: 1280,
    edge: (SECOND_EDGE, SECOND_EDGE_V6),
    home: (SECOND_HOME, SECOND_HOME_V6),
};

/// A tunnel that was brought up.
#[derive(Debug)]
pub struct Tunnel {
    edge: End,
    home: End,
    relay: Option<Relay>,
}

/// One end of a tunnel, which may die and come back.
#[derive(Debug)]
pub struct End {
    device: String,
    configuration: PathBuf,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    mtu: String,
    /// wireguard-go, where it is what carries.
    userspace: Mutex<Option<Process>>,
}

impl Tunnel {
    /// Brings a tunnel up and waits until packets pass. The devices' names contain `tag`, because the sockets
    /// of wireguard-go are shared by all namespaces. With `relayed`, a [`Relay`] is the line.
    pub(crate) fn between(edge: &Host, home: &Host, line: &Line, tag: &str, relayed: bool) -> Result<Self> {
        let to_home = SocketAddr::from((home.v4, line.port));
        let relay = relayed.then(|| Relay::start(edge, to_home)).transpose()?;
        let (edge_key, home_key) = (private_key()?, private_key()?);
        let [edge_device, home_device] = line.devices(tag);
        let end = |host: &Host, device, own: &str, peer: &str, (v4, v6), (far_v4, far_v6), endpoint| {
            End::new(
                host,
                device,
                line,
                (v4, v6),
                &[own, peer],
                &format!("{far_v4}/32, {far_v6}/128"),
                endpoint,
            )
        };
        let to_edge = SocketAddr::from((EDGE_INSIDE, line.port));
        let near = relay.as_ref().map_or(to_home, Relay::near);
        let edge_end = end(edge, edge_device, &edge_key, &home_key, line.edge, line.home, Some(near))?;
        // Behind a relay home hears from a port that it learns with the first handshake.
        let known = relay.is_none().then_some(to_edge);
        let home_end = end(home, home_device, &home_key, &edge_key, line.home, line.edge, known)?;
        home_end.bring_up(home)?;
        edge_end.bring_up(edge)?;
        let tunnel = Self { edge: edge_end, home: home_end, relay };
        tunnel.wait(edge)?;
        Ok(tunnel)
    }

    /// Waits until packets pass: a refused connection has been through the tunnel and back.
    pub fn wait(&self, edge: &Host) -> Result<()> {
        wait::until_true("the WireGuard tunnel", wait::SOON, || {
            let attempt = edge.run(|| {
                Ok(std::net::TcpStream::connect_timeout(&(self.home.v4, 1).into(), Duration::from_secs(2))
                    .map_err(|error| error.kind()))
            });
            matches!(attempt, Ok(Ok(_) | Err(std::io::ErrorKind::ConnectionRefused)))
        })
    }

    /// The device on the edge.
    pub fn edge_device(&self) -> &str {
        &self.edge.device
    }

    /// The device at home.
    pub fn home_device(&self) -> &str {
        &self.home.device
    }

    /// The end on the edge.
    pub fn edge(&self) -> &End {
        &self.edge
    }

    /// The end at home.
    pub fn home(&self) -> &End {
        &self.home
    }

    /// Home inside the tunnel.
    pub fn home_address(&self) -> IpAddr {
        self.home.v4.into()
    }

    /// Home inside the tunnel, IPv6.
    pub fn home_address_v6(&self) -> IpAddr {
        self.home.v6.into()
    }

    /// The line that it runs over, in a lab with [`relayed`](topology::Plan::relayed) tunnels.
    pub fn relay(&self) -> Result<&Relay> {
        self.relay.as_ref().context("the lab has no relayed tunnels")
    }

    /// Whether the kernel carries the tunnel, not wireguard-go.
    pub fn in_kernel(&self) -> bool {
        self.edge.process().is_none()
    }

    pub(crate) fn keep(self) {
        for end in [&self.edge, &self.home] {
            if let Some(process) = &mut *end.process() {
                process.detach();
            }
        }
        std::mem::forget(self);
    }
}

impl End {
    fn new(
        host: &Host,
        device: String,
        line: &Line,
        (v4, v6): (Ipv4Addr, Ipv6Addr),
        [own, peer]: &[&str; 2],
        allowed: &str,
        endpoint: Option<SocketAddr>,
    ) -> Result<Self> {
        let endpoint = endpoint.map(|endpoint| format!("Endpoint = {endpoint}\n")).unwrap_or_default();
        let text = format!(
            "[Interface]\nPrivateKey = {own}\nListenPort = {}\n\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = {allowed}\n{endpoint}",
            line.port,
            public_key(peer)?,
        );
        let configuration = host.directory().join(format!("{device}.conf"));
        fs::write(&configuration, text)?;
        Ok(Self { device, configuration, v4, v6, mtu: line.mtu.to_string(), userspace: Mutex::default() })
    }

    /// Makes the device, which must not be there, with its addresses and keys.
    pub fn bring_up(&self, host: &Host) -> Result<()> {
        if host.ip(&["link", "add", &self.device, "type", "wireguard"]).is_err() {
            let socket = socket(&self.device);
            // One that was killed leaves it.
            let _ = fs::remove_file(&socket);
            let mut command = Command::new("wireguard-go");
            command.args(["--foreground", &self.device]).env("WG_PROCESS_FOREGROUND", "1");
            let mut process = host.spawn(&format!("wireguard-go-{}", self.device), command)?;
            // `wg` removes a socket on which nobody listens yet, as if its owner were dead.
            process.wait_ready(wait::SOON, || UnixStream::connect(&socket).is_ok())?;
            *self.process() = Some(process);
        }
        let mut wg = Command::new("wg");
        wg.arg("setconf").arg(&self.device).arg(&self.configuration);
        host.text_of(wg)?;
        topology::add_address(host, &self.device, self.v4.into(), 24)?;
        topology::add_address(host, &self.device, self.v6.into(), 64)?;
        host.ip(&["link", "set", &self.device, "mtu", &self.mtu, "up"])
    }

    /// Ends it at once: `kill -9` of wireguard-go, with which its device goes.
    pub fn kill(&self, host: &Host) -> Result<()> {
        match self.process().take() {
            Some(mut process) => {
                process.signal(Signal::KILL)?;
                process.wait(wait::SOON)?;
                Ok(())
            }
            None => host.ip(&["link", "del", &self.device]),
        }
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.userspace)
    }
}

impl Line {
    fn devices(&self, tag: &str) -> [String; 2] {
        self.letters.map(|letters| format!("{PREFIX}{tag}{letters}"))
    }
}

/// The sockets that wireguard-go makes for the lab `tag`.
pub(crate) fn sockets(tag: &str) -> Vec<PathBuf> {
    [&FIRST, &SECOND].iter().flat_map(|line| line.devices(tag)).map(|device| socket(&device)).collect()
}

fn socket(device: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("{device}.sock"))
}

fn private_key() -> Result<String> {
    wg(&["genkey"], "")
}

fn public_key(private: &str) -> Result<String> {
    wg(&["pubkey"], private)
}

fn wg(arguments: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("wg");
    command.args(arguments);
    let output = process::run(command, input.as_bytes(), wait::SOON)
        .context("running wg (package wireguard-tools)")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
