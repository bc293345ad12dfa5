//! The round trip to a backend, smoothed over its connections and checks.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

/// A new sample counts for an eighth, as in the kernel's own estimate (RFC 6298 §2).
const GAIN: u32 = 8;

/// An estimate that any worker may feed.
#[derive(Debug, Default)]
pub(super) struct Rtt {
    /// Microseconds; 0 means unknown.
    smoothed: AtomicU32,
}

impl Rtt {
    /// `None` before the first sample.
    pub(super) fn get(&self) -> Option<Duration> {
        match self.smoothed.load(Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros.into())),
        }
    }

    pub(super) fn measured(&self, sample: Duration) {
        let sample = u32::try_from(sample.as_micros()).unwrap_or(u32::MAX);
        let smoothed = match self.smoothed.load(Relaxed) {
            0 => sample,
            old => old - old / GAIN + sample / GAIN,
        };
        // Two workers at once may lose a sample: it is an estimate.
        self.smoothed.store(smoothed.max(1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_slowly() {
        let rtt = Rtt::default();
        assert_eq!(rtt.get(), None);
        rtt.measured(Duration::from_millis(80));
        rtt.measured(Duration::from_millis(160));
        assert_eq!(rtt.get(), Some(Duration::from_millis(90)));
        rtt.measured(Duration::ZERO);
        assert!(rtt.get().unwrap() > Duration::from_millis(78));
        rtt.measured(Duration::MAX);
        assert!(rtt.get().unwrap() > Duration::from_mins(1));
    }
}
