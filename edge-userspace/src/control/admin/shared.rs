//! An answer that many ask for and that is gathered once for all of them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

/// How old an answer may be.
const OLDEST: Duration = Duration::from_secs(1);
/// An answer is kept for this many times as long as it took to gather, so that any number of requests uses at
/// most a tenth of a processor. An answer that was gathered quickly is as good as new.
const KEPT: u32 = 10;

/// The last answer, and who gathers the next one.
#[derive(Debug)]
pub(super) struct Shared<T> {
    last: Arc<Mutex<Option<Answer<T>>>>,
    /// How long an answer is kept at least.
    least: Duration,
}

#[derive(Debug)]
struct Answer<T> {
    value: T,
    /// When it began to be gathered.
    began: Instant,
    /// How old it may become.
    kept: Duration,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self::kept(Duration::ZERO)
    }
}

impl<T> Shared<T> {
    /// Keeps each answer for so long, however quickly it was gathered.
    pub(super) fn kept(least: Duration) -> Self {
        Self { last: Arc::default(), least }
    }
}

impl<T: Clone + Send + 'static> Shared<T> {
    /// The last answer if it is young enough, otherwise the result of `gather`, which runs on a thread where
    /// it may block. It never runs twice at the same time, even if its callers have gone. `None` if it
    /// returns none.
    pub(super) async fn get(&self, gather: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
        let mut last = Arc::clone(&self.last).lock_owned().await;
        if let Some(answer) = last.as_ref().filter(|answer| answer.began.elapsed() < answer.kept) {
            return Some(answer.value.clone());
        }
        let shortest = self.least;
        let gathered = tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let value = gather()?;
            let kept = (began.elapsed() * KEPT).clamp(shortest, OLDEST);
            *last = Some(Answer { value: value.clone(), began, kept });
            Some(value)
        });
        gathered.await.ok()?
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering::SeqCst},
        thread,
    };

    use super::*;

    #[tokio::test]
    async fn many_share_one_answer_and_none_is_older_than_it_may_be() {
        static GATHERED: AtomicU32 = AtomicU32::new(0);
        let slow = || {
            let number = GATHERED.fetch_add(1, SeqCst);
            // As a walk of very many flows.
            thread::sleep(Duration::from_millis(100));
            Some(number)
        };
        let shared = Arc::new(Shared::default());
        let asked: Vec<_> = (0..60)
            .map(|_| {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move { shared.get(slow).await })
            })
            .collect();
        for answer in asked {
            assert_eq!(answer.await.unwrap(), Some(0));
        }
        assert_eq!(GATHERED.load(SeqCst), 1);
        let mut last = shared.last.lock().await;
        let answer = last.as_mut().unwrap();
        assert!(answer.kept <= OLDEST && answer.kept >= Duration::from_millis(900), "{:?}", answer.kept);
        answer.began -= answer.kept;
        drop(last);
        assert_eq!(shared.get(slow).await, Some(1), "too old");
    }

    #[tokio::test]
    async fn who_goes_away_leaves_no_second_gathering_behind() {
        static AT_ONCE: AtomicU32 = AtomicU32::new(0);
        static MOST: AtomicU32 = AtomicU32::new(0);
        let gather = || {
            MOST.fetch_max(AT_ONCE.fetch_add(1, SeqCst) + 1, SeqCst);
            thread::sleep(Duration::from_millis(5));
            AT_ONCE.fetch_sub(1, SeqCst);
            None::<u32>
        };
        let shared = Arc::new(Shared::default());
        for _ in 0..20 {
            let impatient = tokio::time::timeout(Duration::from_millis(1), shared.get(gather));
            let _ = impatient.await;
        }
        assert_eq!(shared.get(gather).await, None);
        assert_eq!(MOST.load(SeqCst), 1);
    }
}
