//! The clients of a machine: a network namespace of the host, at the other end of the machine's virtio
//! network device.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    hello::ClientHello,
    netns::{self, NetNs},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::command::output;

/// The machine's device on this side.
pub(super) const TAP: &str = "vm0";
pub(super) const VPS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The route of the README has a wildcard that covers it.
pub(super) const NAME: &str = "cloud.example.com";
/// Jumbo frames.
const MTU: &str = "9000";
const PREFIX: u8 = 24;
/// Clients come from as many addresses, since the edge limits what one of them may have.
const SOURCES: u8 = 50;
/// How long an answer may take on an emulated machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// Configures the machine's side.
pub(super) fn guest() -> String {
    format!("[Match]\nName=eth0\n\n[Link]\nMTUBytes={MTU}\n\n[Network]\nAddress={VPS}/{PREFIX}\n")
}

/// The clients' namespace. Dropping it removes it.
pub(super) struct Clients {
    namespace: NetNs,
}

impl Clients {
    pub(super) fn new() -> Result<Self> {
        let name = format!("edge-vm-{}", std::process::id());
        Ok(Self { namespace: NetNs::create(&name)? })
    }

    pub(super) fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// Gives the device that qemu has made its addresses.
    pub(super) fn plug_in(&self) -> Result<()> {
        let ip = |arguments: &[&str]| {
            // Its output is caught: the device is asked for until it is there.
            output(Command::new("ip").args(["-n", self.namespace.name()]).args(arguments)).map(drop)
        };
        ip(&["link", "set", TAP, "mtu", MTU, "up"])?;
        (0..SOURCES).try_for_each(|number| {
            ip(&["address", "add", &format!("{}/{PREFIX}", source(number.into())), "dev", TAP])
        })
    }

    /// Connects from one of the clients' addresses to a port of the machine.
    pub(super) fn connect(&self, number: usize, port: u16) -> Result<TcpStream> {
        let socket = self
            .namespace
            .within(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))?
            .context("opening a socket")?;
        socket.bind(&SocketAddr::from((source(number), 0)).into())?;
        let at = SocketAddr::from((VPS, port));
        socket.connect_timeout(&at.into(), PATIENCE).with_context(|| format!("connecting to {at}"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket.into())
    }

    /// Connects through the edge to the service at home, which echoes; returns once the ClientHello has come
    /// back.
    pub(super) fn through_the_edge(&self, number: usize) -> Result<TcpStream> {
        let mut stream = self.connect(number, 443)?;
        echoes(&mut stream, &ClientHello::new(NAME).records())?;
        Ok(stream)
    }

    /// SSH's port answers with its greeting.
    pub(super) fn ssh_answers(&self) -> Result<()> {
        let mut greeting = [0; 4];
        let mut stream = self.connect(0, 22).context("SSH")?;
        stream.read_exact(&mut greeting).context("SSH is silent")?;
        ensure!(&greeting == b"SSH-", "SSH greets with {greeting:?}");
        Ok(())
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        netns::remove(self.namespace.name());
    }
}

/// Checks that the peer echoes the bytes.
pub(super) fn echoes(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).context("no echo")?;
    ensure!(back == bytes, "the echo is another");
    Ok(())
}

fn source(number: usize) -> Ipv4Addr {
    let last = u8::try_from(number % usize::from(SOURCES)).unwrap_or_default();
    Ipv4Addr::new(192, 0, 2, 100 + last)
}
