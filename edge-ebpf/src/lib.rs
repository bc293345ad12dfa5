//! Code that the BPF programs share. Each program is a binary beside this file and is built into an object of its own;
//! `edge_ebpf::program!()` adds the parts that every object needs.
#![no_std]
#![expect(
    unsafe_code,
    reason = "values of maps are raw pointers, which the programs read and write through one type"
)]
#![expect(clippy::inline_always, reason = "the verifier follows a pointer in the function that looked it up")]

pub mod headers;
#[cfg(feature = "trace")]
pub mod macro_support;
pub mod shared;
pub mod trace;

// aya-log's macros name their support by the crate that they belong to.
#[cfg(feature = "trace")]
extern crate self as aya_log_ebpf;

/// Declares the licence, without which the kernel refuses GPL-only helpers.
#[macro_export]
macro_rules! program {
    () => {
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}

/// Never called: the verifier accepts no program that could panic. The compiler needs it all the same.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
