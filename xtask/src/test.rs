//! `cargo xtask test`: everything that has to hold before a change lands.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::{
    bench::Bench,
    build_ebpf::BuildEbpf,
    command::{cargo, run, watch},
    run::build,
    setup,
};

#[derive(Args)]
pub(crate) struct Test {
    /// Only the cases of the lab whose name contains this; nothing else is run
    #[arg(value_name = "CASE")]
    case: Option<String>,
}

/// Tests counted over all runners, and how each step went.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    steps: Vec<(&'static str, bool, Duration)>,
}

impl Test {
    pub(crate) fn run(&self) -> Result<()> {
        setup::lab()?;
        let mut tally = Tally::default();
        if self.case.is_none() {
            tally.step("format", || run(cargo().args(["fmt", "--all", "--check"])));
            tally.step("lints", || {
                run(cargo()
                    .args(["clippy", "--workspace", "--exclude", "edge-ebpf", "--all-targets", "--locked"])
                    .args(["--", "-D", "warnings"]))
            });
            let mut units = cargo();
            units.args(["test", "--locked", "--no-fail-fast", "--workspace"]);
            units.args(["--exclude", "edge-ebpf", "--exclude", "edge-tests"]);
            tally.tests("unit tests", &mut units);
            tally.step("BPF objects", || BuildEbpf { check: true }.run());
        }
        // The lab drives the programs as they are shipped.
        let built = tally.step("release build", build);
        if built {
            tally.tests("lab", &mut self.lab()?);
            if self.case.is_none() {
                tally.step("bench of the bench", || Bench::check().run());
            }
        }
        let failed = tally.close();
        ensure!(failed == 0, "{failed} failed");
        Ok(())
    }

    fn lab(&self) -> Result<Command> {
        let mut command = cargo();
        command.args(["test", "--locked", "--no-fail-fast", "-p", "edge-tests", "--"]);
        command.args(self.case.as_deref()).arg("--test-threads=2");
        command.env("EDGE_PROGRAMS", setup::target()?.join("release"));
        // Everything was installed above, so nothing may be missing.
        command.env("EDGE_LAB_STRICT", "1");
        Ok(command)
    }
}

impl Tally {
    fn step(&mut self, name: &'static str, step: impl FnOnce() -> Result<()>) -> bool {
        println!("\n== {name}");
        let started = Instant::now();
        let outcome = step();
        if let Err(error) = &outcome {
            eprintln!("{name}: {error:#}");
        }
        self.steps.push((name, outcome.is_ok(), started.elapsed()));
        outcome.is_ok()
    }

    fn tests(&mut self, name: &'static str, command: &mut Command) {
        let (mut passed, mut failed) = (0, 0);
        self.step(name, || {
            let ended_well = watch(command, |line| {
                if let Some((good, bad)) = counts(line) {
                    passed += good;
                    failed += bad;
                }
            })?;
            if ended_well { Ok(()) } else { bail!("tests failed") }
        });
        self.passed += passed;
        self.failed += failed;
    }

    /// Prints how everything went and returns how much failed.
    fn close(self) -> u64 {
        println!();
        for (name, good, took) in &self.steps {
            println!("{} {name} ({:.0} s)", if *good { "ok    " } else { "FAILED" }, took.as_secs_f64());
        }
        let broken = self.steps.iter().filter(|(_, good, _)| !good).count() as u64;
        // A step that failed without a failed test, such as a lint, counts as one.
        let failed = self.failed.max(broken);
        println!("{} passed, {failed} failed", self.passed);
        failed
    }
}

/// What a closing line of Rust's test runner counts: `test result: ok. 12 passed; 0 failed; …`.
fn counts(line: &str) -> Option<(u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = counts.split("; ");
    let passed = counts.next()?.strip_suffix(" passed")?.parse().ok()?;
    let failed = counts.next()?.strip_suffix(" failed")?.parse().ok()?;
    Some((passed, failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted_and_others_are_not() {
        let line =
            "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1s";
        assert_eq!(counts(line), Some((12, 3)));
        assert_eq!(counts("test a ... ok"), None);
    }
}
