//! Rewrites TCP options other than the usual timestamps, in any order: copies them into a buffer, walks it, and writes
//! them back. Not for the common path.
//!
//! The loop is `bpf_loop` and the length passes through `black_box`, because LLVM merges unrolled steps under
//! `if offset < end` into code that the verifier rejects.

use core::{hint::black_box, mem::MaybeUninit};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use edge_common::flow::{NO_SACK, NO_TIMESTAMPS, NO_WINDOW_SCALE};

use crate::checksum::Sum;

/// Bytes of options that fit in a TCP header (RFC 9293 §3.1).
const MOST: u32 = 40;
/// Steps for the worst case: 40 NOPs, or the SACK option and its four blocks of two edges.
const STEPS: u32 = 48;

const END: u8 = 0;
const NOP: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// The change that the options need.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) tsval: u32,
    pub(crate) tsecr: u32,
    pub(crate) ack: u32,
    /// [`NO_TIMESTAMPS`] …: the options to overwrite with NOPs.
    pub(crate) blank: u32,
}

/// 64 bytes, so that an index masked to 6 bits is always inside.
#[repr(C, align(8))]
struct Walk {
    bytes: [u8; 64],
    /// The end of the options.
    end: u32,
    blank: u32,
    tsval: u32,
    tsecr: u32,
    ack: u32,
    /// The next option.
    at: u32,
    /// SACK edges still to be rewritten, and the offset of the next.
    edges: u32,
    edge: u32,
}

impl Walk {
    #[inline(always)]
    fn byte(&self, at: u32) -> u8 {
        self.bytes[(at & 63) as usize]
    }

    #[inline(always)]
    fn set(&mut self, at: u32, byte: u8) {
        self.bytes[(at & 63) as usize] = byte;
    }

    /// Adds to the number at `at`, which need not be aligned.
    #[inline(always)]
    fn add(&mut self, at: u32, delta: u32) {
        let number = [self.byte(at), self.byte(at + 1), self.byte(at + 2), self.byte(at + 3)];
        let [a, b, c, d] = u32::from_be_bytes(number).wrapping_add(delta).to_be_bytes();
        self.set(at, a);
        self.set(at + 1, b);
        self.set(at + 2, c);
        self.set(at + 3, d);
    }

    #[inline(always)]
    fn sum(&self, mut sum: Sum, remove: bool) -> Sum {
        // The bytes behind the options are zero: they add nothing, or cancel out when removed and added.
        let words = self.bytes.as_ptr().cast::<u32>();
        macro_rules! each {
            ($($at:literal)*) => { $(
                // SAFETY: the first ten words of sixteen, aligned by the type.
                let word = unsafe { *words.add($at) };
                sum = if remove { sum.remove(word) } else { sum.add(word) };
            )* };
        }
        each!(0 1 2 3 4 5 6 7 8 9);
        sum
    }
}

/// One step of the walk; 1 ends it.
extern "C" fn step(_index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: `rewrite_apart` passes its own buffer through the kernel.
    let walk = unsafe { &mut *walk };
    if walk.edges != 0 {
        let (edge, delta) = (walk.edge, walk.ack);
        walk.add(edge, delta);
        walk.edge = edge + 4;
        walk.edges -= 1;
        return 0;
    }
    let at = walk.at;
    if at >= walk.end {
        return 1;
    }
    let kind = walk.byte(at);
    if kind == END {
        return 1;
    }
    if kind == NOP {
        walk.at = at + 1;
        return 0;
    }
    let length = u32::from(walk.byte(at + 1));
    if length < 2 || at + length > walk.end {
        return 1;
    }
    walk.at = at + length;
    let blank = walk.blank;
    if blank != 0 {
        let wanted = match kind {
            TIMESTAMPS => NO_TIMESTAMPS,
            SACK_PERMITTED => NO_SACK,
            WINDOW_SCALE => NO_WINDOW_SCALE,
            _ => 0,
        };
        if blank & wanted != 0 {
            let mut covered = 0;
            // None of these options is longer than the timestamps.
            while covered < 10 {
                if covered < length {
                    walk.set(at + covered, NOP);
                }
                covered += 1;
            }
        }
    } else if kind == TIMESTAMPS && length == 10 {
        let (tsval, tsecr) = (walk.tsval, walk.tsecr);
        walk.add(at + 2, tsval);
        walk.add(at + 6, tsecr);
    } else if kind == SACK && length >= 10 {
        walk.edges = (length - 2) / 4;
        walk.edge = at + 2;
    }
    0
}

