//! The clocks that BPF programs and the daemon share.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_BOOTTIME`: the clock of [`Block::until`](edge_common::shield::Block::until).
pub fn boot_time() -> u64 {
    nanoseconds(ClockId::Boottime)
}

/// Nanoseconds of `CLOCK_MONOTONIC`: the clock of flows.
pub fn monotonic() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    // Neither part is negative, and 2⁶⁴ nanoseconds are 584 years.
    now.tv_sec.cast_unsigned().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_run() {
        for clock in [boot_time, monotonic] {
            let before = clock();
            assert!(before > 0 && clock() >= before);
        }
    }
}
