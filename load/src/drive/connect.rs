//! Short connections, as many as go, by some clients at the same time.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use super::PATIENCE;
use crate::job::{Latency, Report};

/// Has `clients` threads do `one` again and again.
pub(super) fn run(clients: usize, time: Duration, one: impl Fn() -> io::Result<()> + Sync) -> Result<Report> {
    // An edge that serves nobody is a fault of the set-up, better said than measured.
    if let Err(error) = one() {
        bail!("the first connection failed: {error}");
    }
    let start = Instant::now();
    let client = || {
        let mut times = Vec::new();
        let mut failed = 0_u64;
        while start.elapsed() < time {
            let begun = Instant::now();
            match one() {
                Ok(()) => times.push(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)),
                Err(_) => failed += 1,
            }
        }
        (times, failed)
    };
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    let failed = outcomes.iter().map(|(_, failed)| failed).sum();
    let times: Vec<u64> = outcomes.into_iter().flat_map(|(times, _)| times).collect();
    Ok(Report {
        seconds,
        count: times.len() as u64,
        failed,
        latency: Latency::of(times),
        ..Report::default()
    })
}

/// A ClientHello, an answer of this many bytes, and the end; the service closes first, as after
/// `Connection: close`.
pub(super) fn short(to: SocketAddr, hello: &[u8], answer: u32) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(hello)?;
    let mut buffer = [0; 4096];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 if total == answer as usize => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            octets => total += octets,
        }
    }
}
