//! `edgectl doctor` on the paths home: the MSS of the listeners, and the devices.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::backends::MOST;
use crate::{
    control::api::{Check, CheckStatus},
    daemon::{probe::cause::Cause, segments::Clamp},
    pool::Backend,
    tunnel::{self, Peer},
};

/// The MSS that a listener announces.
pub(super) fn announced(listener: &str, clamp: Option<&Clamp>) -> Check {
    let message = match clamp {
        Some(Clamp { mss, mtu, by }) => {
            format!("announces an MSS of {mss}: the narrowest way, to {by}, carries packets of {mtu} bytes")
        }
        None => "announces the MSS of the client's own link: no way home is known yet".into(),
    };
    Check::new(format!("listener {listener}"), CheckStatus::Ok, message)
}

/// The devices by which packets go home.
pub(super) async fn devices(backends: &[Arc<Backend>]) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut by_device: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    for backend in backends.iter().take(MOST) {
        for address in &backend.addresses(0) {
            let Ok(egress) = tunnel::egress(address.ip(), backend.device().map(|device| &**device)).await
            else {
                continue;
            };
            if egress.by_default && backend.device().is_none() && is_private(address.ip()) {
                checks.push(astray(backend, &egress.device));
            }
            let least = by_device.entry(egress.device).or_insert(egress.mtu);
            *least = egress.mtu.min(*least);
        }
    }
    for (device, mtu) in by_device {
        let peers = tunnel::peers(&device).await;
        checks.push(device_check(&device, mtu, peers.as_deref(), SystemTime::now()));
    }
    checks
}

fn astray(backend: &Backend, device: &str) -> Check {
    let message = format!("leaves by {device}, the way to the internet: no tunnel has a route to it");
    let remedy = "bring the tunnel up, or add the route; with `device = \"wg0\"` in its [[pool.backend]] nothing \
                  ever leaves another way";
    Check::new(format!("way to {}", backend.id()), CheckStatus::Warn, message).remedy(remedy)
}

fn device_check(device: &str, mtu: u32, peers: Option<&[Peer]>, now: SystemTime) -> Check {
    let name = format!("device {device}");
    let carries = format!("carries packets of {mtu} bytes");
    let Some(peers) = peers else { return Check::new(name, CheckStatus::Ok, carries) };
    match peers.iter().filter_map(|peer| peer.handshake).max() {
        None => Check::new(name, CheckStatus::Warn, format!("{carries}, but no peer has ever shaken hands"))
            .remedy(Cause::NoHandshake { device }.remedy()),
        Some(last) => {
            let ago = now.duration_since(last).unwrap_or_default();
            let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
            Check::new(name, CheckStatus::Ok, format!("{carries}; last handshake {ago} ago"))
        }
    }
}

/// Whether no route of the internet leads there (RFC 1918, RFC 6598, RFC 4193).
fn is_private(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_never_answered_is_said() {
        let now = SystemTime::now();
        let peer = |handshake| Peer {
            key: [1; 32],
            endpoint: None,
            allowed: Vec::new(),
            handshake,
            received: 0,
            sent: 148,
        };
        let check = device_check("wg0", 1420, Some(&[peer(None)]), now);
        assert_eq!(check.status, CheckStatus::Warn);
        assert!(check.remedy.unwrap().contains("wg show wg0"));
        let shaken = now - Duration::from_secs(75);
        let check = device_check("wg0", 1420, Some(&[peer(None), peer(Some(shaken))]), now);
        assert_eq!(
            (check.status, &*check.message),
            (CheckStatus::Ok, "carries packets of 1420 bytes; last handshake 1m 15s ago")
        );
        assert_eq!(device_check("eth0", 1500, None, now).message, "carries packets of 1500 bytes");
    }

    #[test]
    fn addresses_of_homes_are_private() {
        for (ip, expected) in [
            ("100.64.0.2", true),
            ("100.127.255.255", true),
            ("100.128.0.1", false),
            ("192.168.1.2", true),
            ("fd7a:115c:a1e0::2", true),
            ("203.0.113.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_private(ip.parse().unwrap()), expected, "{ip}");
        }
    }
}
