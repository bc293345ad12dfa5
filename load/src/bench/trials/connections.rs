//! How many connections begin and end in a second, and what each costs.

use crate::job::{HelloSize, Job};
use anyhow::Result;

use super::{Effort, Figure, Metric, Trial};
use crate::bench::{
    rig::{Measured, Rig},
    systems::Running,
};

/// Clients at the same time: enough to keep every processor busy.
const CLIENTS: usize = 32;

/// Short connections with nothing but a ClientHello and an answer.
pub(super) struct Connect {
    hello: HelloSize,
    millis: u32,
}

impl Connect {
    pub(super) fn new(hello: HelloSize, effort: Effort) -> Self {
        Self { hello, millis: effort.millis }
    }
}

impl Trial for Connect {
    fn name(&self) -> &str {
        match self.hello {
            HelloSize::Small => "connect-small",
            HelloSize::PostQuantum => "connect-pq",
        }
    }

    fn run(&self, rig: &Rig, running: &Running<'_>) -> Result<Vec<Figure>> {
        let job = Job::Connect { clients: CLIENTS, hello: self.hello, millis: self.millis };
        Ok(figures(&rig.measure(running.orders, &job)?))
    }
}

/// Connections with a whole TLS handshake from end to end.
pub(super) struct Handshake {
    millis: u32,
}

impl Handshake {
    pub(super) fn new(effort: Effort) -> Self {
        Self { millis: effort.millis }
    }
}

impl Trial for Handshake {
    fn name(&self) -> &'static str {
        "handshake"
    }

    fn run(&self, rig: &Rig, running: &Running<'_>) -> Result<Vec<Figure>> {
        let job = Job::Handshake { clients: CLIENTS, authority: rig.authority.clone(), millis: self.millis };
        Ok(figures(&rig.measure(running.handshakes, &job)?))
    }
}

fn figures(measured: &Measured) -> Vec<Figure> {
    let report = &measured.report;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let (count, failed) = (report.count as f64, report.failed as f64);
    let mut figures = vec![
        (Metric::Rate, count / report.seconds),
        (Metric::MachineCpuEach, measured.machine_cpu.as_secs_f64() * 1e6 / count),
        (Metric::Failed, failed * 1e6 / (count + failed)),
    ];
    if !measured.edge_cpu.is_zero() {
        figures.push((Metric::EdgeCpuEach, measured.edge_cpu.as_secs_f64() * 1e6 / count));
    }
    if let Some(latency) = report.latency {
        figures.push((Metric::P99, latency.p99));
    }
    figures.into_iter().map(|(metric, value)| Figure { metric, value }).collect()
}
