//! Whether the wire shows of a connection what its socket believes: the same addresses and numbers, arriving and
//! leaving. A flow is found by what the wire shows, so only such a connection may become one. Between socket and wire
//! are NAT (`nf_nat`, other programs of tc), SYNPROXY (which changes sequence numbers) and IPsec.
//!
//! A packet is compared by looking for the socket with the packet's own addresses: where NAT changes them, there is
//! none, or one with other numbers.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release, bpf_tcp_sock},
};
use edge_common::flow::{Handshake, Tuple};
use edge_ebpf::{shared::Shared, write};

use crate::{
    maps,
    socket::{CURRENT_NETNS, sought},
    state::is_after,
};

/// How far a packet's numbers may be from the socket's: above the largest window, and far below what a SYN cookie or
/// another stack's initial number differs by.
const NEAR: u32 = 1 << 24;

/// The numbers of a packet as the socket names them.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    /// Of the peer's stream.
    pub(crate) theirs: u32,
    /// Of the socket's own.
    pub(crate) own: u32,
}

/// Notes the device on which a packet arrived that is the socket's as it is.
#[inline(always)]
pub(crate) fn arrives<const V6: bool>(skb: *mut __sk_buff, key: &Tuple, numbers: Numbers) {
    // SAFETY: the context of the program.
    let device = unsafe { (*skb).ingress_ifindex };
    look::<V6>(skb, key, &numbers, device);
}

/// Notes how a packet of the socket left. `key` is of the answers to it, `own` what is noted of the socket.
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
    // Last: the daemon looks at the mark once there is a device.
    write!(own, leaves_by = device);
}

/// Whether there is a socket that packets with this key are for as they are; notes the `device`, unless it is 0, as
/// the one by which they arrive.
#[inline(never)]
fn look<const V6: bool>(skb: *mut __sk_buff, key: &Tuple, numbers: &Numbers, device: u32) -> u32 {
    let v4 = [key.source[3], key.destination[3], key.ports];
    let (tuple, size) = sought::<V6>(key, &v4);
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
