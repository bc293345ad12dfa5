//! Freed memory, given back to the system. glibc keeps what was freed below something that lives: after a flood of
//! short connections that is most of it. musl gives back by itself.

/// Gives back every whole page that is free. Takes some milliseconds, in which other threads may wait for memory.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "rustix has no call for it")]
pub fn give_back_memory() {
    // SAFETY: it takes no pointer, may be called from any thread at any time (malloc_trim(3), MT-Safe), and touches
    // only memory that is free.
    unsafe { libc::malloc_trim(0) };
}

/// Nothing to do.
#[cfg(not(target_env = "gnu"))]
pub fn give_back_memory() {}
