//! What the BPF programs share. Each program is a binary of its own beside this file, and an object of its
//! own once built; `edge_ebpf::program!()` makes a binary one.
#![no_std]
#![expect(
    unsafe_code,
    reason = "values of maps are raw pointers, which the programs read and write through one type"
)]
#![expect(clippy::inline_always, reason = "the verifier follows a pointer in the function that looked it up")]

pub mod headers;
pub mod shared;

/// What every program needs once: the licence that the GPL-only helpers ask for.
#[macro_export]
macro_rules! program {
    () => {
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}

/// The verifier accepts no path that panics, so none arrives here; it wants an end all the same.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
