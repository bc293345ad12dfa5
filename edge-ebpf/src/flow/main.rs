//! The flow tier at tc: rewrites the packets of handed-over connections and redirects them past the sockets. The daemon
//! decides which connections are handed over, and when.
//!
//! - `ingress_l2` and `ingress_l3` forward the packets of flows (devices with and without an Ethernet header);
//! - `egress_l2` and `egress_l3` drop what the local stack sends for a flow's addresses, and make the SYN to a backend
//!   offer what the client offered;
//! - `established` (`sock_ops`) records the initial numbers of every connection of the daemon.
//!
//! Minimum kernel: 6.1 (`bpf_loop` 5.17). tc links (tcx) need 6.6; before that the programs are filters of clsact.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "packet bytes and map values are raw pointers that the verifier checks")]
#![expect(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_ptr_alignment,
    clippy::needless_pass_by_value,
    reason = "all calls together have 512 bytes of stack; header fields are cut out of words; map values are \
              aligned by their representation; aya's attributes pass contexts by value"
)]

mod checksum;
mod entry;
mod family;
mod forward;
mod frame;
mod guard;
mod handshake;
mod maps;
mod options;
mod redirect;
mod socket;
mod state;
mod too_big;
mod wire;

use aya_ebpf::{
    macros::{classifier, sock_ops},
    programs::{SockOpsContext, TcContext},
};
use edge_ebpf::headers::ETHERNET_HEADER;

edge_ebpf::program!();

/// The verdict on packets of no flow, and on packets for the local stack: the next program at this hook decides. That
/// may be one of an older layout, which still carries flows, or another application's. `TC_ACT_UNSPEC` of a filter,
/// `TCX_NEXT` of a link (`linux/pkt_cls.h`, `linux/bpf.h`).
const PASS: i32 = -1;

#[classifier]
fn ingress_l2(context: TcContext) -> i32 {
    forward::ingress::<ETHERNET_HEADER>(context.skb.skb)
}

#[classifier]
fn ingress_l3(context: TcContext) -> i32 {
    forward::ingress::<0>(context.skb.skb)
}

#[classifier]
fn egress_l2(context: TcContext) -> i32 {
    guard::egress::<ETHERNET_HEADER>(context.skb.skb)
}

#[classifier]
fn egress_l3(context: TcContext) -> i32 {
    guard::egress::<0>(context.skb.skb)
}

#[sock_ops]
fn established(context: SockOpsContext) -> u32 {
    handshake::note(context.ops);
    // A sock_ops program answers through its reply field; the return value 1 means success.
    1
}
