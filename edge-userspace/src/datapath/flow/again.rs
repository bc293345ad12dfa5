//! Decides when to look again at a connection whose packets take another path than a flow's would. Its first
//! packets may have been unusual: a client with an outdated neighbour entry, a route that had just changed.
//! The path may also change while the connection lives.

use std::time::Duration;

use tokio::time::Instant;

/// Before the second look.
const FIRST: Duration = Duration::from_secs(5);
/// Between two looks at most: as long as a difference is remembered (see [`super::wire`]).
const LONGEST: Duration = Duration::from_mins(10);

/// Unsuccessful looks. On the heap, because most connections have none.
#[derive(Debug, Default)]
pub(super) struct Again(Option<Box<Waiting>>);

#[derive(Debug)]
struct Waiting {
    until: Instant,
    next: Duration,
}

impl Again {
    /// Whether nobody has looked in vain.
    pub(super) const fn is_first(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it is time for another look.
    pub(super) fn is_time(&self) -> bool {
        self.0.as_ref().is_none_or(|waiting| Instant::now() >= waiting.until)
    }

    /// Takes note of a look in vain: the time to the next one doubles.
    pub(super) fn in_vain(&mut self, now: Instant) {
        let pause = self.0.as_ref().map_or(FIRST, |waiting| waiting.next);
        self.0 = Some(Box::new(Waiting { until: now + pause, next: (pause * 2).min(LONGEST) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn looks_become_rare_and_never_end() {
        let mut again = Again::default();
        assert!(again.is_first() && again.is_time());
        let mut pauses = Vec::new();
        for _ in 0..10 {
            again.in_vain(Instant::now());
            assert!(!again.is_first() && !again.is_time());
            let before = Instant::now();
            while !again.is_time() {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            pauses.push(before.elapsed().as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]);
    }
}
