//! `cargo xtask test`: everything that has to hold before a change lands.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::{
    bench::Bench,
    book,
    build_ebpf::BuildEbpf,
    checks::{
        dependencies,
        documented::{self, Rehearsal},
        emulated, miri,
    },
    command::{cargo, run, watch},
    dist::{self, Dist},
    fuzz::Fuzz,
    run::build,
    setup,
};

/// More failed cases than this are a fault of the program and not of the moment: they are not repeated.
const AGAIN: usize = 5;

#[derive(Args)]
pub(crate) struct Test {
    /// Only the cases of the lab whose name contains this; nothing else is run
    #[arg(value_name = "CASE")]
    case: Option<String>,
}

/// Cases for the static programs of this machine: those that depend on the C library. They cover bytes
/// through each tier, names by DNS, hellos in every cut, and a daemon that drops its rights.
const STATIC: &[&str] =
    &["hellos::", "carrying::copy::bytes", "carrying::splice::bytes", "carrying::flow::bytes", "names::"];
/// Cases for emulated programs, without BPF: the socket tiers.
const EMULATED: &[&str] = &["hellos::", "carrying::copy::bytes", "carrying::splice::bytes"];

/// Tests counted over all runners, and how each step went.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    steps: Vec<Step>,
    /// The output of failed tests, including those that passed when they were repeated.
    said: Vec<String>,
    unsteady: Vec<String>,
}

/// A step that was run.
struct Step {
    name: String,
    took: Duration,
    /// Its error, if it failed.
    error: Option<String>,
}

/// The useful parts of the output of Rust's test runner.
#[derive(Default)]
struct Report {
    passed: u64,
    failed: u64,
    /// Names of the tests that failed.
    names: Vec<String>,
    /// The section `failures:`, without the list of names at its end.
    said: Vec<String>,
    section: Section,
}

/// Where a report is; both parts about failures begin with the same line.
#[derive(Default)]
enum Section {
    #[default]
    Results,
    WhatFailuresSaid,
    NamesOfFailures,
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
            tally.step("licences and sources", dependencies::check);
            tally.step("book", book::build);
            tally.step("Miri", miri::check);
            tally.step_with_registry("BPF objects", || BuildEbpf { check: true }.run());
        }
        // The lab drives the programs as they are shipped.
        let built = tally.step("release build", build);
        if built {
            tally.cases("lab", &Lab::shipped(self.case.as_deref())?);
        }
        if built && self.case.is_none() {
            tally.static_programs()?;
            tally.step("fuzz targets", || Fuzz::briefly().run());
            tally.step("bench of the bench", || Bench::check().run());
            tally.documented()?;
        }
        let failed = tally.close();
        ensure!(failed == 0, "{failed} failed");
        Ok(())
    }
}

/// The lab with the programs that it drives.
struct Lab {
    programs: PathBuf,
    /// Cases whose names contain one of these; none means all.
    cases: Vec<String>,
    /// Deadlines are multiplied by this.
    patience: u32,
}

impl Lab {
    /// With the programs of the release build.
    fn shipped(case: Option<&str>) -> Result<Self> {
        let cases = case.into_iter().map(str::to_owned).collect();
        Ok(Self { programs: setup::target()?.join("release"), cases, patience: 1 })
    }

    /// The cases, as arguments of Rust's test runner choose them.
    fn run(&self, choice: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = cargo();
        command.args(["test", "--locked", "--no-fail-fast", "-p", "edge-tests", "--"]);
        command.args(choice);
        command.env("EDGE_PROGRAMS", &self.programs);
        command.env("EDGE_LAB_PATIENCE", self.patience.to_string());
        // Everything was installed above, so nothing may be missing.
        command.env("EDGE_LAB_STRICT", "1");
        // An error names what went wrong by itself; frames of the test runner would only hide it.
        command.env("RUST_BACKTRACE", "0");
        command
    }
}

impl Tally {
    fn step(&mut self, name: &str, step: impl FnOnce() -> Result<()>) -> bool {
        println!("\n== {name}");
        let started = Instant::now();
        let error = step().err().map(|error| format!("{error:#}"));
        if let Some(error) = &error {
            eprintln!("{name}: {error}");
        }
        let good = error.is_none();
        self.steps.push(Step { name: name.to_owned(), took: started.elapsed(), error });
        good
    }

    /// Runs a step that needs the crates registry once more if it fails. If it then passes, the end of the run
    /// lists it, with what it had failed with.
    fn step_with_registry(&mut self, name: &str, step: impl Fn() -> Result<()>) {
        if self.step(name, &step) {
            return;
        }
        let first = self.steps.pop().and_then(|step| step.error).unwrap_or_default();
        if self.step(name, &step) {
            self.said.push(format!("{name}: {first}"));
            self.unsteady.push(name.to_owned());
        }
    }

    fn tests(&mut self, name: &str, command: &mut Command) {
        let mut report = Report::default();
        self.step(name, || report.of(command));
        self.take(report);
    }

