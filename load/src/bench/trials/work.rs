//! The work of the edge's program for one short connection, counted: instructions in user space, and system
//! calls.
//!
//! One client at a time, so that each connection finds the same edge. The same work then gives the same
//! number, whether the machine is busy or not.

use crate::job::{HelloSize, Job};
use anyhow::{Result, ensure};

use super::{Effort, Figure, Metric, Trial};
use crate::bench::{instrument::Instrument, rig::Rig, systems::Running};

/// Until what is made once is there, caches and pools among it; milliseconds.
const WARM_UP: u32 = 500;

pub(super) struct Work {
    name: &'static str,
    instrument: Instrument,
    metric: Metric,
    millis: u32,
}

impl Work {
    pub(super) fn instructions(effort: Effort) -> Self {
        let instrument = Instrument::Callgrind;
        Self { name: "work-instructions", instrument, metric: Metric::Instructions, millis: effort.millis }
    }

    pub(super) fn calls(effort: Effort) -> Self {
        Self {
            name: "work-calls",
            instrument: Instrument::Calls,
            metric: Metric::Calls,
            millis: effort.millis,
        }
    }
}

impl Trial for Work {
    fn name(&self) -> &str {
        self.name
    }

    fn instrument(&self) -> Instrument {
        self.instrument
    }

    fn run(&self, rig: &Rig, running: &Running<'_>) -> Result<Vec<Figure>> {
        // The kernel alone is no program, and one that is slowed runs under something else already.
        if !running.is_a_program() || !rig.is_under(self.instrument) {
            return Ok(Vec::new());
        }
        let job = |millis| Job::Connect { clients: 1, hello: HelloSize::Small, millis };
        rig.drive(running.orders, &job(WARM_UP))?;
        let before = rig.edge_work()?;
        let report = rig.drive(running.orders, &job(self.millis))?;
        let after = rig.edge_work()?;
        ensure!(report.failed == 0, "{} connections failed", report.failed);
        // Valgrind counts from the last question on.
        let done = if self.instrument == Instrument::Callgrind { after } else { after - before };
        // The client's first connection, which shows that the edge serves, is not among those that it
        // reports.
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let value = done as f64 / (report.count + 1) as f64;
        Ok(vec![Figure { metric: self.metric, value }])
    }
}
