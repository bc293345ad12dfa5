//! The flow tier of the tracing objects: the programs of `main.rs`, and a line for each packet that they hand over,
//! refuse or drop. The modules are the same but `maps`, through which the programs report what they do.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "packet bytes and map values are raw pointers that the verifier checks")]
#![expect(
    clippy::inline_always,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_ptr_alignment,
    clippy::needless_pass_by_value,
    reason = "as in main.rs"
)]

// aya-log's macros name their support by the crate that they belong to.
extern crate edge_ebpf as aya_log_ebpf;

mod checksum;
mod entry;
mod family;
mod forward;
mod frame;
mod guard;
mod handshake;
#[path = "trace_maps.rs"]
mod maps;
mod options;
mod redirect;
mod socket;
mod state;
mod too_big;
mod trace;
mod wire;

use aya_ebpf::{
    macros::{classifier, sock_ops},
    programs::{SockOpsContext, TcContext},
};
use edge_ebpf::headers::ETHERNET_HEADER;

edge_ebpf::program!();

/// As in `main.rs`.
const PASS: i32 = -1;

#[classifier]
fn ingress_l2(context: TcContext) -> i32 {
    trace::begin(context.skb.skb, ETHERNET_HEADER as u32, trace::ARRIVES);
    let verdict = forward::ingress::<ETHERNET_HEADER>(context.skb.skb);
    trace::end(trace::ARRIVES);
    verdict
}

#[classifier]
fn ingress_l3(context: TcContext) -> i32 {
    trace::begin(context.skb.skb, 0, trace::ARRIVES);
    let verdict = forward::ingress::<0>(context.skb.skb);
    trace::end(trace::ARRIVES);
    verdict
}

#[classifier]
fn egress_l2(context: TcContext) -> i32 {
    trace::begin(context.skb.skb, ETHERNET_HEADER as u32, trace::LEAVES);
    let verdict = guard::egress::<ETHERNET_HEADER>(context.skb.skb);
    trace::end(trace::LEAVES);
    verdict
}

#[classifier]
fn egress_l3(context: TcContext) -> i32 {
    trace::begin(context.skb.skb, 0, trace::LEAVES);
    let verdict = guard::egress::<0>(context.skb.skb);
    trace::end(trace::LEAVES);
    verdict
}

#[sock_ops]
fn established(context: SockOpsContext) -> u32 {
    handshake::note(context.ops);
    1
}
