//! `cargo xtask soak`: a compressed day on one edge, with a balance at its end.

use std::{env, time::Duration};

use anyhow::{Result, ensure};
use clap::Args;
use lab::{edged::PROGRAMS, soak};

use crate::{run::build, setup};

/// The length of a day unless told otherwise.
const MINUTES: u64 = 6;
/// Slow clients of a day, however long it is.
const SLOW_CLIENTS: usize = 100_000;

/// The fixed values of a rehearsal.
const REHEARSED: (u64, Duration, usize) = (11, Duration::from_secs(40), 2400);

#[derive(Args, Default)]
pub(crate) struct Soak {
    /// Length of the day
    #[arg(long, value_name = "N", conflicts_with = "minutes")]
    hours: Option<u64>,
    /// Length of the day [default: 6]
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Repeats the run that had this seed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// A short form with a fixed seed, as a run of the tests has it
    #[arg(long, conflicts_with_all = ["hours", "minutes", "seed"])]
    rehearsal: bool,
}

impl Soak {
    /// The short form.
    pub(crate) fn rehearsal() -> Self {
        Self { rehearsal: true, ..Self::default() }
    }

    pub(crate) fn run(&self) -> Result<()> {
        setup::lab()?;
        if env::var_os(PROGRAMS).is_none() {
            build()?;
        }
        let plan = self.plan();
        println!("seed {}: a day of {:.0} s", plan.seed, plan.day.as_secs_f64());
        let report = plan.run(&|line| println!("{line}"))?;
        println!("{report}");
        ensure!(report.is_good(), "the balance is not even, or connections were lost without a cause");
        Ok(())
    }

    fn plan(&self) -> soak::Soak {
        if self.rehearsal {
            let (seed, day, slow_clients) = REHEARSED;
            return soak::Soak { seed, day, slow_clients, hurried: true };
        }
        let minutes = self.hours.map(|hours| hours * 60).or(self.minutes).unwrap_or(MINUTES);
        soak::Soak {
            seed: self.seed.unwrap_or_else(|| u64::from(std::process::id())),
            day: Duration::from_mins(minutes),
            slow_clients: SLOW_CLIENTS,
            hurried: false,
        }
    }
}
