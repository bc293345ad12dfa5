//! A pool and its backends as the operator configures them.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{HostName, LabelName, LabelNameError, ProxyTlvs, UnixPath, UnixPathError};

/// How a pool picks among its backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The one with the fewest connections for its weight.
    LeastConnections,
    /// The less loaded of two picked at random.
    Random,
    /// By the client's address; stable when another backend leaves.
    SourceHash,
}

/// The PROXY protocol header sent to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// None.
    #[default]
    Off,
    /// The text header.
    V1,
    /// The binary header.
    V2,
}

/// How a pool learns that a backend works.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthKind {
    /// The protocols of the pool's routes; `tcp` if none is known.
    #[default]
    Auto,
    /// Not checked.
    Off,
    /// The backend listens. Its program sees no connection.
    Tcp,
    /// A ClientHello is answered by a ServerHello or an alert.
    Tls,
    /// An HTTP/1.1 request is answered.
    Http,
    /// A server of SSH identifies itself.
    Ssh,
    /// A server of PostgreSQL answers whether it speaks TLS.
    Postgres,
}

/// The health check of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSpec {
    /// The kind of check.
    pub kind: HealthKind,
    /// Time between two checks of one backend.
    pub interval: Duration,
    /// Time that a check may take.
    pub timeout: Duration,
    /// Checks in a row that must pass to bring a backend up.
    pub rise: u32,
    /// Failures in a row, of checks or clients' connections, that bring it down.
    pub fall: u32,
}

impl Default for HealthSpec {
    fn default() -> Self {
        Self {
            kind: HealthKind::Auto,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            rise: 2,
            fall: 3,
        }
    }
}

/// Idle connections kept ready to each backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warm {
    /// This many; 0 keeps none.
    Count(u32),
    /// As many as recent demand suggests.
    Auto,
}

impl Default for Warm {
    fn default() -> Self {
        Self::Count(0)
    }
}

/// The host part of a backend's address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendHost {
    /// An address.
    Ip(IpAddr),
    /// A name, resolved at run time.
    Name(HostName),
    /// A Unix socket on this machine.
    Unix(UnixPath),
    /// A name that depends on the client's, resolved when a client comes.
    Label(LabelName),
}

/// Where a backend is: an address or a name, and a port unless the listener's is meant; or a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendAddress {
    /// The address or name.
    pub host: BackendHost,
    /// The port; `None` means the port on which the client's connection was accepted, and nothing for a Unix socket.
    pub port: Option<u16>,
}

impl BackendAddress {
    /// Whether all listeners lead to the same place there: it has a port of its own, or none at all.
    pub fn is_one_place(&self) -> bool {
        self.port.is_some() || self.unix().is_some()
    }

    /// Whether it depends on the client's name.
    pub fn has_label(&self) -> bool {
        matches!(self.host, BackendHost::Label(_))
    }

    /// The Unix socket; `None` for an address or a name.
    pub fn unix(&self) -> Option<&UnixPath> {
        match &self.host {
            BackendHost::Unix(path) => Some(path),
            BackendHost::Ip(_) | BackendHost::Name(_) | BackendHost::Label(_) => None,
        }
    }
}

/// Why some text is no backend address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendAddressError {
    /// Neither an address nor a name.
    #[error(
        "expected an address or a name with an optional port, like \"100.64.0.2\", \"[fd7a::2]:8443\" or \"caddy.ts.net:443\""
    )]
    Other,
    /// Meant as a Unix socket.
    #[error(transparent)]
    Unix(#[from] UnixPathError),
    /// Meant as a name with `{label}`.
    #[error(transparent)]
    Label(#[from] LabelNameError),
}

impl FromStr for BackendAddress {
    type Err = BackendAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const OTHER: BackendAddressError = BackendAddressError::Other;
        if let Some(path) = UnixPath::of_target(text) {
            return Ok(Self { host: BackendHost::Unix(path?), port: None });
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self { host: BackendHost::Ip(ip), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse::<u16>().ok().filter(|&port| port != 0).ok_or(OTHER)?;
                (host, Some(port))
            }
            _ => (text, None),
        };
        let host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
            Some(inner) => BackendHost::Ip(IpAddr::V6(inner.parse().map_err(|_| OTHER)?)),
            None => match host.parse() {
                Ok(ip @ IpAddr::V4(_)) => BackendHost::Ip(ip),
                Ok(IpAddr::V6(_)) => return Err(OTHER),
                Err(_) if LabelName::is_meant(host) => BackendHost::Label(host.parse()?),
                Err(_) => BackendHost::Name(host.parse().map_err(|_| OTHER)?),
            },
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (BackendHost::Ip(ip), None) => write!(f, "{ip}"),
            (BackendHost::Ip(IpAddr::V6(ip)), Some(port)) => write!(f, "[{ip}]:{port}"),
            (BackendHost::Ip(ip), Some(port)) => write!(f, "{ip}:{port}"),
            (BackendHost::Unix(path), _) => write!(f, "{path}"),
            (BackendHost::Label(template), None) => write!(f, "{template}"),
            (BackendHost::Label(template), Some(port)) => write!(f, "{template}:{port}"),
            (BackendHost::Name(name), None) => write!(f, "{name}"),
            (BackendHost::Name(name), Some(port)) => write!(f, "{name}:{port}"),
        }
    }
}

