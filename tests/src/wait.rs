//! Waiting for an event of another process, with a deadline. The other sleeps in the lab are part of a
//! scenario: a client that pauses, a line that stays dead.

use std::{
    env,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The time that anything but a bulk transfer may take on a loaded machine.
pub const SOON: Duration = Duration::from_secs(30);

/// Names a whole number that every deadline is multiplied by, for machines that are emulated.
pub const PATIENCE: &str = "EDGE_LAB_PATIENCE";

/// Pause between two looks; short against anything a process does to become ready.
const PAUSE: Duration = Duration::from_millis(10);

/// A deadline as this machine takes it, see [`PATIENCE`].
pub fn patient(deadline: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor =
        FACTOR.get_or_init(|| env::var(PATIENCE).ok().and_then(|text| text.parse().ok()).unwrap_or(1));
    deadline * *factor
}

/// Asks until the answer is `Some`; after `deadline`, the error names `what` was awaited.
pub fn until<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let (start, deadline) = (Instant::now(), patient(deadline));
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} in vain for {what}");
        }
        thread::sleep(PAUSE);
    }
}

/// Tries until it succeeds; after `deadline`, the last error is returned.
pub fn until_ok<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let (start, deadline) = (Instant::now(), patient(deadline));
    loop {
        match attempt() {
            Ok(answer) => return Ok(answer),
            Err(error) if start.elapsed() > deadline => {
                return Err(error).with_context(|| format!("waited {deadline:?} in vain for {what}"));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Waits until `condition` holds.
pub fn until_true(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    until(what, deadline, || condition().then_some(()))
}
