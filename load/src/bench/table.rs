//! The run as text, for the terminal.

use std::fmt::{self, Display, Formatter};

use super::record::Run;

/// The bases of ratios.
pub(super) const BASES: [&str; 2] = ["forwarding", "haproxy"];

/// All figures of a run.
pub struct Table<'a>(pub &'a Run);

impl Display for Table<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let run = self.0;
        for trial in &run.trials {
            for metric in run.metrics(trial) {
                writeln!(f, "\n{trial}: {} ({})", metric.label(), metric.unit())?;
                writeln!(
                    f,
                    "  {:<20} {:>10} {:>7} {:>12} {:>10}",
                    "", "median", "spread", "×forwarding", "×haproxy"
                )?;
                for system in &run.systems {
                    let Some(summary) = run.summary(&system.name, trial, metric) else { continue };
                    write!(f, "  {:<20} {:>10}", system.name, Digits(summary.median))?;
                    write!(f, " {:>6.0}%", summary.spread() * 100.0)?;
                    for (base, width) in BASES.into_iter().zip([12, 10]) {
                        match run.ratio(&system.name, base, trial, metric) {
                            Some(ratio) => write!(f, " {:>width$.2}", ratio.median)?,
                            None => write!(f, " {:>width$}", "–")?,
                        }
                    }
                    writeln!(f)?;
                }
            }
        }
        for failure in &run.failures {
            writeln!(
                f,
                "failed in round {}: {} {}: {}",
                failure.round, failure.system, failure.trial, failure.reason
            )?;
        }
        Ok(())
    }
}

/// A value with three or four digits that mean something.
pub(super) struct Digits(pub(super) f64);

impl Display for Digits {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        let decimals = if size >= 100.0 {
            0
        } else if size >= 10.0 {
            1
        } else {
            2
        };
        let text = format!("{:.decimals$}", self.0);
        f.pad(&text)
    }
}
