//! The entries of a flow in a pinned map, which another version may have written: no panic in what is read off them.
#![no_main]

use std::{mem::MaybeUninit, ptr};

use edge::kernel::FlowPair;
use edge_common::flow::{Flow, FlowKey, REPORTED};
use libfuzzer_sys::fuzz_target;

/// Takes a value from the front of the bytes.
///
/// # Safety
///
/// Any bytes are a valid `T`.
unsafe fn take<T: Copy>(bytes: &mut &[u8]) -> Option<T> {
    let (value, rest) = bytes.split_at_checked(size_of::<T>())?;
    *bytes = rest;
    let mut taken = MaybeUninit::<T>::uninit();
    // SAFETY: both sides have the size of `T`, and they do not overlap.
    unsafe { ptr::copy_nonoverlapping(value.as_ptr(), taken.as_mut_ptr().cast(), size_of::<T>()) };
    // SAFETY: written above, and any bytes are valid.
    Some(unsafe { taken.assume_init() })
}

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    // SAFETY: integers only, as the promise `aya::Pod` of both types says.
    let parts = unsafe { (take::<FlowKey>(&mut rest), take::<Flow>(&mut rest), take::<Flow>(&mut rest)) };
    let (Some(up_key), Some(up), Some(down)) = parts else { return };
    assert_eq!(up_key.reversed().reversed(), up_key);
    assert_eq!(up_key.reversed().source(), up_key.destination());
    assert_eq!(up_key.tuple.is_ipv4(), up_key.source().is_ipv4());
    let mut pair = FlowPair { up_key, up, down };
    pair.up.settle(&pair.down);
    pair.down.settle(&pair.up);
    for (before, after) in [(up, pair.up), (down, pair.down)] {
        // It only ever goes ahead, by less than half of the sequence numbers.
        assert!(after.position.wrapping_sub(before.position) < 1 << 31);
        assert!(after.position.wrapping_sub(after.bytes()) <= 1);
        let _ = (after.is_reset(), after.is_finished(), after.has(REPORTED), after.sent());
        let _ = (after.to.source(), after.to.destination());
    }
    let _ = (pair.down_key(), pair.is_closed());
});
