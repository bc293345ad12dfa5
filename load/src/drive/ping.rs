//! Round trips of a small message on one connection.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{open, wait_for_go};
use crate::{
    job::{Errand, Latency, Report},
    opening::Order,
};

/// Round trips before the clock runs: caches and tables are warm then.
const WARM_UP: u32 = 200;

pub(super) fn run(errand: &Errand, size: usize, time: Duration) -> Result<Report> {
    let mut stream = open(errand, Order::Echo)?;
    wait_for_go(&mut stream).context("the service did not answer")?;
    let message = vec![0x70; size];
    let mut echo = vec![0; size];
    let mut trip = || -> Result<Duration> {
        let start = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut echo).context("no echo")?;
        Ok(start.elapsed())
    };
    for _ in 0..WARM_UP {
        trip()?;
    }
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        times.push(u64::try_from(trip()?.as_nanos()).unwrap_or(u64::MAX));
    }
    let (seconds, count) = (start.elapsed().as_secs_f64(), times.len() as u64);
    Ok(Report { seconds, count, latency: Latency::of(times), ..Report::default() })
}
