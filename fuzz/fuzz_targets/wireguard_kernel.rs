//! Parses the answers of the kernel's WireGuard, split into parts like a long answer: no panic, and a peer in
//! several parts is one peer.
//!
//! The attributes are made here and not read from bytes: the netlink library panics over an empty `WGALLOWEDIP_A_CIDR_MASK`,
//! which the kernel never sends.
#![no_main]

use std::net::IpAddr;

use edge::tunnel::fuzzing::kernel_peers;
use libfuzzer_sys::fuzz_target;
use netlink_packet_wireguard::{
    WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd, WireguardMessage,
    WireguardPeer, WireguardPeerAttribute, WireguardTimeSpec,
};

/// Decisions taken from the input; zeros after its end.
struct Choices<'a>(std::slice::Iter<'a, u8>);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or_default()
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    fn address(&mut self) -> IpAddr {
        if self.byte() & 1 == 0 {
            std::array::from_fn::<u8, 4, _>(|_| self.byte()).into()
        } else {
            std::array::from_fn::<u8, 16, _>(|_| self.byte()).into()
        }
    }

    fn net(&mut self) -> WireguardAllowedIp {
        let attribute = |choices: &mut Self| match choices.byte() & 1 {
            0 => WireguardAllowedIpAttr::IpAddr(choices.address()),
            _ => WireguardAllowedIpAttr::Cidr(choices.byte()),
        };
        WireguardAllowedIp((0..self.byte() % 4).map(|_| attribute(self)).collect())
    }

    fn peer(&mut self) -> WireguardPeer {
        let attribute = |choices: &mut Self| match choices.byte() % 6 {
            // Few keys, so that the parts of one peer meet.
            0 => WireguardPeerAttribute::PublicKey([choices.byte() % 3; 32]),
            1 => WireguardPeerAttribute::Endpoint((choices.address(), 51820).into()),
            2 => WireguardPeerAttribute::RxBytes(choices.word()),
            3 => WireguardPeerAttribute::TxBytes(choices.word()),
            4 => {
                let (seconds, nano_seconds) = (choices.word().cast_signed(), choices.word().cast_signed());
                WireguardPeerAttribute::LastHandshake(WireguardTimeSpec { seconds, nano_seconds })
            }
            _ => WireguardPeerAttribute::AllowedIps((0..choices.byte() % 4).map(|_| choices.net()).collect()),
        };
        WireguardPeer((0..self.byte() % 8).map(|_| attribute(self)).collect())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut choices = Choices(bytes.iter());
    let mut parts = Vec::new();
    while choices.0.len() > 0 {
        let peers = (0..choices.byte() % 4).map(|_| choices.peer()).collect();
        parts.push(WireguardMessage {
            cmd: WireguardCmd::GetDevice,
            attributes: vec![WireguardAttribute::Peers(peers)],
        });
    }
    let peers = kernel_peers(&parts);
    assert!(peers.windows(2).all(|pair| pair[0].key != pair[1].key));
    for net in peers.iter().flat_map(|peer| &peer.allowed) {
        assert!(net.prefix_len() <= net.max_prefix_len());
    }
});
