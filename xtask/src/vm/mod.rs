//! `cargo xtask vm`: tests the data path on the kernels of Debian's releases, in virtual machines.
//!
//! A guest boots the kernel with this machine's files, below a layer in memory for writes; nothing is
//! installed or changed here. It is emulated, so it runs on any processor but is slow. It is suited for right
//! and wrong, and for figures that the network line determines and not the processor.

mod emulator;
mod guest;
mod kernel;
mod machine;
mod outcome;
mod suite;
mod system;

use std::{
    fs::{self, File},
    io::Write,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::{
    emulator::Emulator,
    kernel::{Kernel, RELEASES, Release},
    machine::{Ended, Machine},
    outcome::{Outcome, Said, table},
    suite::{Suite, Wanted},
};
use crate::{run::build, setup};

/// Packages that it needs besides the lab's.
const PACKAGES: &[&str] = &["busybox-static", "kmod", "xz-utils"];

/// How much of what the kernel said is shown of a machine that failed.
const LAST_LINES: usize = 20;

#[derive(Args, Default)]
pub(crate) struct Vm {
    /// Only this kernel; may be given several times
    #[arg(long, value_name = "VERSION", value_parser = release)]
    kernel: Vec<Release>,
    /// Only what says within minutes whether every tier carries
    #[arg(long, conflicts_with_all = ["tests", "figures"])]
    quick: bool,
    /// Only the tests whose name contains this
    #[arg(long, value_name = "PART", conflicts_with = "figures")]
    tests: Option<String>,
    /// Measure what a lossy line costs each tier, instead of testing
    #[arg(long)]
    figures: bool,
    /// Try whole machines instead, systemd and all: install by the README, reload, kill, reboot, upgrade
    #[arg(long, conflicts_with_all = ["kernel", "quick", "tests", "figures"])]
    system: bool,
    /// With --system: only this release of Debian; may be given several times
    #[arg(long, value_name = "NUMBER", requires = "system", value_parser = system::known)]
    debian: Vec<system::Debian>,
    /// With --system: the machine's processor
    #[arg(long, requires = "system", value_enum, default_value_t)]
    architecture: system::Architecture,
    /// With --system: only the checks whose name contains this, and what they need; may be given several times
    #[arg(long, value_name = "PART", requires = "system")]
    check: Vec<String>,
    /// With --system: this archive of the task dist, in place of one made now
    #[arg(long, value_name = "ARCHIVE", requires = "system")]
    archive: Option<PathBuf>,
    /// With --system: an archive of an earlier version for the upgrade, in place of the last with another layout of maps
    #[arg(long, value_name = "ARCHIVE", requires = "system")]
    before: Option<PathBuf>,
    /// Minutes that each machine may take
    #[arg(long, value_name = "MINUTES", default_value_t = 45)]
    limit: u64,
}

fn release(name: &str) -> Result<Release, String> {
    let found = RELEASES.iter().find(|release| release.name == name).copied();
    let known = || RELEASES.iter().map(|release| release.name).collect::<Vec<_>>().join(" or ");
    found.ok_or_else(|| format!("{} can be had", known()))
}

impl Vm {
    pub(crate) fn run(&self) -> Result<()> {
        if self.system {
            let plan = system::Plan {
                releases: &self.debian,
                architecture: self.architecture,
                parts: &self.check,
                archive: self.archive.as_deref(),
                before: self.before.as_deref(),
            };
            return plan.run();
        }
        ensure!(cfg!(target_arch = "x86_64"), "the machines are x86-64 and run the programs of this one");
        setup::lab()?;
        setup::packages(PACKAGES)?;
        let emulator = Emulator::provide(system::Architecture::X86_64)?;
        let wanted = self.wanted();
        build()?;
        let suites = Suite::build(&wanted)?;
        let releases = if self.kernel.is_empty() { RELEASES } else { &self.kernel };
        let mut rows = Vec::new();
        let mut complaints = Vec::new();
        for &release in releases {
            let started = Instant::now();
            let outcome = self.boot(&emulator, release, &suites, &wanted)?;
            let took = started.elapsed().as_secs();
            match outcome.complaint(suites.len()) {
                None => println!("{}: all passed ({took} s)", release.name),
                Some(complaint) => {
                    println!("{}: {complaint} ({took} s)", release.name);
                    complaints.push(release.name);
                }
            }
            rows.push((release.name, outcome));
        }
        println!("\n{}\n", table(rows.iter().map(|(name, outcome)| (*name, outcome))));
        let (passed, failed) = rows
            .iter()
            .map(|(_, outcome)| outcome.total())
            .fold((0, 0), |sum, total| (sum.0 + total.0, sum.1 + total.1));
        println!("{passed} passed, {failed} failed");
        ensure!(complaints.is_empty(), "not sound on {}", complaints.join(" and "));
        Ok(())
    }

    /// Whether whole machines are wanted.
    pub(crate) fn is_system(&self) -> bool {
        self.system
    }

    /// The task as a run of the tests performs it, without any machine: the quick tests on the oldest kernel.
    pub(crate) fn rehearsal() -> Self {
        Self { kernel: RELEASES[..1].to_vec(), quick: true, limit: 20, ..Self::default() }
    }

    fn wanted(&self) -> Wanted {
        match &self.tests {
            Some(part) => Wanted::Matching(part.clone()),
            None if self.figures => Wanted::Figures,
            None if self.quick => Wanted::Quick,
            None => Wanted::All,
        }
    }

    fn boot(
        &self,
        emulator: &Emulator,
        release: Release,
        suites: &[Suite],
        wanted: &Wanted,
    ) -> Result<Outcome> {
        let target = setup::target()?;
        let kernel = Kernel::provide(release, &target.join("vm"))?;
        let script = kernel.folder.join("tests.sh");
        fs::write(&script, guest::script(&kernel, suites, wanted, &target.join("release")))?;
        let initramfs = kernel.initramfs(&guest::init(&script))?;
        let [console, log] = ["console.log", "tests.log"].map(|name| kernel.folder.join(name));
        println!("\n== Linux {} (console: {})", release.name, console.display());
        let mut log = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let limit = Duration::from_secs(self.limit * 60);
        let started = Instant::now();
        let machine = Machine::boot(emulator, &kernel, &initramfs, &console, limit)?;
        let mut outcome = Outcome::default();
        let ended = loop {
            let line = match machine.line() {
                Ok(line) => line,
                Err(ended) => break ended,
            };
            writeln!(log, "{line}")?;
            let clock = format!("{:<6}{:>5} s", release.name, started.elapsed().as_secs());
            match outcome.read(&line) {
                Said::Test(name, good) => {
                    println!("{clock}  {} {name}", if good { "ok    " } else { "FAILED" });
                }
                Said::Text(text) => println!("{clock}  {text}"),
                Said::Nothing => {}
            }
        };
        drop(machine);
        if ended == Ended::Late {
            println!("{}: its {} minutes are over", release.name, self.limit);
        }
        if outcome.complaint(suites.len()).is_some() {
            let said = fs::read(&console).unwrap_or_default();
            let said = String::from_utf8_lossy(&said);
            let lines: Vec<_> = said.lines().collect();
            println!("the last that its kernel said:");
            for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
                println!("  {line}");
            }
        }
        Ok(outcome)
    }
}
