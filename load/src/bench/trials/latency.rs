//! How long a small message and its echo take, with nothing beside it or with bulk.

use crate::job::{Direction, Job};
use anyhow::{Context, Result};

use super::{Effort, Figure, Metric, Trial};
use crate::bench::{rig::Rig, systems::Running};

/// Octets of the message.
const SIZE: usize = 64;
/// Streams of bulk beside it, towards the client.
const BESIDE: usize = 4;
/// Longer than the pings by this much, so that bulk runs until the last one is back; milliseconds.
const MARGIN: u32 = 1000;

pub(super) struct Ping {
    millis: u32,
    beside_bulk: bool,
}

impl Ping {
    pub(super) fn alone(effort: Effort) -> Self {
        Self { millis: effort.millis, beside_bulk: false }
    }

    pub(super) fn beside_bulk(effort: Effort) -> Self {
        Self { millis: effort.millis, beside_bulk: true }
    }
}

impl Trial for Ping {
    fn name(&self) -> &str {
        if self.beside_bulk { "beside-bulk" } else { "ping" }
    }

    fn run(&self, rig: &Rig, running: &Running<'_>) -> Result<Vec<Figure>> {
        let bulk = Job::Bulk { streams: BESIDE, direction: Direction::Down, millis: self.millis + MARGIN };
        let _bulk = self.beside_bulk.then(|| rig.start("bulk", running.orders, &bulk)).transpose()?;
        let report = rig.drive(running.orders, &Job::Ping { size: SIZE, millis: self.millis })?;
        let latency = report.latency.context("not a single round trip")?;
        Ok([(Metric::P50, latency.p50), (Metric::P99, latency.p99), (Metric::P999, latency.p999)]
            .map(|(metric, value)| Figure { metric, value })
            .into())
    }
}
