//! The cost of idle connections.

use std::time::Duration;

use crate::job::{HELD, Job};
use anyhow::Result;
use lab::wait;

use super::{Effort, Figure, Metric, Trial};
use crate::bench::{
    rig::{Rig, slab},
    systems::Running,
};

/// Client processes, so that none of them meets its limit of descriptors.
const PROCESSES: usize = 4;
/// For all to be open.
const PATIENCE: Duration = Duration::from_mins(1);

pub(super) struct Idle {
    connections: usize,
}

impl Idle {
    pub(super) fn new(effort: Effort) -> Self {
        Self { connections: effort.idle }
    }
}

impl Trial for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn run(&self, rig: &Rig, running: &Running<'_>) -> Result<Vec<Figure>> {
        let (resident, slabs) = (rig.edge_resident(), slab()?);
        let job = Job::Hold { connections: self.connections / PROCESSES };
        let mut clients = (0..PROCESSES)
            .map(|index| {
                let name = format!("hold-{index}");
                // The log of an earlier round says that its connections were open.
                let _ = std::fs::remove_file(rig.lab.directory().join(format!("{name}.log")));
                rig.start(&name, running.orders, &job)
            })
            .collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            wait::until_true("the idle connections", PATIENCE, || {
                client.log().contains(HELD) || matches!(client.ended(), Ok(Some(_)))
            })?;
            anyhow::ensure!(client.log().contains(HELD), "clients failed: {}", client.log().trim());
        }
        #[expect(clippy::cast_precision_loss, reason = "sizes and counts far below 2^52")]
        let each = |before: u64, now: u64| {
            (now as f64 - before as f64) / 1024.0 / (self.connections / PROCESSES * PROCESSES) as f64
        };
        let mut figures = vec![Figure { metric: Metric::Slab, value: each(slabs, slab()?) }];
        if resident > 0 {
            let value = each(resident, rig.edge_resident());
            figures.push(Figure { metric: Metric::Resident, value });
        }
        Ok(figures)
    }
}
