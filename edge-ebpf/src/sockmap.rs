//! The sockmap tier: the kernel queues the data that one socket of a connection receives for sending at the other
//! socket, without a detour through user space, as far as the other side's acknowledgements allow.
//!
//! Minimum kernel: 6.4, where verdicts without a parser became sound, or one with those fixes, such as Debian's 6.1.
//! The daemon tries the programs at its start, and does without the tier if the trial fails.
//!
//! The kernel's redirection has no back-pressure: it takes everything from the sender and queues it without a bound.
//! The credit bounds it. A direction that has used up its credit belongs to user space from then on, because data must
//! not be redirected while older data waits elsewhere.
//!
//! Nor does the kernel check sequence numbers when it passes a segment to a verdict. A segment that user space had read
//! in part, or that was retransmitted with other boundaries, would be redirected as a whole, and some octets twice. The
//! verdict therefore reads the numbers in the segment's control block, which is still TCP's own (`struct tcp_skb_cb`).
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "contexts and map values are raw pointers; the verifier proves their bounds")]
#![expect(
    clippy::inline_always,
    reason = "a map value is known to the verifier in the function that looked it up"
)]

use core::ptr::null_mut;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RTT_CB, BPF_SOCK_OPS_RTT_CB_FLAG, bpf_sock_ops,
        sk_action::{SK_DROP, SK_PASS},
    },
    btf_maps::{HashMap, RingBuf, SkStorage, SockHash},
    helpers::{
        bpf_get_socket_cookie,
        generated::{bpf_sk_storage_get, bpf_skb_adjust_room, bpf_sock_ops_cb_flags_set},
    },
    macros::{btf_map, sock_ops, stream_verdict},
    programs::{SkBuffContext, SockOpsContext},
};
use edge_common::sockmap::{Beginning, Leg, MAX_LEGS, MAX_MISSES, NOTICES as NOTICE_BYTES, SEGMENT_COST};
use edge_ebpf::{read, shared::Shared, write};

edge_ebpf::program!();

/// By cookie.
#[btf_map]
static LEGS: HashMap<u64, Leg, { MAX_LEGS as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
/// The destinations: every socket of the tier. Both sockets of a pair are here before either is in [`SOURCES`].
#[btf_map]
static PEERS: SockHash<u64, { MAX_LEGS as usize }> = SockHash::new();
/// The sources: the verdict is attached to this map.
#[btf_map]
static SOURCES: SockHash<u64, { MAX_LEGS as usize }> = SockHash::new();
/// Cookies of legs whose flags have changed.
#[btf_map]
static NOTICES: RingBuf<(), { NOTICE_BYTES as usize }> = RingBuf::new();
#[btf_map]
static BEGINNINGS: SkStorage<Beginning> = SkStorage::new();

/// Octets that one call of `bpf_skb_adjust_room` removes at most.
const MAX_TRIM: u32 = 4095;
/// Calls of it per segment: together they remove as much as user space can have read of one.
const TRIMS: u32 = 24;

#[stream_verdict]
#[expect(clippy::needless_pass_by_value, reason = "the attribute hands the context over so")]
fn verdict(ctx: SkBuffContext) -> u32 {
    if ctx.len() == 0 {
        // A bare FIN. Redirecting it would end the destination with an error.
        return SK_DROP;
    }
    // SAFETY: a helper that accepts any segment.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(leg) = leg(cookie) else { return SK_PASS };
    if read!(leg, flags) & Leg::BROKEN != 0 || !trim(&ctx, read!(leg, next)) {
        return break_off(leg, cookie);
    }
    let octets = ctx.len();
    write!(leg, next = read!(leg, next).wrapping_add(octets));
    let octets = u64::from(octets);
    let mut peer = read!(leg, peer);
    let Some(destination) = self::leg(peer) else { return break_off(leg, cookie) };
    let is_spilled = read!(leg, flags) & Leg::SPILLED != 0;
    if is_spilled || !has_credit(leg, destination, octets) {
        write!(leg, passed = read!(leg, passed).wrapping_add(octets));
        if !is_spilled {
            write!(leg, flags = read!(leg, flags) | Leg::SPILLED);
            notify(cookie);
        }
        return SK_PASS;
    }
    if PEERS.redirect_skb(&ctx, &mut peer, 0) != i64::from(SK_PASS) {
        return break_off(leg, cookie);
    }
    write!(leg, redirected = read!(leg, redirected).wrapping_add(octets));
    SK_PASS
}

/// The leg of a socket. The verdicts of one socket run one after the other and are the only writers of their leg,
/// except for [`Leg::acked`], which `sock_ops` writes. User space removes a leg when its socket is closed.
#[inline(always)]
fn leg(cookie: u64) -> Option<Shared<Leg>> {
    // SAFETY: a lookup of this run, in a map of legs.
    LEGS.get_ptr_mut(cookie).and_then(|found| unsafe { Shared::new(found) })
}

/// Removes octets that were taken before from the front; `false` if the segment is not the next one.
#[inline(always)]
fn trim(ctx: &SkBuffContext, next: u32) -> bool {
    let [first, end, ..] = *ctx.skb.cb() else { return false };
    // A FIN occupies one sequence number. With any other difference this is not TCP's control block.
    let span = end.wrapping_sub(first);
    if span != ctx.len() && span != ctx.len() + 1 {
        return false;
    }
    let mut old = next.wrapping_sub(first);
    if old >= ctx.len() {
        return false;
    }
    for _ in 0..TRIMS {
        if old == 0 {
            break;
        }
        let step = if old > MAX_TRIM { MAX_TRIM } else { old };
        // SAFETY: a helper that checks the length itself.
        if unsafe { bpf_skb_adjust_room(ctx.as_ptr().cast(), -step.cast_signed(), 0, 0) } != 0 {
            return false;
        }
        old -= step;
    }
    old == 0
}

/// Whether the destination has acknowledged enough for another segment of this many octets.
#[inline(always)]
fn has_credit(leg: Shared<Leg>, destination: Shared<Leg>, octets: u64) -> bool {
    let (sent_before, acked) = (read!(destination, sent_before), read!(destination, acked));
    let redirected = read!(leg, redirected);
    let waiting = sent_before.wrapping_add(redirected).saturating_sub(acked);
    // Acknowledgements count octets, not segments. All segments from before an epoch are gone once its mark is
    // acknowledged, so no more can wait than were redirected in this epoch and the one before.
    if acked >= sent_before.wrapping_add(read!(leg, mark)) {
        write!(leg, segments_before = read!(leg, segments));
        write!(leg, segments = 0);
        write!(leg, mark = redirected);
    }
    let count = read!(leg, segments);
    let segments = u64::from(count) + u64::from(read!(leg, segments_before));
    if waiting + octets + segments * SEGMENT_COST > read!(leg, credit) {
        return false;
    }
    write!(leg, segments = count.wrapping_add(1));
    true
}

#[inline(always)]
fn break_off(leg: Shared<Leg>, cookie: u64) -> u32 {
    let flags = read!(leg, flags);
    if flags & Leg::BROKEN == 0 {
        write!(leg, flags = flags | Leg::BROKEN);
        notify(cookie);
    }
    SK_DROP
}

#[inline(always)]
fn notify(cookie: u64) {
    // The ring has room for a notice of every leg.
    let _ = NOTICES.output_untyped::<u64>(cookie, 0);
}

#[sock_ops]
#[expect(clippy::needless_pass_by_value, reason = "the attribute hands the context over so")]
fn track(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB | BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => begin(ctx.ops),
        BPF_SOCK_OPS_RTT_CB => acknowledged(&ctx),
        _ => {}
    }
    1
}