impl Serialize for BackendAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BackendAddress {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One backend of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// Where it is.
    pub to: BackendAddress,
    /// Its share of new connections; 0 means drained.
    pub weight: u32,
    /// Used only when no other backend is up.
    pub backup: bool,
    /// The tunnel device through which alone it may be reached.
    pub device: Option<Arc<str>>,
}

impl BackendSpec {
    /// A backend with the defaults.
    pub fn new(to: BackendAddress) -> Self {
        Self { to, weight: 1, backup: false, device: None }
    }
}

/// A pool: backends that offer the same service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its name; for a target that is an address or a list of addresses, that text.
    pub name: Arc<str>,
    /// How a backend is picked.
    pub balance: Balance,
    /// The PROXY header sent to its backends.
    pub proxy_protocol: ProxyProtocol,
    /// The TLVs in a header of version 2.
    pub proxy_tlvs: ProxyTlvs,
    /// The length that a header of version 2 is padded to a multiple of, in bytes; 0 and 1 are no padding.
    pub proxy_align: u8,
    /// Time for a connection to a backend, all attempts together.
    pub connect_timeout: Duration,
    /// Idle connections kept ready to each backend.
    pub warm: Warm,
    /// Connections of clients at the same time to each backend; 0 means no limit.
    pub connections: usize,
    /// The health check.
    pub health: HealthSpec,
    /// The backends; none only where a route refuses.
    pub backends: Vec<BackendSpec>,
}

impl PoolSpec {
    /// A pool with the defaults, as an address or a list of addresses in `to` makes it.
    pub fn new(name: impl Into<Arc<str>>, backends: Vec<BackendSpec>) -> Self {
        Self {
            name: name.into(),
            balance: Balance::default(),
            proxy_protocol: ProxyProtocol::Off,
            proxy_tlvs: ProxyTlvs::default(),
            proxy_align: 0,
            connect_timeout: Duration::from_secs(5),
            warm: Warm::default(),
            connections: 0,
            health: HealthSpec::default(),
            backends,
        }
    }

    /// Whether any of its backends is on a Unix socket.
    pub fn is_on_unix_socket(&self) -> bool {
        self.backends.iter().any(|backend| backend.to.unix().is_some())
    }
}

/// The value of `to` in a route or a tcp listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum Target {
    /// The name of a pool, or one address. A name of a configured pool wins.
    One(Arc<str>),
    /// A list of addresses: a pool of its own.
    Many(Vec<BackendAddress>),
    /// `refuse`: nowhere.
    Refuse,
}

/// A target as it is written.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    One(Arc<str>),
    Many(Vec<BackendAddress>),
}

impl Target {
    /// How [`Target::Refuse`] is written. No pool can have this name.
    pub const REFUSE: &str = "refuse";

    /// Whether it is an address with `{label}`.
    pub fn has_label(&self) -> bool {
        match self {
            Self::One(text) => text.parse().is_ok_and(|address: BackendAddress| address.has_label()),
            Self::Many(_) | Self::Refuse => false,
        }
    }

    /// The meaning of a single text.
    pub fn from_text(text: &str) -> Self {
        if text == Self::REFUSE { Self::Refuse } else { Self::One(text.into()) }
    }
}

impl From<Written> for Target {
    fn from(written: Written) -> Self {
        match written {
            Written::One(text) => Self::from_text(&text),
            Written::Many(addresses) => Self::Many(addresses),
        }
    }
}

impl From<Target> for Written {
    fn from(target: Target) -> Self {
        match target {
            Target::One(text) => Self::One(text),
            Target::Many(addresses) => Self::Many(addresses),
            Target::Refuse => Self::One(Target::REFUSE.into()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(text) => f.write_str(text),
            Self::Refuse => f.write_str(Self::REFUSE),
            Self::Many(addresses) => {
                for (index, address) in addresses.iter().enumerate() {
                    if index > 0 {
                        f.write_str(", ")?;
                    }
                    write!(f, "{address}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_back() {
        for text in [
            "100.64.0.2",
            "100.64.0.2:443",
            "fd7a::2",
            "[fd7a::2]:443",
            "caddy.tail.ts.net",
            "caddy:8443",
            "{label}.home.arpa:443",
            "unix:/run/caddy.sock",
        ] {
            assert_eq!(text.parse::<BackendAddress>().unwrap().to_string(), text);
        }
        for text in
            ["", ":443", "caddy:0", "caddy:70000", "caddy:https", "a b:1", "[::1", "[caddy]:1", "1.2.3.4:x"]
        {
            assert_eq!(text.parse::<BackendAddress>(), Err(BackendAddressError::Other), "{text:?}");
        }
    }
}