    /// Runs lab cases, and repeats failed ones once, alone: they race with real programs on a machine that
    /// others may use too. A case that then passes is no failure of the run, but the run lists it at its end.
    fn cases(&mut self, name: &str, lab: &Lab) {
        let (mut first, mut second, mut unsteady) = (Report::default(), Report::default(), Vec::new());
        self.step(name, || {
            let outcome =
                first.of(&mut lab.run(lab.cases.iter().map(String::as_str).chain(["--test-threads=2"])));
            if outcome.is_ok() || first.names.is_empty() || first.names.len() > AGAIN {
                return outcome;
            }
            println!("\n== once more, alone: {}", first.names.join(", "));
            let alone = ["--exact", "--test-threads=1"];
            first.failed = 0;
            second.of(&mut lab.run(first.names.iter().map(String::as_str).chain(alone)))?;
            unsteady.append(&mut first.names);
            Ok(())
        });
        self.take(first);
        self.take(second);
        self.unsteady.extend(unsteady);
    }

    /// Makes the files of `cargo xtask dist` for this machine, tries them, and runs the programs in the lab. Programs
    /// for other architectures are built with a faster profile and run in user-mode emulation.
    fn static_programs(&mut self) -> Result<()> {
        let named = |cases: &[&str]| cases.iter().map(|&case| case.to_owned()).collect();
        if self.step("static programs", || Dist::own().run()) {
            for target in dist::TARGETS.iter().filter(|target| dist::is_own(target)) {
                let programs = setup::target()?.join(target).join("release");
                let lab = Lab { programs, cases: named(STATIC), patience: 1 };
                self.cases(&format!("lab, {target}"), &lab);
            }
        }
        for target in dist::TARGETS.iter().filter(|target| !dist::is_own(target)) {
            let mut programs = PathBuf::new();
            let read = || {
                programs = emulated::programs(target)?;
                emulated::read_examples(&programs)
            };
            if self.step(&format!("examples, {target}"), read) {
                let lab = Lab { programs, cases: named(EMULATED), patience: emulated::PATIENCE };
                self.cases(&format!("lab, {target}"), &lab);
            }
        }
        Ok(())
    }

    /// Tries the tasks of the documentation that no other step covers.
    fn documented(&mut self) -> Result<()> {
        for documented in documented::tasks()? {
            let words = &documented.words;
            let has_run = |name: &str| self.steps.iter().any(|step| step.name == name);
            match documented.rehearsal() {
                Rehearsal::Shorter(name, _) if has_run(&name) => {}
                Rehearsal::Shorter(name, task) => {
                    self.step(&name, || task.run());
                }
                Rehearsal::Step(name) if has_run(name) => {}
                Rehearsal::Step(name) => {
                    self.step(words, || bail!("the step {name:?} did not run"));
                }
                Rehearsal::Never(reason) => println!("not tried: cargo xtask {words}: {reason}"),
            }
        }
        Ok(())
    }

    fn take(&mut self, report: Report) {
        self.passed += report.passed;
        self.failed += report.failed;
        self.said.extend(report.said);
    }

    /// Prints how everything went and returns how much failed.
    fn close(self) -> u64 {
        println!();
        for line in &self.said {
            println!("{line}");
        }
        for name in &self.unsteady {
            println!("UNSTEADY {name}: failed at first, passed when run again");
        }
        for Step { name, took, error } in &self.steps {
            println!(
                "{} {name} ({:.0} s)",
                if error.is_none() { "ok    " } else { "FAILED" },
                took.as_secs_f64()
            );
        }
        // Once more, since these lines are the ones that a cut-off output still has.
        for Step { name, error, .. } in &self.steps {
            if let Some(error) = error {
                println!("{name}: {error}");
            }
        }
        let broken = self.steps.iter().filter(|step| step.error.is_some()).count() as u64;
        // A step that failed without a failed test, such as a lint, counts as one.
        let failed = self.failed.max(broken);
        println!("{} passed, {failed} failed", self.passed);
        failed
    }
}

impl Report {
    fn of(&mut self, command: &mut Command) -> Result<()> {
        let ended_well = watch(command, |line| self.look(line))?;
        ensure!(ended_well, "tests failed");
        Ok(())
    }

    fn look(&mut self, line: &str) {
        if let Some((passed, failed)) = counts(line) {
            self.passed += passed;
            self.failed += failed;
            self.section = Section::Results;
            return;
        }
        match self.section {
            Section::Results if line == "failures:" => self.section = Section::WhatFailuresSaid,
            Section::WhatFailuresSaid if line == "failures:" => self.section = Section::NamesOfFailures,
            Section::WhatFailuresSaid if !line.is_empty() => self.said.push(line.to_owned()),
            Section::NamesOfFailures if !line.is_empty() => self.names.push(line.trim().to_owned()),
            _ => {}
        }
    }
}

/// The counts in a closing line of Rust's test runner: `test result: ok. 12 passed; 0 failed; …`.
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

    #[test]
    fn what_failed_is_kept_with_its_words() {
        let mut report = Report::default();
        let printed = "running 2 tests\ntest a::b ... ok\ntest a::c ... FAILED\n\nfailures:\n\n\
                       ---- a::c stdout ----\nError: waited in vain\n\n\nfailures:\n    a::c\n\n\
                       test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        printed.lines().for_each(|line| report.look(line));
        assert_eq!((report.passed, report.failed), (1, 1));
        assert_eq!(report.names, ["a::c"]);
        assert_eq!(report.said, ["---- a::c stdout ----", "Error: waited in vain"]);
    }
}
