//! Compares two saved runs.
//!
//! Absolute figures of two runs differ by more than the code does. So the ratio of a system to a base that
//! both runs have (forwarding, else HAProxy) is compared, and its absolute value only if neither exists.

use std::fmt::{self, Display, Formatter};

use super::{record::Run, summary::Summary, table::BASES, trials::Metric};

/// A change beyond this, and beyond the spread of both runs, is called one.
const NOTABLE: f64 = 0.05;

/// The change from an old run to a new one.
pub struct Against<'a> {
    /// The saved run.
    pub old: &'a Run,
    /// The run that is compared with it.
    pub new: &'a Run,
}

/// The result for one figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Better,
    Worse,
    /// Within what the two runs' rounds differ among themselves.
    Same,
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Same => "same",
        })
    }
}

/// Judges two summaries of the same figure.
pub(super) fn verdict(old: Summary, new: Summary, metric: Metric) -> Verdict {
    let change = new.median / old.median - 1.0;
    // A quarter of the range is about the error of a median of five.
    let noise = f64::midpoint(old.spread(), new.spread());
    if !change.is_finite() || change.abs() < NOTABLE.max(noise) {
        Verdict::Same
    } else if (change > 0.0) == metric.more_is_better() {
        Verdict::Better
    } else {
        Verdict::Worse
    }
}

impl Against<'_> {
    /// A figure in both runs, by what it is measured: the base, if any, then old and new.
    fn pair(&self, system: &str, trial: &str, metric: Metric) -> Option<(&'static str, Summary, Summary)> {
        let ratio = |base: &'static str| {
            let of = |run: &Run| (system != base).then(|| run.ratio(system, base, trial, metric))?;
            Some((base, of(self.old)?, of(self.new)?))
        };
        let absolute =
            || Some(("", self.old.summary(system, trial, metric)?, self.new.summary(system, trial, metric)?));
        BASES.into_iter().find_map(ratio).or_else(absolute)
    }
}

impl Display for Against<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nagainst the run of {} ({})", self.old.began, self.old.machine.commit)?;
        if self.old.machine.processor != self.new.machine.processor {
            writeln!(f, "  another machine: {}", self.old.machine.processor)?;
        }
        for trial in &self.new.trials {
            for metric in self.new.metrics(trial) {
                for system in &self.new.systems {
                    let Some((base, old, new)) = self.pair(&system.name, trial, metric) else { continue };
                    let unit = if base.is_empty() { metric.unit().to_owned() } else { format!("×{base}") };
                    // Nothing and nothing are the same.
                    let change =
                        if old.median.total_cmp(&new.median).is_eq() { 1.0 } else { new.median / old.median }
                            - 1.0;
                    writeln!(
                        f,
                        "  {:<14} {:<20} {:<18} {:>9.3} → {:>9.3} {:<12} {:+6.1} %  {}",
                        trial,
                        metric.label(),
                        system.name,
                        old.median,
                        new.median,
                        unit,
                        change * 100.0,
                        verdict(old, new, metric)
                    )?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(values: [f64; 3]) -> Summary {
        Summary::of(values).unwrap()
    }

    #[test]
    fn a_change_must_leave_the_noise() {
        let steady = summary([0.99, 1.0, 1.01]);
        assert_eq!(verdict(steady, summary([1.19, 1.2, 1.21]), Metric::Throughput), Verdict::Better);
        assert_eq!(verdict(steady, summary([1.19, 1.2, 1.21]), Metric::P99), Verdict::Worse);
        assert_eq!(verdict(steady, summary([0.7, 1.2, 1.7]), Metric::Throughput), Verdict::Same);
        assert_eq!(verdict(steady, summary([1.01, 1.02, 1.03]), Metric::Throughput), Verdict::Same);
    }
}
