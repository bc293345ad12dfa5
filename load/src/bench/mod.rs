//! `cargo xtask bench`: measures ratios side by side in one run; this project claims nothing else.
//!
//! Every round runs every test on every system, so that the compared runs are close in time. A system is
//! started afresh for each test: no state of the previous one counts, and no system's packet filter affects
//! another.

mod against;
mod check;
mod instrument;
mod machine;
mod page;
mod record;
mod report;
mod rig;
mod summary;
mod systems;
mod table;
mod trials;

use std::{
    env,
    io::{Write, stderr},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use self::{
    against::Against, check::judge, page::write as write_page, record::Run, report::html, table::Table,
};
use self::{
    machine::{Machine, said},
    record::{Failure, Sample, Subject},
    rig::Rig,
    systems::System,
    trials::{Effort, Trial},
};

/// Debian's packages of the systems and the instruments.
pub const PACKAGES: [&str; 7] =
    ["haproxy", "libnginx-mod-stream", "nftables", "nginx", "sniproxy", "strace", "valgrind"];
/// Connections of the idle test, where the limit of descriptors allows.
const IDLE: usize = 10_000;
/// Descriptors that a proxy needs beside two for each connection.
const RESERVED: u64 = 400;

/// The measurements, and how often each is made.
#[derive(Debug)]
pub struct Plan {
    /// Only these systems; all where there is none.
    pub systems: Vec<String>,
    /// Only these tests or families of tests; all where there is none.
    pub tests: Vec<String>,
    /// How often everything is measured, where it is not the usual number.
    pub rounds: Option<usize>,
    /// Gives both ends one half of the processors and the edge the other.
    pub pin: bool,
    /// Short and few tests.
    pub quick: bool,
    /// The bench's own test, see [`judge`]: it measures its own systems and tests.
    pub check: bool,
}

/// Systems, tests, rounds and how much of each.
type Choice = (Vec<Box<dyn System>>, Vec<Box<dyn Trial>>, usize, Effort);

impl Plan {
    fn choose(&self) -> Result<Choice> {
        if self.check {
            let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
            let systems = systems::select(&names(&check::SYSTEMS))?;
            let trials = trials::select(&names(&check::TRIALS), false, check::EFFORT)?;
            return Ok((systems, trials, check::ROUNDS, check::EFFORT));
        }
        let effort = Effort {
            millis: if self.quick { 700 } else { 3000 },
            idle: if self.quick { 2000 } else { idle_connections() },
        };
        let rounds = self.rounds.unwrap_or(if self.quick { 1 } else { 5 });
        Ok((
            systems::select(&self.systems)?,
            trials::select(&self.tests, self.quick, effort)?,
            rounds,
            effort,
        ))
    }

    /// Measures. The programs have to be built in release mode before.
    pub fn measure(&self) -> Result<Run> {
        raise_descriptor_limit();
        let (systems, trials, rounds, effort) = self.choose()?;
        let machine = Machine::look();
        let rig = Rig::new(self.pin)?;
        let mut skipped = Vec::new();
        let mut is_there = |name: &str, missing: Option<String>| {
            let Some(reason) = missing else { return true };
            say(&format!("{name} is left out: {reason}"));
            skipped.push((name.to_owned(), reason));
            false
        };
        let systems: Vec<_> =
            systems.into_iter().filter(|system| is_there(system.name(), system.missing(&rig))).collect();
        let trials: Vec<_> = trials
            .into_iter()
            .filter(|trial| {
                let program = trial.instrument().program();
                is_there(
                    trial.name(),
                    program.and_then(|(program, package)| systems::debian(program, package)),
                )
            })
            .collect();
        ensure!(!systems.is_empty() && !trials.is_empty(), "nothing to measure");
        let mut run = Run {
            began: said(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])),
            command: env::args().skip(1).collect::<Vec<_>>().join(" "),
            machine,
            rounds,
            effort,
            systems: systems.iter().map(|system| subject(&**system, &rig)).collect(),
            skipped,
            trials: trials.iter().map(|trial| trial.name().to_owned()).collect(),
            samples: Vec::new(),
            failures: Vec::new(),
        };
        let once = trials.iter().filter(|trial| trial.is_exact()).count();
        let mut progress = Progress::new((rounds * (trials.len() - once) + once.min(rounds)) * systems.len());
        for round in 1..=rounds {
            for trial in &trials {
                if round > 1 && trial.is_exact() {
                    continue;
                }
                for system in &systems {
                    let what = format!("round {round}: {} {}", trial.name(), system.name());
                    let outcome = one(&**system, &**trial, &rig);
                    progress.step(&what, outcome.as_deref());
                    run.note(round, &**system, &**trial, outcome);
                }
            }
        }
        Ok(run)
    }
}

fn one(system: &dyn System, trial: &dyn Trial, rig: &Rig) -> Result<Vec<trials::Figure>> {
    rig.put_under(trial.instrument());
    let running = system.start(rig)?;
    trial.run(rig, &running)
}

impl Run {
    fn note(
        &mut self,
        round: usize,
        system: &dyn System,
        trial: &dyn Trial,
        outcome: Result<Vec<trials::Figure>>,
    ) {
        let (system, trial) = (system.name().to_owned(), trial.name().to_owned());
        match outcome {
            Ok(figures) => self.samples.extend(figures.into_iter().map(|figure| Sample {
                round,
                system: system.clone(),
                trial: trial.clone(),
                metric: figure.metric,
                value: figure.value,
            })),
            Err(error) => self.failures.push(Failure { round, system, trial, reason: format!("{error:#}") }),
        }
    }
}

fn subject(system: &dyn System, rig: &Rig) -> Subject {
    Subject {
        name: system.name().to_owned(),
        about: system.about(),
        version: system.version(),
        configuration: system.configuration(rig),
    }
}

/// One line for each measurement, and how long the rest will take.
struct Progress {
    started: Instant,
    done: u32,
    all: usize,
}

impl Progress {
    fn new(all: usize) -> Self {
        Self { started: Instant::now(), done: 0, all }
    }

    fn step(&mut self, what: &str, outcome: Result<&[trials::Figure], &anyhow::Error>) {
        self.done += 1;
        let left = u32::try_from(self.all).unwrap_or(u32::MAX).saturating_sub(self.done);
        let rest = self.started.elapsed() / self.done * left;
        let result = match outcome {
            Ok(figures) => figures
                .iter()
                .map(|figure| {
                    format!(
                        "{} {} {}",
                        figure.metric.label(),
                        table::Digits(figure.value),
                        figure.metric.unit()
                    )
                })
                .collect::<Vec<_>>()
                .join(", "),
            Err(error) => format!("FAILED: {error:#}"),
        };
        say(&format!("[{}/{}, {} left] {what}: {result}", self.done, self.all, minutes(rest)));
    }
}

fn minutes(time: Duration) -> String {
    format!("{}:{:02}", time.as_secs() / 60, time.as_secs() % 60)
}

/// Tells the one who waits.
pub fn say(line: &str) {
    // A terminal that is gone is no reason to stop measuring.
    let _ = writeln!(stderr(), "{line}");
}

/// Children inherit it: proxies that do not raise their limit themselves would end early.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// As many as asked for, or what a proxy with two descriptors for each can have.
fn idle_connections() -> usize {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(RESERVED) / 2;
    IDLE.min(usize::try_from(most).unwrap_or(IDLE))
}
