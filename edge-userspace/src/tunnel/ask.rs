//! A single look at a device's WireGuard peers, for a diagnosis; the [`Watcher`](super::Watcher) follows
//! them.
//!
//! The kernel's WireGuard answers only those who may change it, and hands out the private key; wireguard-go's
//! socket belongs to root. If there is a keeper, it therefore makes the query, and passes on only the
//! contents of [`Peer`].

use std::{io, net::IpAddr};

use super::{kernel_wireguard, peer::Peer, uapi};
use crate::kernel::keeper;

/// The WireGuard peers of a device. `None` where it is no WireGuard, or one that does not say.
pub async fn peers(device: &str) -> Option<Vec<Peer>> {
    ask(device).await.ok()
}

/// The addresses that a device's WireGuard peers were last seen at; none where it is no WireGuard. Waits for the answer:
/// not to be called within a runtime.
pub fn endpoints(device: &str) -> Vec<IpAddr> {
    let answer = match keeper::keeper() {
        Some(keeper) => keeper.peers(device),
        None => describe(device),
    };
    let peers: Vec<Peer> = answer.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    peers.into_iter().filter_map(|peer| peer.endpoint).map(|endpoint| endpoint.ip().to_canonical()).collect()
}

/// Asks by the keeper, or directly where there is none.
pub(super) async fn ask(device: &str) -> io::Result<Vec<Peer>> {
    let Some(keeper) = keeper::keeper() else { return directly(device).await };
    let device = device.to_owned();
    let answer = tokio::task::spawn_blocking(move || keeper.peers(&device)).await;
    Ok(serde_json::from_str(&answer.map_err(io::Error::other)??)?)
}

/// The keeper's part of [`ask`]: serialises the peers. Must not be called within a runtime.
pub fn describe(device: &str) -> io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(serde_json::to_string(&runtime.block_on(directly(device))?)?)
}

async fn directly(device: &str) -> io::Result<Vec<Peer>> {
    if let Some(socket) = uapi::socket(device) {
        return uapi::peers(&socket).await;
    }
    let (connection, mut netlink, _) = genetlink::new_connection()?;
    // It ends with the handle.
    tokio::spawn(connection);
    kernel_wireguard::peers(&mut netlink, device).await
}
