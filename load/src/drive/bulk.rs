//! As much as goes through some streams at the same time.

use std::{
    io::{self, Read},
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{open, wait_for_go};
use crate::{
    job::{Direction, Errand, Report},
    opening::Order,
    stream::{discard, send_for},
};

/// Every sender sends for the same time. The clock runs until the last byte has arrived, so that data in an
/// edge's buffers is not counted before it arrives.
pub(super) fn run(errand: &Errand, streams: usize, direction: Direction, millis: u32) -> Result<Report> {
    let start = Instant::now();
    let totals: Vec<io::Result<u64>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..streams)
            .map(|_| {
                scope.spawn(|| match direction {
                    Direction::Down => down(errand, millis),
                    Direction::Up => up(errand, millis),
                })
            })
            .collect();
        let panicked = || Err(io::Error::other("a stream's thread panicked"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| panicked())).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let bytes = totals.into_iter().sum::<io::Result<u64>>().context("a bulk stream")?;
    Ok(Report { seconds, bytes, count: streams as u64, ..Report::default() })
}

fn down(errand: &Errand, millis: u32) -> io::Result<u64> {
    let stream = open(errand, Order::Source(millis))?;
    discard(&stream)
}

fn up(errand: &Errand, millis: u32) -> io::Result<u64> {
    let mut stream = open(errand, Order::Sink)?;
    wait_for_go(&mut stream)?;
    send_for(&mut stream, Duration::from_millis(millis.into()))?;
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total)?;
    Ok(u64::from_be_bytes(total))
}
