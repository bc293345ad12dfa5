//! `edgectl top`: the summary and the busiest connections, drawn again and again.

use std::{collections::HashMap, io, time::Duration};

use tokio::time::{Instant, MissedTickBehavior};

use super::{
    Client, Failure, Output, lists, status,
    style::{self, Colour},
    table::{Cell, Column, Table},
    units,
};
use crate::control::api::{Connection, Status};

/// Lines on a terminal that does not say how high it is.
const DEFAULT_HEIGHT: usize = 24;

/// Draws until interrupted, or `count` times. As JSON: the status, one line a look.
pub(super) async fn run(
    daemon: &Client,
    output: Output,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    let whole_screen = output.terminal && !output.json;
    if whole_screen {
        // The alternate screen, without a cursor, long lines cut (xterm's private modes 1049, 25 and 7).
        style::write(b"\x1b[?1049h\x1b[?25l\x1b[?7l")?;
    }
    let result = tokio::select! {
        result = look(daemon, output, interval, count) => result,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::from),
    };
    if whole_screen {
        style::write(b"\x1b[?7h\x1b[?25h\x1b[?1049l")?;
    }
    result
}

async fn look(
    daemon: &Client,
    output: Output,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before = None;
    let mut looks = 0;
    while count.is_none_or(|count| looks < count) {
        ticks.tick().await;
        looks += 1;
        let answer = daemon.get("/v1/status").await?;
        if output.json {
            style::write(answer.json())?;
            continue;
        }
        let status = answer.read()?;
        let connections = daemon.get("/v1/connections").await?.read()?;
        let now = Look { time: Instant::now(), status, connections };
        let mut lines = frame(before.as_ref(), &now, output);
        if output.terminal {
            lines.truncate(height());
            // Home; each line clears what stood behind it, the last one what stood below.
            style::write(format!("\x1b[H{}\x1b[J", lines.join("\x1b[K\r\n")).as_bytes())?;
        } else {
            style::write_lines(lines)?;
        }
        before = Some(now);
    }
    Ok(())
}

/// A sample of one moment.
struct Look {
    time: Instant,
    status: Status,
    connections: Vec<Connection>,
}

/// Up and down, in bytes a second.
type Rate = (f64, f64);

fn frame(before: Option<&Look>, now: &Look, output: Output) -> Vec<String> {
    let mut lines = status::problems(&now.status, &[], output);
    lines.extend(status::summary(&now.status, output));
    let seconds = before.map_or(0.0, |before| (now.time - before.time).as_secs_f64());
    let rate = |before: u64, now: u64| {
        #[expect(clippy::cast_precision_loss, reason = "a rate that is shown with four digits")]
        let difference = now.saturating_sub(before) as f64;
        if seconds > 0.0 { difference / seconds } else { 0.0 }
    };
    if let Some(before) = before {
        lines.push(format!(
            "{} {:.1} connections/s, {} up, {} down",
            output.paint("rates         ", Colour::Dim),
            rate(before.status.connections.total, now.status.connections.total),
            units::bit_rate(rate(before.status.bytes_up, now.status.bytes_up)),
            units::bit_rate(rate(before.status.bytes_down, now.status.bytes_down)),
        ));
    }
    let known: HashMap<u64, &Connection> =
        before.iter().flat_map(|before| &before.connections).map(|old| (old.id, old)).collect();
    let mut rows: Vec<(&Connection, Rate)> = (now.connections.iter())
        .map(|connection| {
            let rates = known.get(&connection.id).map_or((0.0, 0.0), |old| {
                (rate(old.bytes_up, connection.bytes_up), rate(old.bytes_down, connection.bytes_down))
            });
            (connection, rates)
        })
        .collect();
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
    // More than any terminal is high; a daemon may have a hundred thousand.
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

fn height() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 => usize::from(size.ws_row),
        _ => DEFAULT_HEIGHT,
    }
}
