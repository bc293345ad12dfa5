//! The trials: each puts one kind of load on a running system and returns figures.

mod bulk;
mod connections;
mod idle;
mod latency;
mod work;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{instrument::Instrument, rig::Rig, systems::Running};

/// One kind of load.
pub(crate) trait Trial {
    /// As `--tests` and all tables have it.
    fn name(&self) -> &str;

    /// The instrument that the edge's program must run under.
    fn instrument(&self) -> Instrument {
        Instrument::None
    }

    /// Whether it gives the same again, so that one round is enough.
    fn is_exact(&self) -> bool {
        self.instrument() != Instrument::None
    }

    /// Puts the load on and measures.
    fn run(&self, rig: &Rig, running: &Running<'_>) -> Result<Vec<Figure>>;
}

/// One measured value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) metric: Metric,
    pub(crate) value: f64,
}

/// The meaning of a value, with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    /// Gbit/s that arrived.
    Throughput,
    /// Processor seconds of the whole machine for 10⁹ bytes.
    MachineCpu,
    /// Connections a second.
    Rate,
    /// Processor microseconds of the whole machine for a connection.
    MachineCpuEach,
    /// The same of the edge's processes alone (ticks of the kernel, so that short runs are coarse).
    EdgeCpuEach,
    /// Connections that failed, of a million.
    Failed,
    /// Microseconds.
    P50,
    /// Microseconds.
    P99,
    /// Microseconds.
    P999,
    /// KiB of resident memory for a connection, without what the idle daemon has.
    Resident,
    /// KiB of kernel slab for a connection, with both ends, which are on the same machine.
    Slab,
    /// Instructions in user space for a connection.
    Instructions,
    /// System calls for a connection.
    Calls,
}

impl Metric {
    /// Its name in tables.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::MachineCpu | Self::MachineCpuEach => "CPU of the machine",
            Self::Rate => "connections",
            Self::EdgeCpuEach => "CPU of the edge",
            Self::Failed => "failed",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Resident => "RSS a connection",
            Self::Slab => "slab a connection",
            Self::Instructions => "instructions a connection",
            Self::Calls => "system calls a connection",
        }
    }

    /// Its unit.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "Gbit/s",
            Self::MachineCpu => "s/GB",
            Self::Rate => "/s",
            Self::MachineCpuEach | Self::EdgeCpuEach | Self::P50 | Self::P99 | Self::P999 => "µs",
            Self::Failed => "ppm",
            Self::Resident | Self::Slab => "KiB",
            Self::Instructions => "in user space",
            Self::Calls => "calls",
        }
    }

    /// Whether more is better.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::Throughput | Self::Rate)
    }
}

/// How long and how much.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Effort {
    /// Of each load, in milliseconds.
    pub(crate) millis: u32,
    /// Idle connections.
    pub(crate) idle: usize,
}

/// The trials of these names; none given: those of a usual run, or of a quick one.
pub(super) fn select(names: &[String], quick: bool, effort: Effort) -> Result<Vec<Box<dyn Trial>>> {
    let known = known(effort);
    if names.is_empty() {
        return Ok(known.into_iter().filter(|trial| !quick || QUICK.contains(&trial.name())).collect());
    }
    let all: Vec<_> = known.iter().map(|trial| trial.name().to_owned()).collect();
    let mut chosen = Vec::new();
    for name in names {
        // A family (`bulk`, `connect`) stands for its members.
        let matches = |trial: &str| {
            trial == name || trial.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('-'))
        };
        all.iter()
            .find(|trial| matches(trial))
            .with_context(|| format!("no test {name}; there are {}", all.join(", ")))?;
        chosen.extend(all.iter().filter(|trial| matches(trial)).cloned());
    }
    Ok(known.into_iter().filter(|trial| chosen.iter().any(|name| name == trial.name())).collect())
}

/// The trials of `--quick`.
const QUICK: [&str; 6] = ["bulk-down-1", "bulk-down-8", "bulk-up-1", "ping", "connect-small", "idle"];

fn known(effort: Effort) -> Vec<Box<dyn Trial>> {
    use crate::job::{
        Direction::{Down, Up},
        HelloSize::{PostQuantum, Small},
    };
    let mut all: Vec<Box<dyn Trial>> = Vec::new();
    for direction in [Down, Up] {
        for streams in [1, 8, 100] {
            all.push(Box::new(bulk::Bulk::new(direction, streams, effort)));
        }
    }
    all.push(Box::new(latency::Ping::alone(effort)));
    all.push(Box::new(latency::Ping::beside_bulk(effort)));
    for hello in [Small, PostQuantum] {
        all.push(Box::new(connections::Connect::new(hello, effort)));
    }
    all.push(Box::new(connections::Handshake::new(effort)));
    all.push(Box::new(idle::Idle::new(effort)));
    all.push(Box::new(work::Work::instructions(effort)));
    all.push(Box::new(work::Work::calls(effort)));
    all
}