/// Records where the stream begins, and requests a report of every round trip.
#[inline(always)]
fn begin(ops: *mut bpf_sock_ops) {
    let Some(beginning) = beginning(ops, BPF_SK_STORAGE_GET_F_CREATE.into()) else { return };
    // SAFETY: the context of the program.
    write!(beginning, first = unsafe { (*ops).rcv_nxt });
    report_round_trips(ops, true);
}

/// A round trip was measured, so an acknowledgement has arrived.
#[inline(always)]
fn acknowledged(ctx: &SockOpsContext) {
    // SAFETY: a helper that accepts any socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if let Some(leg) = leg(cookie) {
        // SAFETY: the context of the program.
        write!(leg, acked = unsafe { (*ctx.ops).bytes_acked });
        return;
    }
    let Some(beginning) = beginning(ctx.ops, 0) else { return };
    // The only writer: the programs of one socket run one after the other.
    let misses = read!(beginning, misses).saturating_add(1);
    write!(beginning, misses = misses);
    if misses >= MAX_MISSES {
        report_round_trips(ctx.ops, false);
    }
}

#[inline(always)]
fn beginning(ops: *mut bpf_sock_ops, flags: u64) -> Option<Shared<Beginning>> {
    // SAFETY: the context of the program; the kernel rewrites this load.
    let socket = unsafe { (*ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    let map = (&raw const BEGINNINGS).cast_mut().cast();
    // SAFETY: a helper that takes any socket but none; the values of this map are beginnings, and the storage lives as
    // long as the socket.
    unsafe { Shared::new(bpf_sk_storage_get(map, socket.cast(), null_mut(), flags).cast()) }
}

/// Turns reports of round trips on or off. Other programs may have requested other reports; those stay.
#[inline(always)]
fn report_round_trips(ops: *mut bpf_sock_ops, wanted: bool) {
    // SAFETY: the context of the program.
    let others = unsafe { (*ops).bpf_sock_ops_cb_flags } & !BPF_SOCK_OPS_RTT_CB_FLAG;
    let flags = if wanted { others | BPF_SOCK_OPS_RTT_CB_FLAG } else { others };
    // SAFETY: a helper that accepts any flags.
    let _ = unsafe { bpf_sock_ops_cb_flags_set(ops, flags.cast_signed()) };
}
