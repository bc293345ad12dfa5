//! Compares packets on the wire with the sockets that they belong to: addresses and numbers, arriving and leaving. A
//! flow is looked up by the addresses on the wire, so a connection may become one only if both agree. Between socket
//! and wire are NAT (`nf_nat`, other programs of tc), SYNPROXY (which changes sequence numbers) and IPsec.
//!
//! The programs look up a socket by the packet's own addresses. If NAT changes them, there is no such socket, or one
//! with other numbers.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release, bpf_tcp_sock},
};
use edge_common::flow::{Handshake, Tuple};
use edge_ebpf::{shared::Shared, write};

use crate::{
    maps,
    socket::{CURRENT_NETNS, lookup_key},
    state::is_after,
};

/// How far a packet's numbers may be from the socket's: more than the largest window, and far less than the distance
/// between the initial sequence numbers of two stacks.
const NEAR: u32 = 1 << 24;

/// The numbers of a packet, from the socket's point of view.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    /// The number in the peer's stream.
    pub(crate) theirs: u32,
    /// The number in the socket's own stream.
    pub(crate) own: u32,
}

/// Records the device on which a packet arrived that belongs to a socket unchanged.
#[inline(always)]
pub(crate) fn arrives<const V6: bool>(skb: *mut __sk_buff, key: &Tuple, numbers: Numbers) {
    // SAFETY: the context of the program.
    let device = unsafe { (*skb).ingress_ifindex };
    look::<V6>(skb, key, &numbers, device);
}

/// Records how a packet of a socket left. `key` is that of the answers, `own` the record of the socket.
#[inline(always)]
pub(crate) fn leaves<const V6: bool>(
    skb: *mut __sk_buff,
    key: &Tuple,
    numbers: Numbers,
    own: Shared<Handshake>,
) {
    if look::<V6>(skb, key, &numbers, 0) == 0 {
        write!(own, translated = 1);
        return;
    }
    // SAFETY: the context of the program.
    let (mark, device) = unsafe { ((*skb).mark, (*skb).ifindex) };
    write!(own, mark = mark);
    // Last: the daemon reads the mark once there is a device.
    write!(own, leaves_by = device);
}

/// 1 if packets with this key and these numbers belong to a socket, else 0. Records `device`, unless it is 0, as the
/// one that they arrive on.
#[inline(never)]
fn look<const V6: bool>(skb: *mut __sk_buff, key: &Tuple, numbers: &Numbers, device: u32) -> u32 {
    let v4 = [key.source[3], key.destination[3], key.ports];
    let (tuple, size) = lookup_key::<V6>(key, &v4);
    // SAFETY: helpers that check their arguments. The socket is held until it is released, and read before; its
    // storage lives as long as it.
    unsafe {
        let socket: *mut bpf_sock = bpf_sk_lookup_tcp(skb.cast(), tuple.cast_mut(), size, CURRENT_NETNS, 0);
        if socket.is_null() {
            return 0;
        }
        let mut is_near = 0;
        // A listening socket has no handshake of its own.
        let handshake = maps::handshake(socket.cast(), 0);
        let tcp = bpf_tcp_sock(socket);
        if let Some(handshake) = handshake
            && !tcp.is_null()
            && near(numbers.theirs, (*tcp).rcv_nxt)
            && near(numbers.own, (*tcp).snd_nxt)
        {
            is_near = 1;
            if device != 0 {
                write!(handshake, arrives_by = device);
            }
        }
        bpf_sk_release(socket.cast());
        is_near
    }
}

#[inline(always)]
fn near(a: u32, b: u32) -> bool {
    is_after(a.wrapping_add(NEAR), b) && is_after(b.wrapping_add(NEAR), a)
}
