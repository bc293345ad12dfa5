//! Records the initial numbers of a connection when it is established. Later the kernel does not tell some of them (the
//! peer's timestamp), and others only while the socket is frozen (`TCP_REPAIR`).

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        bpf_sock_ops,
    },
    helpers::generated::bpf_load_hdr_opt,
};
use edge_common::flow::{ESTABLISHED, HAS_ECN, HAS_TIMESTAMPS};
use edge_ebpf::write;

use crate::maps;

/// `TCP_ECN_OK` (`net/tcp.h`): the stack itself negotiated ECN.
const TCP_ECN_OK: u32 = 1;
/// The ECE flag: in a SYN-ACK, without CWR, it accepts ECN (RFC 3168 §6.1.1).
const ECE: u32 = 0x40;
const CWR: u32 = 0x80;

const TIMESTAMPS: u32 = 8;
const TIMESTAMPS_LENGTH: u32 = 10;

#[inline(always)]
pub(crate) fn note(context: *mut bpf_sock_ops) {
    // SAFETY: the context of the program; the kernel rewrites these loads.
    let (event, socket) = unsafe { ((*context).op, (*context).__bindgen_anon_2.sk) };
    let is_active = event == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB;
    if !is_active && event != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || socket.is_null() {
        return;
    }
    // SAFETY: the socket of the context.
    let Some(handshake) = (unsafe { maps::handshake(socket.cast(), BPF_SK_STORAGE_GET_F_CREATE) }) else {
        return;
    };
    // SAFETY: the context as above.
    let (ecn, answer) = unsafe { ((*context).ecn_flags, (*context).skb_tcp_flags) };
    // SAFETY: the context as above.
    let (snd_nxt, rcv_nxt) = unsafe { ((*context).snd_nxt, (*context).rcv_nxt) };
    write!(handshake, snd_nxt = snd_nxt);
    write!(handshake, rcv_nxt = rcv_nxt);
    let mut flags = ESTABLISHED;
    // Kind, length, TSval, TSecr; in words, which take fewer instructions to clear.
    let mut option = [TIMESTAMPS, 0, 0];
    // From the segment that established the connection; missing if timestamps were not negotiated.
    // SAFETY: a helper that checks the length; the buffer is longer.
    if unsafe { bpf_load_hdr_opt(context, option.as_mut_ptr().cast(), TIMESTAMPS_LENGTH, 0) } > 0 {
        flags |= HAS_TIMESTAMPS;
        // The value starts at the option's third byte.
        write!(handshake, ts_recent = u32::from_be((option[0] >> 16) | (option[1] << 16)));
    }
    let peer_agreed = is_active && answer & (ECE | CWR) == ECE;
    if ecn & TCP_ECN_OK != 0 || peer_agreed {
        flags |= HAS_ECN;
    }
    write!(handshake, flags = flags);
}
