//! The settings of a valid configuration, and how to read them.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    document::Document,
    problem::{ConfigError, Refusal},
    tables,
};
use crate::{
    observe::access_log::{AccessLogTarget, Clients},
    spec::{Choice, FLOW_PORTS, HostName, ListenerSpec, PoolSpec, RouteSpec, TunnelSpec},
};

/// Everything the operator said, validated, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `[daemon]`
    pub daemon: DaemonSettings,
    /// `[limits]`
    pub limits: Limits,
    /// `[[listener]]`; never empty. Where the file has none: `https` (tls) on port 443 and `http` on port 80.
    pub listeners: Vec<ListenerSpec>,
    /// `[[pool]]`
    pub pools: Vec<PoolSpec>,
    /// `[[route]]`, in file order.
    pub routes: Vec<RouteSpec>,
    /// `[resolver]`
    pub resolver: ResolverSpec,
    /// `[flow]`
    pub flow: FlowSpec,
    /// `[tunnel]`
    pub tunnel: TunnelSpec,
    /// `[shield]`
    pub shield: ShieldSpec,
}

impl Settings {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// Says everything that is wrong with it, or why it cannot be read.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&path.display().to_string(), &read_text(path)?)
    }

    /// Reads a text; `file` is what its problems are said to be in.
    ///
    /// # Errors
    ///
    /// Says everything that is wrong with it.
    pub fn parse(file: &str, text: &str) -> Result<Self, ConfigError> {
        Document::read(file, text, tables::settings)
    }
}

/// A file's text, or why there is none.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    let file = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| {
        let refusal = Refusal::new(format!("cannot be read: {error}"));
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "create it, or name another with --config",
            io::ErrorKind::PermissionDenied => "run as a user who may read it",
            io::ErrorKind::IsADirectory => "name the file in it",
            _ => return ConfigError::of_file(&file, refusal),
        };
        ConfigError::of_file(&file, refusal.hint(hint))
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let before = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let (lines, last) = before
            .rsplit_once('\n')
            .map_or((0, &*before), |(lines, last)| (lines.matches('\n').count() + 1, last));
        let mut refused =
            ConfigError::of_file(&file, Refusal::new("not UTF-8 text").hint("save it as UTF-8"));
        for problem in &mut refused.problems {
            (problem.line, problem.column) = (Some(lines + 1), Some(last.chars().count() + 1));
        }
        refused
    })
}

/// `[daemon]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonSettings {
    /// `datapath`: the fastest tier allowed, by default `auto`.
    pub datapath: Choice,
    /// `state_dir`: the directory for routes, drained backends and blocks made at run time; `/var/lib/edge`.
    pub state_dir: PathBuf,
    /// `control`: the socket for `edgectl`; `/run/edge/control.sock`.
    pub control: PathBuf,
    /// `admin`: the address that serves metrics and the dashboard; `"off"` by default, which is `None`.
    pub admin: Option<SocketAddr>,
    /// `admin_hosts`: host names that the admin address answers to, besides addresses, localhost and its own.
    pub admin_hosts: Vec<HostName>,
    /// `admin_token_file`: the file with the token that changes on the dashboard need; none by default, then it only shows.
    pub admin_token_file: Option<PathBuf>,
    /// `access_log`: the destination of the log with one line per connection; `stdout`, `off` or a path with a `/`.
    pub access_log: AccessLogTarget,
    /// `access_log_empty`: whether to log connections on which the client never sent a byte; `false`.
    pub access_log_empty: bool,
    /// `access_log_clients`: `full`, or `truncated` to the network of the client.
    pub access_log_clients: Clients,
    /// How long connections may continue after SIGTERM; zero means not at all.
    pub drain_timeout: Duration,
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// `hello_timeout`: from accept to a complete ClientHello or request head; 5 s.
    pub hello_timeout: Duration,
    /// `hello_bytes`: the largest ClientHello or request head, in bytes; 65536, which is the most.
    pub hello_bytes: usize,
    /// `hello_memory`: the memory for the first bytes of all clients together, in bytes; 16 MiB.
    pub hello_memory: usize,
    /// `connections`: concurrent; 0, the default, means as many as the file-descriptor limit and memory allow.
    pub connections: usize,
    /// `connections_per_source`: concurrent, from one IPv4 address or IPv6 /64; 0 means no limit. `None`, which
    /// is `"auto"` and the default, means a share of `connections`.
    pub connections_per_source: Option<usize>,
    /// `connection_rate_per_source`: new per second, from one IPv4 address or IPv6 /64; 0, the default: no limit.
    pub connection_rate_per_source: u32,
    /// `idle_timeout`: the time without a byte in either direction after which a connection is closed; 1 h.
    /// 0 means never (`None`).
    pub idle_timeout: Option<Duration>,
}

/// `[resolver]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolverSpec {
    /// `servers`: name servers, on port 53 by default; empty, the default, means the system's.
    pub servers: Vec<SocketAddr>,
    /// `suffixes`: name servers for the names at and below a suffix.
    pub suffixes: BTreeMap<HostName, Vec<SocketAddr>>,
    /// `search`: domains that names may omit, in the order in which they are tried. By default those of the
    /// system if the servers are the system's, else none.
    pub search: Option<Vec<HostName>>,
}

/// `[flow]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowSpec {
    /// `ports`: local ports of connections to backends that may become flows; one backend can have as many. 10240 to
    /// 32767.
    pub ports: RangeInclusive<u16>,
}

/// `[shield]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShieldSpec {
    /// `lists`: files with one prefix per line.
    pub lists: Vec<PathBuf>,
    /// `syn_rate`: new connections per second and source (/32, /64); 0, the default, means no limit.
    pub syn_rate: u32,
}

impl Default for FlowSpec {
    fn default() -> Self {
        Self { ports: FLOW_PORTS }
    }
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self {
            datapath: Choice::Auto,
            state_dir: "/var/lib/edge".into(),
            control: "/run/edge/control.sock".into(),
            admin: None,
            admin_hosts: Vec::new(),
            admin_token_file: None,
            access_log: AccessLogTarget::Stdout,
            access_log_empty: false,
            access_log_clients: Clients::Full,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hello_timeout: Duration::from_secs(5),
            hello_bytes: 65536,
            hello_memory: 16 << 20,
            connections: 0,
            connections_per_source: None,
            connection_rate_per_source: 0,
            idle_timeout: Some(Duration::from_hours(1)),
        }
    }
}
