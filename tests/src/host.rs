//! One host of the lab: a network namespace, its addresses, and what can be done there.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    netns::{self, NetNs},
    process::{self, Process},
    wait::{SOON, patient},
};

/// Connections that a listener of the lab lets wait.
const BACKLOG: i32 = 4096;

/// A host.
#[derive(Debug)]
pub struct Host {
    namespace: NetNs,
    /// Its address on the link (for the edge: on the client's side).
    pub v4: Ipv4Addr,
    /// The same in IPv6.
    pub v6: Ipv6Addr,
    directory: PathBuf,
}

impl Host {
    pub(crate) fn new(namespace: NetNs, v4: Ipv4Addr, v6: Ipv6Addr, directory: &Path) -> Self {
        Self { namespace, v4, v6, directory: directory.to_owned() }
    }

    /// The network namespace.
    pub fn namespace(&self) -> &NetNs {
        &self.namespace
    }

    /// The lab's directory, the same for all hosts.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Runs `action` on this host; see [`NetNs::within`].
    pub fn run<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        self.namespace.within(action)?
    }

    /// Starts a program that keeps running. Its outputs go to `NAME.log` in the lab's directory.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        let log = self.directory.join(format!("{name}.log"));
        self.run(|| Process::spawn(name, command, log))
    }

    /// Runs a program to its end; at most [`SOON`].
    pub fn output(&self, command: Command) -> Result<Output> {
        self.output_of(command, b"", SOON)
    }

    /// Runs a program to its end with this on its standard input.
    pub fn output_of(&self, command: Command, input: &[u8], deadline: Duration) -> Result<Output> {
        self.run(|| process::run(command, input, deadline))
    }

    /// Runs a program that must succeed, and gives its standard output; at most [`SOON`].
    pub fn text_of(&self, command: Command) -> Result<String> {
        self.text_within(command, SOON)
    }

    /// The same with another time limit.
    pub fn text_within(&self, command: Command, deadline: Duration) -> Result<String> {
        let shown = format!("{command:?}");
        let output = self.output_of(command, b"", deadline)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{shown}: {}: {complaint}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` in the namespace.
    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        netns::ip(&[&["-n", self.namespace.name()], arguments].concat())
    }

    /// Makes packets that leave through `device` cross a line like the internet's, in the syntax of
    /// `tc netem`: `delay 50ms loss 1%`.
    ///
    /// From now on a packet is one segment: losing one of 64 KiB, as the kernel sends them, would be a
    /// different kind of loss.
    pub fn netem(&self, device: &str, line: &str) -> Result<()> {
        self.ip(&["link", "set", device, "gso_max_segs", "1"])?;
        let mut tc = Command::new("tc");
        tc.args(["-n", self.namespace.name(), "qdisc", "replace", "dev", device, "root", "netem"]);
        // The queue must hold all packets in flight at 100 ms.
        tc.args(["limit", "100000"]).args(line.split_whitespace());
        self.text_of(tc).map(drop)
    }

    /// Sets kernel variables of the namespace, like `("net.ipv4.ip_forward", "1")`.
    pub fn sysctl(&self, variables: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in variables {
                let path = format!("/proc/sys/{}", name.replace('.', "/"));
                std::fs::write(&path, value).with_context(|| format!("setting {name} to {value}"))?;
            }
            Ok(())
        })
    }

    /// Connects from this host, with [`SOON`] as time limit for connecting, reading and writing.
    pub fn connect(&self, to: impl Into<SocketAddr>) -> Result<TcpStream> {
        let to = to.into();
        let stream = self.run(|| {
            TcpStream::connect_timeout(&to, patient(SOON))
                .with_context(|| format!("connecting to {to} from {}", self.namespace.name()))
        })?;
        limit(&stream)?;
        Ok(stream)
    }

    /// The same from one of the host's addresses.
    pub fn connect_from(&self, source: IpAddr, to: SocketAddr) -> Result<TcpStream> {
        self.connect_by(SocketAddr::new(source, 0), to)
    }

    /// The same from one of its ports, which a connection before may have had.
    pub fn connect_by(&self, source: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
        let socket =
            self.run(|| Ok(Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(source))?;
        socket.connect_timeout(&SockAddr::from(to), patient(SOON))?;
        let stream = TcpStream::from(socket);
        limit(&stream)?;
        Ok(stream)
    }

    /// A listener on this host; port 0 takes a free one.
    pub fn listen(&self, on: impl Into<SocketAddr>) -> Result<TcpListener> {
        let on = on.into();
        let socket =
            self.run(|| Ok(Socket::new(Domain::for_address(on), Type::STREAM, Some(Protocol::TCP))?))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(on)).with_context(|| format!("binding {on}"))?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }

    /// The host's address of that family with a port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.v4, port))
    }

    /// The host's IPv6 address with a port.
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.v6, port))
    }

    /// Whether something accepts connections at `port` of this host.
    pub fn accepts(&self, to: SocketAddr) -> bool {
        self.run(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1))?)).is_ok()
    }

    /// Whether `port` of this host refuses connections because nothing listens there. A missing answer is not
    /// a refusal.
    pub fn refuses(&self, to: SocketAddr) -> bool {
        let attempt = self.run(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1))));
        attempt
            .is_ok_and(|attempt| attempt.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused))
    }

    /// Kernel memory of this host's TCP sockets, in bytes (`skmem` of ss: receive and send queues).
    pub fn tcp_memory(&self) -> Result<u64> {
        let mut ss = Command::new("ss");
        ss.args(["-tmnH"]);
        let text = self.text_of(ss)?;
        // skmem:(r0,rb131072,t0,tb87040,f0,w0,o0,bl0,d0)
        let field = |line: &str, name: &str| -> Option<u64> {
            let inside = line.split_once("skmem:(")?.1.split_once(')')?.0;
            inside.split(',').find_map(|part| part.strip_prefix(name)?.parse().ok())
        };
        Ok(text.lines().filter_map(|line| Some(field(line, "r")? + field(line, "w")?)).sum())
    }
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patient(SOON)))?;
    stream.set_write_timeout(Some(patient(SOON)))
}
