//! One look at a device's WireGuard peers, for a diagnosis; whoever wants to follow them has the
//! [`Watcher`](super::Watcher).
//!
//! The kernel's WireGuard answers only who may change it, and hands out the private key; wireguard-go's socket is
//! root's. So the keeper asks where there is one, and passes on nothing but what is in [`Peer`].

use std::io;

use super::{kernel_wireguard, peer::Peer, uapi};
use crate::kernel::keeper;

/// The WireGuard peers of a device. `None` where it is no WireGuard, or one that does not say.
pub async fn peers(device: &str) -> Option<Vec<Peer>> {
    ask(device).await.ok()
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
