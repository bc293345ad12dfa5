//! Times and rates as the programs in the kernel have them.

use std::time::{Duration, SystemTime};

use edge_common::shield::{Block, SynLimit};

use crate::kernel::boot_time;

pub(super) fn limit(rate: u32) -> SynLimit {
    if rate == 0 {
        return SynLimit::default();
    }
    let interval = (1_000_000_000 / u64::from(rate)).max(1);
    SynLimit { interval, tolerance: interval * u64::from(rate - 1) }
}

pub(super) fn to_boot_time(time: SystemTime) -> u64 {
    let ahead = time.duration_since(SystemTime::now()).unwrap_or_default();
    // One nanosecond less than forever at most.
    boot_time().saturating_add(u64::try_from(ahead.as_nanos()).unwrap_or(u64::MAX)).min(Block::FOREVER - 1)
}

pub(super) fn from_boot_time(until: u64) -> SystemTime {
    let now = (SystemTime::now(), boot_time());
    match until.checked_sub(now.1) {
        Some(ahead) => now.0 + Duration::from_nanos(ahead),
        None => now.0 - Duration::from_nanos(now.1 - until),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_schedule_with_a_second_of_slack() {
        assert_eq!(limit(0).interval, 0);
        assert_eq!(limit(1), SynLimit { interval: 1_000_000_000, tolerance: 0 });
        assert_eq!(limit(10), SynLimit { interval: 100_000_000, tolerance: 900_000_000 });
        assert_eq!(limit(u32::MAX).interval, 1, "not 0, which means no limit");
    }

    #[test]
    fn times_survive_the_way_to_the_kernels_clock_and_back() {
        let time = SystemTime::now() + Duration::from_hours(1);
        let back = from_boot_time(to_boot_time(time));
        let error = back.duration_since(time).unwrap_or_else(|error| error.duration());
        assert!(error < Duration::from_secs(1), "{error:?}");
        assert!(to_boot_time(SystemTime::UNIX_EPOCH) <= boot_time(), "over already");
    }
}
