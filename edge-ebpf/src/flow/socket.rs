//! The socket of a connection that is being handed over.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release, bpf_tcp_sock},
};
use edge_common::flow::Tuple;

/// `BPF_F_CURRENT_NETNS` (`linux/bpf.h`).
pub(crate) const CURRENT_NETNS: u64 = -1_i64 as u64;
/// `TCP_LISTEN` (`net/tcp_states.h`).
const LISTEN: u32 = 10;

/// The sequence numbers of a socket.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    /// The next number that it expects (`rcv_nxt`).
    pub(crate) expected: u32,
    /// The number behind the last byte that it has sent (`snd_nxt`); more may be queued.
    pub(crate) sent: u32,
}

impl Numbers {
    /// Those of the socket that packets with these addresses belong to, if there is one.
    #[inline(always)]
    pub(crate) fn find<const V6: bool>(skb: *mut __sk_buff, tuple: &Tuple) -> Option<Self> {
        let mut numbers = Self { expected: 0, sent: 0 };
        // A BPF function returns one register.
        (look::<V6>(skb, tuple, &mut numbers) != 0).then_some(numbers)
    }
}

/// The key of a socket lookup and its size. `struct bpf_sock_tuple` holds both addresses and both ports without
/// padding: for IPv6 that is a [`Tuple`], for IPv4 `v4`.
#[inline(always)]
pub(crate) fn lookup_key<const V6: bool>(tuple: &Tuple, v4: &[u32; 3]) -> (*const bpf_sock_tuple, u32) {
    if V6 {
        ((&raw const *tuple).cast(), size_of::<Tuple>() as u32)
    } else {
        ((&raw const *v4).cast(), size_of_val(v4) as u32)
    }
}

#[inline(never)]
fn look<const V6: bool>(skb: *mut __sk_buff, tuple: &Tuple, numbers: &mut Numbers) -> u32 {
    let v4 = [tuple.source[3], tuple.destination[3], tuple.ports];
    let (key, size) = lookup_key::<V6>(tuple, &v4);
    // SAFETY: helpers that check their arguments. The socket is held until it is released, and read before.
    unsafe {
        let socket: *mut bpf_sock = bpf_sk_lookup_tcp(skb.cast(), key.cast_mut(), size, CURRENT_NETNS, 0);
        if socket.is_null() {
            return 0;
        }
        let mut found = 0;
        let tcp = bpf_tcp_sock(socket);
        if !tcp.is_null() && (*socket).state != LISTEN {
            (numbers.expected, numbers.sent) = ((*tcp).rcv_nxt, (*tcp).snd_nxt);
            found = 1;
        }
        bpf_sk_release(socket.cast());
        found
    }
}
