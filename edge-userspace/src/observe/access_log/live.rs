//! The access log as it is written, for readers beside its file: the last lines, and lines as they come.
//!
//! A connection never waits for a reader. A reader that is too slow loses lines and is told how many.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;
use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};

use super::Record;
use crate::lock::lock;

/// Lines that may wait for one reader: some hundred kilobytes.
const QUEUE: usize = 1024;
/// Readers at the same time. Each has a connection to the control socket.
const READERS: usize = 16;
/// Lines that are kept of connections that were carried, and as many of refused ones: scans must not push out the rest.
const KEPT: usize = 256;

/// A connection that ended.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its line in the access log.
    #[serde(flatten)]
    pub record: Record,
    /// The edge refused it; left out where it did not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

/// Which lines a reader wants.
type Wanted = Box<dyn Fn(&Line) -> bool + Send + Sync>;

/// The readers, and the lines that are kept for them.
#[derive(Debug, Default)]
pub(super) struct Live {
    hub: Mutex<Hub>,
    /// Nobody reads and nothing is kept.
    is_idle: AtomicBool,
}

#[derive(Debug, Default)]
struct Hub {
    is_kept: bool,
    ended: bool,
    /// Lines so far, which numbers the kept ones.
    count: u64,
    carried: VecDeque<(u64, Arc<Line>)>,
    refused: VecDeque<(u64, Arc<Line>)>,
    readers: Vec<Reader>,
}

struct Reader {
    wanted: Wanted,
    lines: Sender<Arc<Line>>,
    lost: Arc<AtomicU64>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// As many follow the log as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{READERS} readers follow the access log already")]
pub struct TooManyReaders;

/// Lines as they come.
#[derive(Debug)]
pub struct Follower {
    lines: Receiver<Arc<Line>>,
    lost: Arc<AtomicU64>,
}

impl Follower {
    /// The next line; `None` when the daemon ends.
    pub async fn next(&mut self) -> Option<Arc<Line>> {
        self.lines.recv().await
    }

    /// A line that is there already.
    pub fn waiting(&mut self) -> Option<Arc<Line>> {
        self.lines.try_recv().ok()
    }

    /// How many lines were lost since the last call, because this reader was too slow.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Relaxed)
    }
}

impl Live {
    /// Keeps the last lines, unless the operator wants no log.
    pub(super) fn new(is_kept: bool) -> Self {
        Self { hub: Mutex::new(Hub { is_kept, ..Hub::default() }), is_idle: AtomicBool::new(!is_kept) }
    }

    /// A line for those who want it.
    pub(super) fn offer(&self, record: &Record, refused: bool) {
        if self.is_idle.load(Relaxed) {
            return;
        }
        let line = Arc::new(Line { record: record.clone(), refused });
        let mut hub = lock(&self.hub);
        hub.readers.retain(|reader| {
            if !(reader.wanted)(&line) {
                return !reader.lines.is_closed();
            }
            match reader.lines.try_send(Arc::clone(&line)) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    reader.lost.fetch_add(1, Relaxed);
                    true
                }
                Err(TrySendError::Closed(_)) => false,
            }
        });
        hub.count += 1;
        let count = hub.count;
        if hub.is_kept {
            let kept = if refused { &mut hub.refused } else { &mut hub.carried };
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back((count, line));
        } else if hub.readers.is_empty() {
            self.is_idle.store(true, Relaxed);
        }
    }

    /// The last `count` lines that are wanted, the oldest first.
    pub(super) fn last(&self, wanted: impl Fn(&Line) -> bool, count: usize) -> Vec<Arc<Line>> {
        last(&lock(&self.hub), wanted, count)
    }

    /// The same, and all lines that follow them.
    pub(super) fn follow(
        &self,
        wanted: impl Fn(&Line) -> bool + Send + Sync + 'static,
        count: usize,
    ) -> Result<(Vec<Arc<Line>>, Follower), TooManyReaders> {
        let mut hub = lock(&self.hub);
        hub.readers.retain(|reader| !reader.lines.is_closed());
        if hub.readers.len() >= READERS {
            return Err(TooManyReaders);
        }
        let before = last(&hub, &wanted, count);
        let (sender, lines) = mpsc::channel(QUEUE);
        let lost = Arc::<AtomicU64>::default();
        if !hub.ended {
            hub.readers.push(Reader { wanted: Box::new(wanted), lines: sender, lost: Arc::clone(&lost) });
            self.is_idle.store(false, Relaxed);
        }
        Ok((before, Follower { lines, lost }))
    }

    /// Ends every follower, after the lines that wait for it: the daemon ends.
    pub(super) fn end(&self) {
        let mut hub = lock(&self.hub);
        hub.ended = true;
        hub.readers.clear();
    }
}

fn last(hub: &Hub, wanted: impl Fn(&Line) -> bool, count: usize) -> Vec<Arc<Line>> {
    let mut lines: Vec<_> = hub.carried.iter().chain(&hub.refused).filter(|(_, line)| wanted(line)).collect();
    lines.sort_unstable_by_key(|(nth, _)| *nth);
    let more = lines.len().saturating_sub(count);
    lines[more..].iter().map(|(_, line)| Arc::clone(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::tests::record, *};

    fn ids(lines: &[Arc<Line>]) -> Vec<u64> {
        lines.iter().map(|line| line.record.id).collect()
    }

    #[test]
    fn refusals_do_not_push_out_the_lines_of_carried_connections() {
        let live = Live::new(true);
        live.offer(&record(1), false);
        for id in 2..2 + 2 * KEPT as u64 {
            live.offer(&record(id), true);
        }
        live.offer(&record(9_999), false);
        let all = live.last(|_| true, usize::MAX);
        assert_eq!(all.len(), KEPT + 2);
        assert_eq!(ids(&all)[0], 1);
        assert_eq!(ids(&live.last(|line| !line.refused, usize::MAX)), [1, 9_999]);
        assert_eq!(ids(&live.last(|_| true, 1)), [9_999]);
    }

    #[tokio::test]
    async fn a_follower_gets_what_it_wants_and_learns_what_it_lost() {
        let live = Live::new(false);
        live.offer(&record(1), false);
        let (before, mut follower) = live.follow(|line| line.refused, 10).unwrap();
        assert!(before.is_empty(), "nothing is kept where the operator wants no log");
        let many = QUEUE as u64 + 7;
        for id in 0..many {
            live.offer(&record(id), true);
            live.offer(&record(id), false);
        }
        assert_eq!(follower.lost(), 7);
        assert_eq!(follower.lost(), 0);
        live.end();
        let mut got = 0;
        while let Some(line) = follower.next().await {
            assert_eq!(line.record.id, got);
            got += 1;
        }
        assert_eq!(got, QUEUE as u64);
        let (_, mut late) = live.follow(|_| true, 0).unwrap();
        assert!(late.next().await.is_none(), "the daemon has ended");
    }

    #[test]
    fn readers_are_bounded_and_those_that_left_do_not_count() {
        let live = Live::new(true);
        let mut readers: Vec<_> = (0..READERS).map(|_| live.follow(|_| true, 0).unwrap()).collect();
        assert_eq!(live.follow(|_| true, 0).unwrap_err(), TooManyReaders);
        readers.pop();
        assert!(live.follow(|_| true, 0).is_ok());
    }
}
