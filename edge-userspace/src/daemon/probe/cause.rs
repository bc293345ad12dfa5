//! Causes that keep a connection from a backend, and the remedy of each: a command to paste wherever one mends it. Pure.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ipnet::IpNet;

use crate::{
    pool::{check::CheckError, connect::ConnectError},
    spec::{Ask, ProxyProtocol},
    tunnel::Peer,
};

/// The names in a remedy besides the address.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::daemon) struct Path<'a> {
    /// The device by which packets leave, where it is known.
    pub(in crate::daemon) device: Option<&'a str>,
    /// Whether the device is a WireGuard tunnel.
    pub(in crate::daemon) is_wireguard: bool,
}

/// Why a backend cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Cause<'a> {
    /// Its name does not resolve.
    NoAddress { name: &'a str },
    /// Its tunnel device does not exist.
    NoDevice { device: &'a str },
    /// Its tunnel device is down or has no route to it.
    NoWayBy { device: &'a str, address: IpAddr },
    /// This machine has no route to it.
    NoWay { address: IpAddr },
    /// No WireGuard peer of the device has the address in its `AllowedIPs`.
    NotAllowed { device: &'a str, address: IpAddr, peers: &'a [Peer] },
    /// The WireGuard peer has never shaken hands, or has no endpoint yet.
    NoHandshake { device: &'a str },
    /// Nothing listens on its port.
    Refused { address: SocketAddr },
    /// Packets to it are answered by nobody.
    Silent { address: SocketAddr, device: Option<&'a str>, is_wireguard: bool },
    /// The shield drops what it sends.
    Blocked { net: IpNet, list: Option<&'a str> },
    /// It expects another PROXY header.
    Header { expected: ProxyProtocol },
    /// It accepts connections and answers nothing or something else.
    Answer { ask: Ask },
    /// Large packets are lost on the path.
    LargeLost { device: Option<&'a str> },
    /// Its Unix socket cannot be connected to.
    UnixSocket { path: &'a str },
    /// This machine has no socket or port left.
    Local,
}

impl<'a> Cause<'a> {
    /// The cause of a failed check; `None` if the remedy is unknown.
    pub(in crate::daemon) fn of(error: &'a CheckError, path: Path<'a>) -> Option<Self> {
        match error {
            CheckError::Connect(error) => Self::of_connect(error, path),
            CheckError::Closed(ask) | CheckError::Foreign(ask) | CheckError::Silent(ask, _) => {
                Some(Self::Answer { ask: *ask })
            }
            CheckError::Broken(_) => Some(Self::Answer { ask: Ask::Connect }),
            CheckError::NoCertificate(_) => None,
        }
    }

    fn of_connect(error: &'a ConnectError, Path { device, is_wireguard }: Path<'a>) -> Option<Self> {
        let silent = |address| Self::Silent { address, device, is_wireguard };
        Some(match error {
            ConnectError::Unresolved(name) => Self::NoAddress { name },
            ConnectError::Device { device, error, .. } if error.raw_os_error() == Some(libc::ENODEV) => {
                Self::NoDevice { device }
            }
            ConnectError::Device { device, address, .. } => Self::NoWayBy { device, address: address.ip() },
            ConnectError::Local { .. } => Self::Local,
            ConnectError::TimedOut { address, .. } => silent(*address),
            ConnectError::Unix { path, .. } => Self::UnixSocket { path: path.as_str() },
            ConnectError::Refused { address, error } => match (error.kind(), error.raw_os_error(), device) {
                (ErrorKind::ConnectionRefused, ..) => Self::Refused { address: *address },
                // WireGuard (drivers/net/wireguard/device.c, wg_xmit): no peer for the address, no endpoint of the peer.
                (_, Some(libc::ENOKEY), Some(device)) => {
                    Self::NotAllowed { device, address: address.ip(), peers: &[] }
                }
                (_, Some(libc::EDESTADDRREQ), Some(device)) => Self::NoHandshake { device },
                (ErrorKind::NetworkUnreachable, ..) => Self::NoWay { address: address.ip() },
                _ => silent(*address),
            },
            ConnectError::Drained
            | ConnectError::Full(_)
            | ConnectError::NoLabel { .. }
            | ConnectError::WentDown(_) => return None,
        })
    }

    /// How to mend it. The command comes first and stands between backquotes.
    pub(in crate::daemon) fn remedy(&self) -> String {
        match self {
            Self::NoAddress { name } => format!(
                "`getent ahosts {}` on this machine must answer: correct `to`, or give the name servers of home under \
                 [resolver]",
                without_port(name)
            ),
            Self::NoDevice { device } => format!(
                "`systemctl enable --now wg-quick@{device}` (Tailscale: `tailscale up`), or correct `device`"
            ),
            Self::NoWayBy { device, address } => format!(
                "`ip link set {device} up && ip route replace {address} dev {device}`, or correct `device`"
            ),
            Self::NoWay { address } => format!(
                "`ip route get {address}` must name the tunnel: bring the tunnel up (`wg-quick up wg0`), or correct `to`"
            ),
            Self::NotAllowed { device, address, peers } => not_allowed(device, *address, peers),
            Self::NoHandshake { device } => format!(
                "`wg show {device}` must show a handshake: set `PersistentKeepalive = 25` at home, which dials in; compare \
                 keys and `Endpoint`, and let the VPS's UDP port through its firewall"
            ),
            Self::Refused { address } => format!(
                "`ss -ltn sport = :{}` at home must list {} or a wildcard address: start the service, or let it listen \
                 there",
                address.port(),
                address.ip()
            ),
            Self::Silent { address, device, is_wireguard } => silent(*address, *device, *is_wireguard),
            Self::Blocked { net, list: None } => format!("`edgectl block remove {net}`"),
            Self::Blocked { net, list: Some(list) } => {
                format!("take {net} out of {list}, which the shield reads again by itself")
            }
            Self::Header { expected } => header(*expected).into(),
            Self::Answer { ask: Ask::Tls } => {
                "see that a TLS service listens there (at home: `openssl s_client -connect ADDRESS:PORT`), and that \
                 `proxy_protocol` is what it expects; a route for plain HTTP names its listener (`listener = [\"http\"]`)"
                    .into()
            }
            Self::Answer { ask } => format!(
                "see at home that the service is healthy and speaks {}, and that `proxy_protocol` is what it expects",
                ask.protocol()
            ),
            Self::LargeLost { device } => {
                let device = device.unwrap_or("wg0");
                format!(
                    "`ip link set {device} mtu 1280` at both ends, and `MTU = 1280` in the configuration of {device}: what is \
                     below the tunnel carries less than it promises"
                )
            }
            Self::UnixSocket { path } => format!(
                "`ls -l {path}` must show a socket that the user `edge` may write to: start the service, or give it the \
                 group `edge`"
            ),
            Self::Local => "`ss -s` shows who has the sockets; raise LimitNOFILE of the service, or close idle connections"
                .into(),
        }
    }
}

/// The target of a backend without its port, for commands that take a name.
fn without_port(name: &str) -> &str {
    match name.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.contains(':') => host,
        _ => name,
    }
}

fn not_allowed(device: &str, address: IpAddr, peers: &[Peer]) -> String {
    let also = format!(
        "in the configuration of {device}, add {address} to `AllowedIPs` of home's peer, so that it outlives a restart"
    );
    // With several peers only the operator knows which of them is home.
    let [peer] = peers else {
        return format!("`wg show {device} allowed-ips` lists what each peer may have; {also}");
    };
    let allowed = peer.allowed.iter().map(ToString::to_string).chain([IpNet::from(address).to_string()]);
    format!(
        "`wg set {device} peer {} allowed-ips {}`; {also}",
        BASE64_STANDARD.encode(peer.key),
        allowed.collect::<Vec<_>>().join(",")
    )
}

fn silent(address: SocketAddr, device: Option<&str>, is_wireguard: bool) -> String {
    let port = address.port();
    let firewall = format!(
        "let home's firewall accept it (nftables at home: `nft insert rule inet filter input tcp dport {port} accept`)"
    );
    match device {
        Some(device) if is_wireguard => format!(
            "`ping -c 3 {}`: if that is silent too, `wg show {device}` must show a recent handshake (set \
             `PersistentKeepalive = 25` at home); else {firewall}",
            address.ip()
        ),
        _ => format!(
            "`ping -c 3 {}`: if that is silent too, home or the path to it is down; else {firewall}",
            address.ip()
        ),
    }
}

fn header(expected: ProxyProtocol) -> &'static str {
    match expected {
        ProxyProtocol::Off => {
            "make it expect one (nginx: `listen … proxy_protocol`, HAProxy: `accept-proxy`, Caddy: the listener \
             wrapper `proxy_protocol`), or write proxy_protocol = \"off\" in its pool or route"
        }
        ProxyProtocol::V1 => "write proxy_protocol = \"v1\" in its pool or route",
        ProxyProtocol::V2 => "write proxy_protocol = \"v2\" in its pool or route",
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use super::*;

    fn peer() -> Peer {
        Peer {
            key: [1; 32],
            endpoint: None,
            allowed: vec!["10.0.0.2/32".parse().unwrap()],
            handshake: None,
            received: 0,
            sent: 0,
        }
    }

    #[test]
    fn each_cause_has_a_command_of_its_own() {
        let address: SocketAddr = "10.0.0.9:8443".parse().unwrap();
        let device = Some("wg0");
        let peers = [peer()];
        for (cause, command) in [
            (Cause::NoAddress { name: "nas.lan:443" }, "`getent ahosts nas.lan`"),
            (Cause::NoDevice { device: "wg0" }, "wg-quick@wg0`"),
            (Cause::NoWayBy { device: "wg0", address: address.ip() }, "`ip link set wg0 up"),
            (Cause::NoWay { address: address.ip() }, "`ip route get 10.0.0.9`"),
            (
                Cause::NotAllowed { device: "wg0", address: address.ip(), peers: &peers },
                "allowed-ips 10.0.0.2/32,10.0.0.9/32`",
            ),
            (
                Cause::NotAllowed { device: "wg0", address: address.ip(), peers: &[] },
                "`wg show wg0 allowed-ips`",
            ),
            (Cause::NoHandshake { device: "wg0" }, "`wg show wg0`"),
            (Cause::Refused { address }, "`ss -ltn sport = :8443`"),
            (Cause::Silent { address, device, is_wireguard: true }, "`wg show wg0`"),
            (Cause::Silent { address, device: None, is_wireguard: false }, "`ping -c 3 10.0.0.9`"),
            (
                Cause::Blocked { net: "10.0.0.0/24".parse().unwrap(), list: None },
                "`edgectl block remove 10.0.0.0/24`",
            ),
            (Cause::Blocked { net: "10.0.0.0/24".parse().unwrap(), list: Some("bad.txt") }, "bad.txt"),
            (Cause::Header { expected: ProxyProtocol::V2 }, "proxy_protocol = \"v2\""),
            (Cause::LargeLost { device }, "`ip link set wg0 mtu 1280`"),
            (Cause::UnixSocket { path: "/run/a.sock" }, "`ls -l /run/a.sock`"),
        ] {
            let remedy = cause.remedy();
            assert!(remedy.contains(command), "{cause:?}: {remedy}");
        }
    }

    #[test]
    fn errors_of_connect_are_told_apart() {
        let address: SocketAddr = "10.0.0.9:443".parse().unwrap();
        let path = Path { device: Some("wg0"), is_wireguard: true };
        let refused = |code| {
            CheckError::Connect(ConnectError::Refused { address, error: io::Error::from_raw_os_error(code) })
        };
        for (error, expected) in [
            (refused(libc::ECONNREFUSED), Cause::Refused { address }),
            (refused(libc::ENOKEY), Cause::NotAllowed { device: "wg0", address: address.ip(), peers: &[] }),
            (refused(libc::EDESTADDRREQ), Cause::NoHandshake { device: "wg0" }),
            (refused(libc::ENETUNREACH), Cause::NoWay { address: address.ip() }),
            (refused(libc::EHOSTUNREACH), Cause::Silent { address, device: Some("wg0"), is_wireguard: true }),
            (
                CheckError::Connect(ConnectError::TimedOut { address, after: Duration::from_secs(1) }),
                Cause::Silent { address, device: Some("wg0"), is_wireguard: true },
            ),
            (CheckError::Silent(Ask::Tls, Duration::from_secs(1)), Cause::Answer { ask: Ask::Tls }),
        ] {
            assert_eq!(Cause::of(&error, path), Some(expected), "{error}");
        }
        assert_eq!(Cause::of(&CheckError::Connect(ConnectError::Drained), path), None);
    }
}
