//! `edgectl trace`: what the kernel does with a client's packets, line by line until interrupted.

use std::{io::Write as _, net::IpAddr, time::Duration};

use ipnet::IpNet;
use tokio::time::MissedTickBehavior;

use super::{
    Client, Failure, Output,
    style::{self, Colour},
};
use crate::control::api::{Trace, TraceClient, TraceLine};

/// Between two calls.
const EVERY: Duration = Duration::from_millis(250);

/// Writes lines until interrupted. As JSON: one object a line.
pub(super) async fn run(daemon: &Client, output: Output, client: IpNet) -> Result<(), Failure> {
    tokio::select! {
        result = follow(daemon, output, client) => result,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Failure::from),
    }
}

async fn follow(daemon: &Client, output: Output, client: IpNet) -> Result<(), Failure> {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reader = None;
    loop {
        ticks.tick().await;
        let trace: Trace = daemon.post("/v1/trace", &TraceClient { client, reader }).await?.read()?;
        if reader.is_none() {
            // Not among the lines: they may be read by a program.
            let _ = writeln!(std::io::stderr(), "tracing {client}; Ctrl-C ends it");
        } else if reader != Some(trace.reader) {
            let _ = writeln!(std::io::stderr(), "edged had forgotten this trace: lines are missing");
        }
        reader = Some(trace.reader);
        for (count, why) in [
            (trace.missed, "lines were left out: this trace was too slow"),
            (trace.lost, "lines, of any client, were lost: the kernel had no room for them"),
        ] {
            if count != 0 {
                let _ = writeln!(std::io::stderr(), "{count} {why}");
            }
        }
        if output.json {
            for line in &trace.lines {
                let mut text = serde_json::to_vec(line).map_err(std::io::Error::other)?;
                text.push(b'\n');
                style::write(&text)?;
            }
        } else {
            style::write_lines(trace.lines.iter().map(|line| words(line, output)))?;
        }
    }
}

/// A line in words: time of day in UTC, program, ends, packet, what was done.
fn words(line: &TraceLine, output: Output) -> String {
    let time = line.time.to_string();
    let time = time.get(11..23).unwrap_or(&time);
    let mut ends = end(line.client, line.client_port);
    if let Some(peer) = line.peer {
        ends = format!("{ends} - {}", end(peer, line.peer_port));
    }
    let flags = if line.flags.is_empty() { String::new() } else { format!("{} ", line.flags) };
    let colour = match line.message.split_once(':').map_or(&*line.message, |(verdict, _)| verdict) {
        "dropped" | "refused" => Colour::Red,
        "handed over" => Colour::Green,
        _ => Colour::Dim,
    };
    format!(
        "{} {:<6} {ends} {flags}{} bytes {}",
        output.paint(time, Colour::Dim),
        style::printable(&line.program),
        line.length,
        output.paint(&style::printable(&line.message), colour),
    )
}

fn end(address: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => std::net::SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::control::api::Timestamp;

    #[test]
    fn a_line_says_who_and_what() {
        let output = Output { json: false, terminal: false, colours: false, width: None };
        let mut line = TraceLine {
            time: Timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(1500)),
            program: "flow".into(),
            client: "192.0.2.9".parse().unwrap(),
            client_port: Some(4711),
            peer: Some("2001:db8::1".parse().unwrap()),
            peer_port: Some(443),
            flags: "SYN,ACK".into(),
            length: 60,
            message: "dropped: for a reason".into(),
        };
        let expected =
            "00:00:01.500 flow   192.0.2.9:4711 - [2001:db8::1]:443 SYN,ACK 60 bytes dropped: for a reason";
        assert_eq!(words(&line, output), expected);
        (line.client_port, line.peer, line.flags) = (None, None, "".into());
        assert_eq!(words(&line, output), "00:00:01.500 flow   192.0.2.9 60 bytes dropped: for a reason");
    }
}
