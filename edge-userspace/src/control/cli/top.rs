//! `edgectl top`: the summary and the busiest connections, again and again. On a terminal a screen with keys; elsewhere
//! lines, or the status as JSON.

mod screen;
mod terminal;

use std::{collections::HashMap, time::Duration};

use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Client, Failure, Output, lists, status,
    style::{self, Colour},
    table::{Cell, Column, Table},
    units,
};
use crate::control::api::{Backend, Connection, Status};

/// Shows samples until interrupted, or `count` of them. As JSON: the status, one line a sample.
pub(super) async fn run(
    daemon: &Client,
    output: Output,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    if output.terminal && !output.json {
        return terminal::run(daemon, output, interval, count).await;
    }
    tokio::select! {
        result = print(daemon, output, interval, count) => result,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::from),
    }
}

async fn print(
    daemon: &Client,
    output: Output,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    let mut samples = 0;
    while count.is_none_or(|count| samples < count) {
        ticks.tick().await;
        samples += 1;
        if output.json {
            style::write(daemon.get("/v1/status").await?.json())?;
            continue;
        }
        let now = Sample::take(daemon).await?;
        style::write_lines(lines(before.as_ref(), &now, output))?;
        before = Some(now);
    }
    Ok(())
}

/// The daemon at one moment.
struct Sample {
    time: Instant,
    status: Status,
    connections: Vec<Connection>,
    /// Where any is down.
    backends: Vec<Backend>,
}

impl Sample {
    async fn take(daemon: &Client) -> Result<Self, Failure> {
        let status: Status = daemon.get("/v1/status").await?.read()?;
        let connections = daemon.get("/v1/connections").await?.read()?;
        let backends = match status.backends.down {
            0 => Vec::new(),
            _ => daemon.get("/v1/backends").await?.read()?,
        };
        Ok(Self { time: Instant::now(), status, connections, backends })
    }
}

/// Up and down, in bytes a second.
type Rate = (f64, f64);

/// Bytes or events a second; 0 for no time.
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate that is shown with four digits")]
    let difference = now.saturating_sub(before) as f64;
    if seconds > 0.0 { difference / seconds } else { 0.0 }
}

/// The connections with what they carried since the sample before.
fn rates<'a>(before: Option<&Sample>, now: &'a Sample) -> Vec<(&'a Connection, Rate)> {
    let seconds = before.map_or(0.0, |before| (now.time - before.time).as_secs_f64());
    let known: HashMap<u64, &Connection> =
        before.iter().flat_map(|before| &before.connections).map(|old| (old.id, old)).collect();
    let rated = now.connections.iter().map(|connection| {
        let rates = known.get(&connection.id).map_or((0.0, 0.0), |old| {
            let up = rate(old.bytes_up, connection.bytes_up, seconds);
            (up, rate(old.bytes_down, connection.bytes_down, seconds))
        });
        (connection, rates)
    });
    rated.collect()
}

fn lines(before: Option<&Sample>, now: &Sample, output: Output) -> Vec<String> {
    let mut lines = status::problems(&now.status, &now.backends, output);
    lines.extend(status::summary(&now.status, output));
    if let Some(before) = before {
        let seconds = (now.time - before.time).as_secs_f64();
        lines.push(format!(
            "{} {:.1} connections/s, {} up, {} down",
            output.paint("rates         ", Colour::Dim),
            rate(before.status.connections.total, now.status.connections.total, seconds),
            units::bit_rate(rate(before.status.bytes_up, now.status.bytes_up, seconds)),
            units::bit_rate(rate(before.status.bytes_down, now.status.bytes_down, seconds)),
        ));
    }
    let mut rows = rates(before, now);
    rows.sort_by(|(a, (a_up, a_down)), (b, (b_up, b_down))| {
        (b_up + b_down).total_cmp(&(a_up + a_down)).then(b.id.cmp(&a.id))
    });
    lines.push(String::new());
    lines.extend(busiest(&rows).lines(output.colours, None));
    lines
}

fn busiest(rows: &[(&Connection, Rate)]) -> Table {
    let mut table = Table::new([
        Column::number("ID"),
        Column::text("CLIENT"),
        Column::text("HOST"),
        Column::text("BACKEND"),
        Column::text("DATAPATH"),
        Column::number("AGE"),
        Column::number("UP"),
        Column::number("DOWN"),
        Column::number("UP NOW"),
        Column::number("DOWN NOW"),
    ]);
    // A daemon may have a hundred thousand.
    for (connection, (up, down)) in rows.iter().take(500) {
        table.row([
            connection.id.to_string().into(),
            connection.client.to_string().into(),
            Cell::or_none(connection.host.as_ref()),
            Cell::or_none(connection.backend.as_ref()),
            lists::datapath(connection).into(),
            units::seconds(connection.age_seconds).into(),
            units::bytes(connection.bytes_up).into(),
            units::bytes(connection.bytes_down).into(),
            units::bit_rate(*up).into(),
            units::bit_rate(*down).into(),
        ]);
    }
    table
}
