//! As much as goes through.

use crate::job::{Direction, Job};
use anyhow::Result;

use super::{Effort, Figure, Metric, Trial};
use crate::bench::{rig::Rig, systems::Running};

pub(super) struct Bulk {
    name: String,
    job: Job,
}

impl Bulk {
    pub(super) fn new(direction: Direction, streams: usize, effort: Effort) -> Self {
        let way = match direction {
            Direction::Down => "down",
            Direction::Up => "up",
        };
        Self {
            name: format!("bulk-{way}-{streams}"),
            job: Job::Bulk { streams, direction, millis: effort.millis },
        }
    }
}

impl Trial for Bulk {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&self, rig: &Rig, running: &Running<'_>) -> Result<Vec<Figure>> {
        let measured = rig.measure(running.orders, &self.job)?;
        #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
        let bytes = measured.report.bytes as f64;
        let figure = |metric, value| Figure { metric, value };
        Ok(vec![
            figure(Metric::Throughput, bytes * 8e-9 / measured.report.seconds),
            figure(Metric::MachineCpu, measured.machine_cpu.as_secs_f64() / (bytes * 1e-9)),
        ])
    }
}
