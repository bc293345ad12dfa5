//! TCP options that are not the usual timestamps: in any order, through a buffer, one step at a time.
//!
//! Not for the common path. The loop is `bpf_loop`'s and the length goes through `black_box`: unrolled steps
//! under `if offset < end` are merged by LLVM into what the verifier refuses.

use core::{hint::black_box, mem::MaybeUninit};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use edge_common::flow::{NO_SACK, NO_TIMESTAMPS, NO_WINDOW_SCALE};

use crate::checksum::Sum;

/// The most that a TCP header has room for (RFC 9293 §3.1).
const MOST: u32 = 40;
/// Steps for the worst case: 40 NOPs, or four SACK blocks of two edges with an option's step before them.
const STEPS: u32 = 48;

const END: u8 = 0;
const NOP: u8 = 1;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// What to do with the options.
#[derive(Clone, Copy)]
pub(crate) struct Change {
    pub(crate) tsval: u32,
    pub(crate) tsecr: u32,
    pub(crate) ack: u32,
    /// [`NO_TIMESTAMPS`] and its kind: overwritten with NOPs.
    pub(crate) blank: u32,
}

/// 64 bytes, so that an index masked to 6 bits is always inside.
#[repr(C, align(8))]
struct Walk {
    bytes: [u8; 64],
    /// Behind the last option.
    end: u32,
    blank: u32,
    tsval: u32,
    tsecr: u32,
    ack: u32,
    /// The next option.
    at: u32,
    /// SACK edges still to be moved, and where the next is.
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
        // Beyond the options are zeros, which count for nothing or, removed and added, cancel out.
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
    // SAFETY: `rewrite` hands its own buffer through the kernel.
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
            // No option that is blanked is longer than the timestamps.
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

/// Zero, which the verifier takes for any number: before 6.7 it looks at the first step of a loop alone, and removes
/// what only later ones reach.
#[inline(always)]
fn hidden_zero() -> u32 {
    // SAFETY: a helper without arguments.
    let since_boot = unsafe { bpf_ktime_get_coarse_ns() };
    // The sign of a time that 292 years make negative.
    (since_boot.cast_signed() >> 63) as u32
}

/// The options could not be read or written: they are not all there, or the kernel has no memory.
#[derive(Clone, Copy)]
pub(crate) struct Refused;

/// Rewrites the options of `length` bytes at `offset`; adds to `sum` what it changed.
///
/// No packet pointer is good after it.
#[inline(always)]
pub(crate) fn rewrite(
    skb: *mut __sk_buff,
    offset: usize,
    length: u32,
    change: Change,
    sum: &mut Sum,
) -> Result<(), Refused> {
    // A function returns one register here.
    if rewrite_apart(skb, offset as u32, length, &change, sum) == 0 { Ok(()) } else { Err(Refused) }
}

/// A function of its own: its stack is not the common path's.
#[inline(never)]
fn rewrite_apart(skb: *mut __sk_buff, offset: u32, length: u32, change: &Change, sum: &mut Sum) -> u32 {
    let Change { tsval, tsecr, ack, blank } = *change;
    let mut walk = MaybeUninit::<Walk>::uninit();
    // Cleared word by word: LLVM makes more than a few at once a call of memset, which goes byte by byte.
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
    // Less one, so that a single comparison bounds it at both ends: before 6.8 the verifier learns nothing from `!= 0`.
    let load = black_box(length.wrapping_sub(1));
    if load >= MOST {
        return 1;
    }
    // SAFETY: a helper that checks the offset; the buffer is longer than MOST.
    if unsafe { bpf_skb_load_bytes(skb.cast(), offset, walk.bytes.as_mut_ptr().cast(), load + 1) } != 0 {
        return 1;
    }
    let before = walk.sum(*sum, true);
    // SAFETY: `step` takes what is handed to it here.
    unsafe { bpf_loop(STEPS, step as *mut _, (&raw mut *walk).cast(), 0) };
    *sum = walk.sum(before, false);
    let store = black_box(length.wrapping_sub(1));
    if store >= MOST {
        return 1;
    }
    // SAFETY: as for the load.
    u32::from(unsafe { bpf_skb_store_bytes(skb, offset, walk.bytes.as_ptr().cast(), store + 1, 0) } != 0)
}
