//! The flow tier in tc: packets of handed-over connections are rewritten and redirected, and never reach a
//! socket. Not here: who is handed over and when, which is the daemon's.
//!
//! - `ingress_l2`, `ingress_l3` carry the packets of flows (Ethernet; devices without a link header);
//! - `egress_l2`, `egress_l3` keep the local stack from answering for them, and shape the SYN to a backend so
//!   that it offers what the client offered;
//! - `established` (`sock_ops`) notes the numbers that every connection of the daemon starts with.
//!
//! Kernel 6.1: `bpf_loop` and atomic fetch need 5.17, tc links (tcx) 6.6; without them clsact serves.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "packet bytes and map values are raw pointers that the verifier checks")]
#![expect(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_ptr_alignment,
    clippy::needless_pass_by_value,
    reason = "calls share 512 bytes of stack; headers are taken apart by cutting numbers; the structures are \
              aligned by their representation; aya's attributes ask for contexts by value"
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

/// The verdict on what is no flow's, and on what the stack is to have: whoever comes behind this program decides. That
/// may be the programs of an older layout, which still carry their flows, or somebody else's. `TC_ACT_UNSPEC` of a
/// filter, `TCX_NEXT` of a link (`linux/pkt_cls.h`, `linux/bpf.h`).
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
    // The answer of a sock_ops program is its reply field; 1 says that all is well.
    1
}
