//! The bench's own test, `--check`: a deliberately slowed daemon must be measured as slower.
//!
//! Counts that any machine can take must stay within bounds, so that a daemon that does more work per
//! connection is noticed even on a busy machine.

use anyhow::{Result, ensure};

use super::{
    against::{Verdict, verdict},
    record::Run,
    trials::{Effort, Metric},
};

/// The daemon as it is.
const PLAIN: &str = "edged-copy";
/// The same, slowed.
const SLOWED: &str = "edged-slowed";
/// Both systems.
pub(super) const SYSTEMS: [&str; 2] = [PLAIN, SLOWED];
/// By these tests.
pub(super) const TRIALS: [&str; 4] = ["bulk-down-1", "ping", "connect-small", "work"];
pub(super) const ROUNDS: usize = 3;
pub(super) const EFFORT: Effort = Effort { millis: 400, idle: 0 };

/// Where the slowed one has to be worse.
const TOLD: [(&str, Metric); 3] =
    [("bulk-down-1", Metric::Throughput), ("ping", Metric::P50), ("connect-small", Metric::Rate)];
/// The most work that the daemon may do for one short connection: a tenth above the present. Raise these only
/// for something that is worth it on each connection.
const BOUNDS: [(&str, Metric, f64); 2] =
    [("work-instructions", Metric::Instructions, 48_500.0), ("work-calls", Metric::Calls, 25.5)];

/// Says what does not hold.
pub fn judge(run: &Run) -> Result<()> {
    let mut faults: Vec<String> = Vec::new();
    for failure in
        run.failures.iter().filter(|failure| !failure.trial.starts_with("work") || failure.system == PLAIN)
    {
        faults.push(format!("{} {}: {}", failure.system, failure.trial, failure.reason));
    }
    for (trial, metric) in TOLD {
        let of = |system| run.summary(system, trial, metric);
        match (of(PLAIN), of(SLOWED)) {
            (Some(plain), Some(slowed)) if verdict(plain, slowed, metric) == Verdict::Worse => {}
            outcome => faults.push(format!("{trial}: the slowed daemon does not show: {outcome:?}")),
        }
    }
    for (trial, metric, most) in BOUNDS {
        match run.summary(PLAIN, trial, metric) {
            Some(summary) if summary.median <= most => {}
            outcome => faults.push(format!("{trial}: more than {most} for a connection: {outcome:?}")),
        }
    }
    ensure!(faults.is_empty(), "the bench's own test failed:\n  {}", faults.join("\n  "));
    Ok(())
}
