//! How long hellos and connects take, in histograms that cost a few atomic additions.

use std::{
    collections::HashMap,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::lock::{read, write};

/// Upper bounds of the buckets, in seconds: from a backend in the same house to the default time limits.
pub const BOUNDS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// The histograms `edge_hello_seconds` and `edge_connect_seconds{pool}`.
#[derive(Debug, Default)]
pub struct Timings {
    hello: Histogram,
    connect: RwLock<HashMap<Arc<str>, Arc<Histogram>>>,
}

impl Timings {
    /// A hello was complete this long after accept.
    pub fn hello(&self, took: Duration) {
        self.hello.observe(took);
    }

    /// Connecting to a backend of this pool took so long.
    pub fn connect(&self, pool: &Arc<str>, took: Duration) {
        if let Some(histogram) = read(&self.connect).get(pool) {
            return histogram.observe(took);
        }
        let mut pools = write(&self.connect);
        pools.entry(Arc::clone(pool)).or_default().observe(took);
    }

    /// The histogram of hellos.
    pub fn hellos(&self) -> &Histogram {
        &self.hello
    }

    /// The histograms of connects, by pool.
    pub fn connects(&self) -> Vec<(Arc<str>, Arc<Histogram>)> {
        let pools = read(&self.connect);
        pools.iter().map(|(pool, histogram)| (Arc::clone(pool), Arc::clone(histogram))).collect()
    }
}

/// Durations counted by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One for each of [`BOUNDS`] and one for what is above; not cumulative.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|&bound| bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.microseconds.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The count of each bucket, not cumulative; the last one is above all [`BOUNDS`].
    pub fn buckets(&self) -> [u64; BOUNDS.len() + 1] {
        self.buckets.each_ref().map(|count| count.load(Relaxed))
    }

    /// All durations together.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.microseconds.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_bucket_whose_bound_it_does_not_exceed() {
        let timings = Timings::default();
        let pool: Arc<str> = "caddy".into();
        for millis in [0, 1, 1, 30, 60_000] {
            timings.connect(&pool, Duration::from_millis(millis));
        }
        let (name, histogram) = timings.connects().remove(0);
        assert_eq!(name, pool);
        let counts = histogram.buckets();
        assert_eq!((counts[0], counts[1], counts[6], counts[13]), (1, 2, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 5);
        assert_eq!(histogram.sum(), Duration::from_millis(60_032));
    }
}
