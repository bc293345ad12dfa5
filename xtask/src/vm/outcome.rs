//! The results of the tests inside a machine, and the table of all machines.

use std::collections::BTreeMap;

use super::{
    guest::{BEGIN, END},
    suite::Tier,
};

/// How the tests on one kernel went so far.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    tiers: BTreeMap<Tier, Counts>,
    suite: Option<String>,
    /// Suites whose runner has closed.
    closed: usize,
    has_ended: bool,
    failed: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    passed: usize,
    failed: usize,
}

/// The meaning of a line of test output for a reader.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said<'a> {
    /// A test went well, or not.
    Test(&'a str, bool),
    /// Anything that the tests print.
    Text(&'a str),
    /// Nothing worth showing.
    Nothing,
}

impl Outcome {
    /// Takes in a line.
    pub(super) fn read<'a>(&mut self, line: &'a str) -> Said<'a> {
        if let Some(suite) = line.strip_prefix(BEGIN) {
            self.suite = Some(suite.to_owned());
            return Said::Text(line);
        }
        if line == END {
            self.has_ended = true;
            return Said::Nothing;
        }
        if line.starts_with("test result: ") {
            self.closed += 1;
            return Said::Text(line);
        }
        let test = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
        match test {
            Some((name, "ok")) => {
                self.counts(name).passed += 1;
                Said::Test(name, true)
            }
            Some((name, "FAILED")) => {
                self.counts(name).failed += 1;
                self.failed.push(name.to_owned());
                Said::Test(name, false)
            }
            Some(_) => Said::Nothing,
            None if line.is_empty() || line.starts_with("running ") => Said::Nothing,
            // A minute is nothing here.
            None if line.ends_with("has been running for over 60 seconds") => Said::Nothing,
            None => Said::Text(line),
        }
    }

    fn counts(&mut self, test: &str) -> &mut Counts {
        let tier = Tier::of(self.suite.as_deref().unwrap_or_default(), test);
        self.tiers.entry(tier).or_default()
    }

    /// Why it is no success; nothing where it is one.
    pub(super) fn complaint(&self, suites: usize) -> Option<String> {
        if !self.failed.is_empty() {
            return Some(format!("{} failed: {}", self.failed.len(), self.failed.join(", ")));
        }
        if !self.has_ended || self.closed < suites {
            let suite = self.suite.as_deref().unwrap_or("the first suite");
            return Some(format!("it ended in the middle of {suite}"));
        }
        self.tiers.is_empty().then(|| "no test ran".to_owned())
    }

    /// Tests that passed, and that failed.
    pub(super) fn total(&self) -> (usize, usize) {
        let sum = |count: fn(&Counts) -> usize| self.tiers.values().map(count).sum();
        (sum(|counts| counts.passed), sum(|counts| counts.failed))
    }

    fn cell(&self, tier: Tier) -> String {
        match self.tiers.get(&tier) {
            None => "-".to_owned(),
            Some(Counts { passed, failed: 0 }) => format!("{passed} passed"),
            Some(Counts { passed, failed }) => format!("{failed} of {} FAILED", passed + failed),
        }
    }
}

/// Kernel by tier.
pub(super) fn table<'a>(rows: impl Iterator<Item = (&'a str, &'a Outcome)>) -> String {
    const WIDTH: usize = 18;
    let mut text = format!("{:<8}", "kernel");
    text.extend(Tier::ALL.map(|tier| format!("{:<WIDTH$}", tier.name())));
    for (kernel, outcome) in rows {
        text = format!("{}\n{kernel:<8}", text.trim_end());
        text.extend(Tier::ALL.map(|tier| format!("{:<WIDTH$}", outcome.cell(tier))));
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        for line in lines {
            outcome.read(line);
        }
        outcome
    }

    #[test]
    fn a_run_is_a_success_only_when_it_came_to_its_end() {
        let whole = ["== suite cases", "test flow::a ... ok", "test result: ok. 1 passed", "== end"];
        assert_eq!(outcome(&whole).complaint(1), None);
        assert_eq!(outcome(&whole).total(), (1, 0));
        assert!(outcome(&whole[..3]).complaint(1).unwrap().contains("middle of cases"));
        assert!(outcome(&whole).complaint(2).is_some(), "a suite whose runner did not close");
        assert!(outcome(&["== suite cases", "test result: ok. 0 passed", "== end"]).complaint(1).is_some());
    }

    #[test]
    fn a_failure_is_named_and_shown_with_its_tier() {
        let outcome = outcome(&["== suite cases", "test netem::copy::a ... FAILED", "test flow::b ... ok"]);
        assert_eq!(outcome.complaint(1).unwrap(), "1 failed: netem::copy::a");
        let table = table([("6.1", &outcome)].into_iter());
        let row: Vec<_> = table.lines().nth(1).unwrap().split("  ").filter(|cell| !cell.is_empty()).collect();
        assert_eq!(row[..2], ["6.1", " 1 of 1 FAILED"].map(|cell| cell), "{table}");
    }
}
