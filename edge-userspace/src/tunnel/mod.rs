//! The tunnels to home: which devices exist, whether they are up and lead to an address, and whether the
//! other end of a WireGuard tunnel is alive.
//!
//! Kernel WireGuard, wireguard-go, Tailscale and any other L3 device are treated alike as devices; knowledge
//! about WireGuard's peers is added. Nothing here changes a device, a route or a peer.

#![forbid(unsafe_code)]

mod ask;
mod kernel_wireguard;
mod link;
mod mtu;
mod peer;
mod state;
mod uapi;
mod watch;

pub use ask::{describe, endpoints, peers};
pub use link::{Egress, egress};
pub use mtu::path_mtu;
pub use peer::Peer;
pub use state::{Device, Fault, TunnelPath, Tunnels};
pub use watch::Watcher;

/// Readers that fuzz targets reach.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use netlink_packet_wireguard::WireguardMessage;

    use super::{Peer, kernel_wireguard, uapi};

    /// Parses the answer of a user-space WireGuard; `None` if it is incomplete, an error or malformed.
    pub fn user_space_peers(answer: &str) -> Option<Vec<Peer>> {
        uapi::parse(answer)
    }

    /// Parses the answer of the kernel's WireGuard, which comes in parts.
    pub fn kernel_peers(parts: &[WireguardMessage]) -> Vec<Peer> {
        kernel_wireguard::gather(parts)
    }
}
