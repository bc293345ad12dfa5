//! What the BPF programs share. Each program is a binary of its own beside this file, and an object of its
//! own once built; `edge_ebpf::program!()` makes a binary one.
#![no_std]

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
