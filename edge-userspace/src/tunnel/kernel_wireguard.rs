//! Reads the peers of the kernel's WireGuard through generic netlink, `WG_CMD_GET_DEVICE`
//! (`uapi/linux/wireguard.h`, Linux 5.6). Needs `CAP_NET_ADMIN`.

use std::{
    io,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use genetlink::GenetlinkHandle;
use ipnet::IpNet;
use netlink_packet_generic::GenlMessage;
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd, WireguardMessage,
    WireguardPeer, WireguardPeerAttribute,
};
use rtnetlink::packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};

use super::peer::Peer;

/// Asks for the peers of a device.
pub(super) async fn peers(netlink: &mut GenetlinkHandle, device: &str) -> io::Result<Vec<Peer>> {
    let mut question = NetlinkMessage::from(GenlMessage::from_payload(WireguardMessage {
        cmd: WireguardCmd::GetDevice,
        attributes: vec![WireguardAttribute::IfName(device.to_owned())],
    }));
    question.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut answers = netlink.request(question).await.map_err(io::Error::other)?;
    let mut peers = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.map_err(io::Error::other)?.payload {
            NetlinkPayload::InnerMessage(message) => collect(&mut peers, &message.payload),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            _ => {}
        }
    }
    Ok(peers)
}

/// The peers of an answer.
#[cfg(feature = "fuzzing")]
pub(super) fn gather(parts: &[WireguardMessage]) -> Vec<Peer> {
    let mut peers = Vec::new();
    for part in parts {
        collect(&mut peers, part);
    }
    peers
}

/// Adds the peers of one part of the answer. A peer with many allowed addresses comes in several parts; the
/// later ones have only its key and the remaining addresses.
fn collect(peers: &mut Vec<Peer>, part: &WireguardMessage) {
    let found = part.attributes.iter().filter_map(|attribute| match attribute {
        WireguardAttribute::Peers(peers) => Some(peers),
        _ => None,
    });
    for found in found.flatten() {
        let Some(peer) = read(found) else { continue };
        match peers.last_mut() {
            Some(last) if last.key == peer.key => last.allowed.extend(peer.allowed),
            _ => peers.push(peer),
        }
    }
}

fn read(attributes: &WireguardPeer) -> Option<Peer> {
    let mut peer =
        Peer { key: [0; 32], endpoint: None, allowed: Vec::new(), handshake: None, received: 0, sent: 0 };
    let mut known = false;
    for attribute in &attributes.0 {
        match attribute {
            WireguardPeerAttribute::PublicKey(key) => (peer.key, known) = (*key, true),
            WireguardPeerAttribute::Endpoint(endpoint) => peer.endpoint = Some(*endpoint),
            WireguardPeerAttribute::RxBytes(bytes) => peer.received = *bytes,
            WireguardPeerAttribute::TxBytes(bytes) => peer.sent = *bytes,
            WireguardPeerAttribute::LastHandshake(at) => {
                let since_epoch = u64::try_from(at.seconds).ok().filter(|&seconds| seconds > 0);
                peer.handshake = since_epoch
                    .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
            }
            WireguardPeerAttribute::AllowedIps(nets) => peer.allowed.extend(nets.iter().filter_map(net)),
            _ => {}
        }
    }
    known.then_some(peer)
}

fn net(attributes: &WireguardAllowedIp) -> Option<IpNet> {
    let mut address = None;
    let mut prefix = None;
    for attribute in &attributes.0 {
        match attribute {
            WireguardAllowedIpAttr::IpAddr(found) => address = Some(*found),
            WireguardAllowedIpAttr::Cidr(found) => prefix = Some(*found),
            _ => {}
        }
    }
    IpNet::new(address?, prefix?).ok()
}

#[cfg(test)]
mod tests {
    use netlink_packet_wireguard::WireguardTimeSpec;

    use super::*;

    fn part(key: u8, nets: &[&str]) -> WireguardMessage {
        let nets = nets.iter().map(|net| {
            let net: IpNet = net.parse().unwrap();
            let (address, prefix) = (net.addr(), net.prefix_len());
            WireguardAllowedIp(vec![
                WireguardAllowedIpAttr::IpAddr(address),
                WireguardAllowedIpAttr::Cidr(prefix),
            ])
        });
        let peer = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey([key; 32]),
            WireguardPeerAttribute::LastHandshake(WireguardTimeSpec { seconds: 1000, nano_seconds: 5 }),
            WireguardPeerAttribute::TxBytes(7),
            WireguardPeerAttribute::AllowedIps(nets.collect()),
        ]);
        WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::PrivateKey([9; 32]), WireguardAttribute::Peers(vec![peer])],
        }
    }

    #[test]
    fn a_peer_in_several_parts_is_one() {
        let mut peers = Vec::new();
        for part in [part(1, &["10.0.0.0/24"]), part(1, &["fd00::/64"]), part(2, &["0.0.0.0/0"])] {
            collect(&mut peers, &part);
        }
        assert_eq!(peers.len(), 2);
        assert_eq!(peers[0].allowed, ["10.0.0.0/24", "fd00::/64"].map(|net| net.parse().unwrap()));
        assert_eq!(peers[0].handshake, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1000)));
        assert_eq!((peers[1].sent, peers[1].received), (7, 0));
    }
}
