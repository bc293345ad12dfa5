//! The report at the end of a run.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::{
    balance::Balance,
    crowd::Crowd,
    ledger::{Cause, Stage, Verdict},
    schedule::Event,
};

/// Losses without a cause that are shown one by one; the others are counted.
const SHOWN: usize = 40;

/// The outcome of a run.
#[derive(Debug)]
pub struct Report {
    /// With which the run can be repeated.
    pub seed: u64,
    /// How long the day took.
    pub took: Duration,
    /// How often each event happened.
    pub events: BTreeMap<Event, usize>,
    /// Parts that the machine does not allow, and why.
    pub skipped: Vec<String>,
    /// Connections that ended as their clients wanted, by what these did.
    pub served: BTreeMap<&'static str, u64>,
    /// Slow clients.
    pub crowd: Crowd,
    /// Lost connections.
    pub lost: Vec<Verdict>,
    /// Events whose own checks failed, and bytes that came otherwise at home.
    pub faults: Vec<String>,
    /// Before and after.
    pub balance: Balance,
    /// Connections that were still there at the end, and the sockets.
    pub left: Vec<String>,
}

impl Report {
    /// Whether the edge did all that it has to.
    pub fn is_good(&self) -> bool {
        self.balance.is_even()
            && self.faults.is_empty()
            && self.crowd.stuck == 0
            && self.unexplained().next().is_none()
    }

    /// Connections that were lost without a cause.
    pub fn unexplained(&self) -> impl Iterator<Item = &Verdict> {
        self.lost.iter().filter(|verdict| verdict.cause.is_none())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "\nseed {}, a day of {:.0} s", self.seed, self.took.as_secs_f64())?;
        let events: Vec<_> = self.events.iter().map(|(event, times)| format!("{times} × {event}")).collect();
        writeln!(out, "events: {}", events.join(", "))?;
        for skipped in &self.skipped {
            writeln!(out, "not done: {skipped}")?;
        }
        let served: Vec<_> = self.served.iter().map(|(doing, times)| format!("{times} × {doing}")).collect();
        writeln!(out, "served: {}", served.join(", "))?;
        let Crowd { came, cut, stuck } = self.crowd;
        writeln!(out, "slow clients: {came} came, {cut} were cut off by the edge, {stuck} were stuck")?;
        // How many, and how many of them had been carried already.
        let mut causes: BTreeMap<Cause, (usize, usize)> = BTreeMap::new();
        for verdict in &self.lost {
            if let Some(cause) = verdict.cause {
                let (all, live) = causes.entry(cause).or_default();
                *all += 1;
                *live += usize::from(verdict.loss.stage == Stage::Carried);
            }
        }
        let causes: Vec<_> =
            causes.iter().map(|(cause, (all, live))| format!("{all} × {cause} ({live} live)")).collect();
        let list = if causes.is_empty() { "none".to_owned() } else { causes.join(", ") };
        writeln!(out, "lost with a cause: {list}")?;
        let without = self.unexplained().count();
        writeln!(out, "lost without a cause: {without}")?;
        for verdict in self.unexplained().take(SHOWN) {
            writeln!(out, "  {verdict}")?;
        }
        if without > SHOWN {
            writeln!(out, "  and {} more", without - SHOWN)?;
        }
        for fault in &self.faults {
            writeln!(out, "FAULT  {fault}")?;
        }
        writeln!(out, "\n{:24} {:>12} {:>12} {:>12}", "balance", "before", "after", "tolerance")?;
        for line in &self.balance.lines {
            let (before, after, tolerance) = line.shown();
            let after = after.map_or("–".to_owned(), |after| after.to_string());
            let verdict = if line.is_even() { "" } else { "  NOT EVEN" };
            writeln!(out, "{:24} {before:>12} {after:>12} {tolerance:>12}{verdict}", line.item.name())?;
        }
        for pin in &self.balance.pins {
            writeln!(out, "pin {pin}  NOT EVEN")?;
        }
        for left in &self.left {
            writeln!(out, "left  {left}")?;
        }
        Ok(())
    }
}