/// Zero, as a number that the verifier does not know. Before 6.7 it examines only the first step of a `bpf_loop`, with
/// the initial values, and removes code that only later steps reach.
#[inline(always)]
fn hidden_zero() -> u32 {
    // SAFETY: a helper without arguments.
    let since_boot = unsafe { bpf_ktime_get_coarse_ns() };
    // The sign of the time since boot, which is negative after 292 years.
    (since_boot.cast_signed() >> 63) as u32
}

/// The packet ends before its options do, or the kernel is out of memory.
#[derive(Clone, Copy)]
pub(crate) struct Refused;

/// Rewrites `length` bytes of options at `offset`, and adds the difference to `sum`.
///
/// Packet pointers are invalid afterwards.
#[inline(always)]
pub(crate) fn rewrite(
    skb: *mut __sk_buff,
    offset: usize,
    length: u32,
    change: Change,
    sum: &mut Sum,
) -> Result<(), Refused> {
    // A BPF function returns one register.
    if rewrite_apart(skb, offset as u32, length, &change, sum) == 0 { Ok(()) } else { Err(Refused) }
}

/// A function of its own, so that its buffer is not on the common path's stack.
#[inline(never)]
fn rewrite_apart(skb: *mut __sk_buff, offset: u32, length: u32, change: &Change, sum: &mut Sum) -> u32 {
    let Change { tsval, tsecr, ack, blank } = *change;
    let mut walk = MaybeUninit::<Walk>::uninit();
    // Word by word: LLVM turns a larger clearing into a call of `memset`, which stores single bytes.
    let words = walk.as_mut_ptr().cast::<u64>();
    macro_rules! clear {
        ($($at:literal)*) => { $(
            // SAFETY: the eight words of `bytes`, the first field.
            unsafe { words.add($at).write_volatile(0) };
        )* };
    }
    clear!(0 1 2 3 4 5 6 7);
    // SAFETY: `bytes` was written above, every other field is written before it is read.
    let walk = unsafe { &mut *walk.as_mut_ptr() };
    (walk.end, walk.blank) = (length, blank);
    (walk.tsval, walk.tsecr, walk.ack) = (tsval, tsecr, ack);
    (walk.at, walk.edges, walk.edge) = (hidden_zero(), hidden_zero(), hidden_zero());
    // Minus one, so that one comparison bounds it on both sides: before 6.8 the verifier learns nothing from `!= 0`.
    let load = black_box(length.wrapping_sub(1));
    if load >= MOST {
        return 1;
    }
    // SAFETY: a helper that checks the offset; the buffer is longer than MOST.
    if unsafe { bpf_skb_load_bytes(skb.cast(), offset, walk.bytes.as_mut_ptr().cast(), load + 1) } != 0 {
        return 1;
    }
    let before = walk.sum(*sum, true);
    // SAFETY: `step` gets the buffer that is passed here.
    unsafe { bpf_loop(STEPS, step as *mut _, (&raw mut *walk).cast(), 0) };
    *sum = walk.sum(before, false);
    let store = black_box(length.wrapping_sub(1));
    if store >= MOST {
        return 1;
    }
    // SAFETY: as for the load.
    u32::from(unsafe { bpf_skb_store_bytes(skb, offset, walk.bytes.as_ptr().cast(), store + 1, 0) } != 0)
}
