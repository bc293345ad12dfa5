//! `cargo xtask bench`: the command line of the bench in `load/`, which measures and reports.

use std::{
    env, fs,
    io::{Write, stdout},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use load::bench::{self, Against, PACKAGES, Plan, Run, Table, say};

use crate::setup;

/// Measures edged beside the kernel and its rivals.
#[derive(Args, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub(crate) struct Bench {
    /// Only these systems (comma-separated); `path:/usr/…/haproxy` is another build of haproxy, nginx, sniproxy or
    /// edged, known by its file name
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Only these tests (comma-separated); a family (`bulk`, `connect`, `work`) stands for its members
    #[arg(long, value_delimiter = ',')]
    tests: Vec<String>,
    /// How often everything is measured [default: 5, with --quick 1]
    #[arg(long)]
    rounds: Option<usize>,
    /// Give both ends one half of the processors and the edge the other
    #[arg(long)]
    pin: bool,
    /// Short and few tests: a first look in less than three minutes
    #[arg(long)]
    quick: bool,
    /// Compare with a saved run
    #[arg(long, value_name = "JSON")]
    against: Option<PathBuf>,
    /// Test the bench itself: edged, deliberately slowed, has to come out as slower
    #[arg(long, conflicts_with_all = ["systems", "tests", "rounds", "pin", "quick", "against", "docs"])]
    check: bool,
    /// Write docs/benchmarks.md and its samples from this run, or from the one of --from
    #[arg(long)]
    docs: bool,
    /// Measure nothing: show a saved run
    #[arg(long, value_name = "JSON", conflicts_with_all = ["systems", "tests", "rounds", "pin", "quick", "check"])]
    from: Option<PathBuf>,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        // Read first: a wrong path should not be found out after an hour.
        let old = self.against.as_deref().map(Run::load).transpose()?;
        let run = match &self.from {
            Some(path) => Run::load(path)?,
            None => self.measure_and_save()?,
        };
        write!(stdout(), "{}", Table(&run))?;
        if let Some(old) = &old {
            write!(stdout(), "{}", Against { old, new: &run })?;
        }
        if self.docs {
            bench::write_page(&setup::root()?.join("docs/benchmarks.md"), &run)?;
        }
        if self.check { bench::judge(&run) } else { Ok(()) }
    }

    /// `--check`, for the run of all tests.
    pub(crate) fn check() -> Self {
        Self { check: true, ..Self::default() }
    }

    /// Whether this is [`Bench::check`].
    pub(crate) fn is_check(&self) -> bool {
        self.check
    }

    /// What a run of the tests does in place of this: the same options with little to measure. Figures of so short a
    /// run say nothing; that the command does its work is what is tried.
    pub(crate) fn rehearsal(&self) -> Self {
        let tests = if self.tests.is_empty() { vec!["ping".to_owned()] } else { self.tests.clone() };
        Self {
            systems: vec!["edged-copy".to_owned()],
            tests,
            rounds: Some(1),
            quick: true,
            against: self.against.clone(),
            ..Self::default()
        }
    }

    fn measure_and_save(&self) -> Result<Run> {
        install();
        build()?;
        let run = self.plan().measure()?;
        let stem = setup::target()?.join("bench").join(run.began.replace(':', ""));
        let (json, html) = (stem.with_extension("json"), stem.with_extension("html"));
        run.save(&json)?;
        fs::write(&html, bench::html(&run)?).with_context(|| format!("writing {}", html.display()))?;
        say(&format!("saved as {}\nplots in {}", json.display(), html.display()));
        Ok(run)
    }

    fn plan(&self) -> Plan {
        Plan {
            systems: self.systems.clone(),
            tests: self.tests.clone(),
            rounds: self.rounds,
            pin: self.pin,
            quick: self.quick,
            check: self.check,
        }
    }
}

/// Builds what is measured and what measures, in release mode.
fn build() -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // One after the other: together, cargo would unite the features of their dependencies, and the daemon that
    // is measured would not be the one that is shipped.
    for package in ["edge-userspace", "edge-load"] {
        let status = Command::new(&cargo)
            .args(["build", "--release", "--bins", "--package", package])
            .status()
            .context("running cargo")?;
        ensure!(status.success(), "the release build of {package} failed");
    }
    Ok(())
}

/// The systems measured beside edged, and the instruments. A run leaves out those that are not to be had, and says so.
fn install() {
    if let Err(error) = setup::packages(&PACKAGES) {
        say(&format!("not everything could be installed: {error:#}"));
    }
}
