//! One look at a device's WireGuard peers, for a diagnosis; whoever wants to follow them has the
//! [`Watcher`](super::Watcher).

use std::io;

use super::{kernel_wireguard, peer::Peer, uapi};

/// The WireGuard peers of a device. `None` where it is no WireGuard, or one that does not say.
pub async fn peers(device: &str) -> Option<Vec<Peer>> {
    if let Some(socket) = uapi::socket(device) {
        return uapi::peers(&socket).await.ok();
    }
    of_kernel(device).await.ok()
}

async fn of_kernel(device: &str) -> io::Result<Vec<Peer>> {
    let (connection, mut netlink, _) = genetlink::new_connection()?;
    // It ends with the handle.
    tokio::spawn(connection);
    kernel_wireguard::peers(&mut netlink, device).await
}
