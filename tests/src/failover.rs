//! Clients that connect without pause while something fails. Each sends a hello, waits for the first byte of
//! an answer, and records who gave it, when it began and how long it took. None retries.

use std::{
    io::{Read, Write, stderr},
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{Lab, hello::ClientHello};

/// One client.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// When it began to connect.
    pub began: Instant,
    /// Until the first byte, or until it was clear that there will be none.
    pub took: Duration,
    /// The first byte of the answer; `None` where there was none.
    pub answer: Option<u8>,
}

impl Visit {
    /// Whether a service answered: what begins with 21 is an alert of the edge's.
    pub fn served(&self) -> bool {
        self.answer.is_some_and(|first| first != 21)
    }
}

/// The results of all clients.
#[derive(Debug)]
pub struct Visits(Vec<Visit>);

/// Sends clients for `name`, this many at a time, until `during` has ended and there were at least `least` of
/// them. Some start after its end.
pub fn visits(
    lab: &Lab,
    name: &str,
    at_a_time: usize,
    least: usize,
    during: impl FnOnce() -> Result<()>,
) -> Result<Visits> {
    let hello = ClientHello::new(name).records();
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let edge = lab.edge.at(443);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..at_a_time)
            .map(|_| {
                scope.spawn(|| {
                    let mut visits = Vec::new();
                    loop {
                        let is_last = over.load(Ordering::Acquire) && count.load(Ordering::Relaxed) >= least;
                        visits.push(visit(lab, edge, &hello));
                        count.fetch_add(1, Ordering::Relaxed);
                        if is_last {
                            return visits;
                        }
                    }
                })
            })
            .collect();
        let changed = during();
        if changed.is_err() {
            // No reason to go on.
            count.store(least, Ordering::Relaxed);
        }
        over.store(true, Ordering::Release);
        let mut all = Vec::new();
        for client in clients {
            match client.join() {
                Ok(visits) => all.extend(visits),
                Err(_) => bail!("a client panicked"),
            }
        }
        all.sort_by_key(|visit| visit.began);
        changed.map(|()| Visits(all))
    })
}

fn visit(lab: &Lab, edge: SocketAddr, hello: &[u8]) -> Visit {
    let began = Instant::now();
    let ask = || -> Result<u8> {
        let mut stream = lab.client.connect(edge)?;
        stream.write_all(hello)?;
        let mut first = [0];
        stream.read_exact(&mut first)?;
        // Ends with a reset: TIME_WAIT of thousands would use the ports up.
        crate::stream::reset(stream)?;
        Ok(first[0])
    };
    let answer = ask().ok();
    Visit { began, took: began.elapsed(), answer }
}

impl Visits {
    /// All of them, in the order in which they began.
    pub fn all(&self) -> &[Visit] {
        &self.0
    }

    /// Those that no service answered.
    pub fn failed(&self) -> Vec<Visit> {
        self.0.iter().filter(|visit| !visit.served()).copied().collect()
    }

    /// Those that began after this moment.
    #[must_use]
    pub fn since(&self, moment: Instant) -> Self {
        Self(self.0.iter().filter(|visit| visit.began >= moment).copied().collect())
    }

    /// The longest that any took.
    pub fn longest(&self) -> Duration {
        self.0.iter().map(|visit| visit.took).max().unwrap_or_default()
    }

    /// The median duration, which a machine that was busy for a moment does not change. `None` without
    /// clients.
    pub fn usual(&self) -> Option<Duration> {
        let mut all: Vec<_> = self.0.iter().map(|visit| visit.took).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied()
    }

    /// Says how it went, where a test runner shows it also when all is well.
    pub fn say(&self, what: &str, pulled: Instant, visible: Instant) {
        let after = self.since(visible);
        let _ = writeln!(
            stderr(),
            "{what}: {} clients, {} failed; visible after {} ms; of {} that began then {} failed, the longest took \
             {} ms (of all: {} ms)",
            self.0.len(),
            self.failed().len(),
            visible.duration_since(pulled).as_millis(),
            after.0.len(),
            after.failed().len(),
            after.longest().as_millis(),
            self.longest().as_millis(),
        );
    }
}
