//! `edgectl log`: the last lines of the access log and, with `--follow`, those that come, also of the next daemon.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use super::{
    Client, ClientError, Failure, Output,
    style::{self, Colour, printable},
    units,
};
use crate::control::{
    api::{LogLine, LogRequest, LostLines},
    client::Lines,
};

/// Between two attempts to reach a daemon that has ended.
const RETRY: Duration = Duration::from_secs(1);

pub(super) async fn run(daemon: &Client, output: Output, mut request: LogRequest) -> Result<(), Failure> {
    let mut lines = daemon.lines("/v1/log", &request).await?;
    loop {
        match lines.next().await {
            Ok(Some(line)) => show(&line, output)?,
            Ok(None) if !request.follow => return Ok(()),
            Err(error) if !request.follow => return Err(error.into()),
            Ok(None) | Err(_) => {
                complain("edged has ended; waiting for the next one")?;
                // All that the next one has so far is new.
                request.lines = usize::MAX;
                lines = again(daemon, &request).await?;
                complain("edged is back")?;
            }
        }
    }
}

async fn again(daemon: &Client, request: &LogRequest) -> Result<Lines, Failure> {
    loop {
        match daemon.lines("/v1/log", request).await {
            Ok(lines) => return Ok(lines),
            Err(refused @ ClientError::Refused(_)) => return Err(refused.into()),
            Err(_) => tokio::time::sleep(RETRY).await,
        }
    }
}

fn show(line: &[u8], output: Output) -> Result<(), Failure> {
    if output.json {
        return Ok(style::write(&[line, b"\n"].concat())?);
    }
    if let Ok(LostLines { lost }) = serde_json::from_slice(line) {
        return complain(&format!("{} lost: this reader is too slow", units::count(lost, "line")));
    }
    let shown = match serde_json::from_slice::<LogLine>(line) {
        Ok(line) => text(&line, output),
        Err(_) => printable(&String::from_utf8_lossy(line)).into_owned(),
    };
    Ok(style::write_lines([shown])?)
}

/// On standard error: standard output has nothing but lines of the log.
fn complain(what: &str) -> Result<(), Failure> {
    Ok(writeln!(io::stderr(), "edgectl: {what}")?)
}

/// `22:13:20 192.0.2.7:4711 cloud.example.com > 100.64.0.2:443 finished, 1.2 KiB up, 5.4 MiB down, 12ms, splice`
fn text(line: &LogLine, output: Output) -> String {
    let time = line.time.to_string();
    let time = time.split_once('T').map_or(&*time, |(_, time)| time.get(..8).unwrap_or(time));
    let time = output.paint(time, Colour::Dim);
    let host = line.sni.as_deref().or(line.sni_raw.as_deref()).unwrap_or(&line.listener);
    let who = format!("{} {host}", line.client);
    let who = printable(&who);
    let error = line.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    if line.refused {
        let why = format!("refused, {}{error}", line.close);
        return format!("{time} {who} {}", output.paint(&printable(&why), Colour::Red));
    }
    let took = units::seconds(line.duration_ms / 1000.0);
    let backend = line.backend.as_deref().map(|backend| format!(" > {backend}")).unwrap_or_default();
    let tier = line.datapath.as_deref().map(|tier| format!(", {tier}")).unwrap_or_default();
    let bytes = format!("{} up, {} down", units::bytes(line.bytes_up), units::bytes(line.bytes_down));
    let colour = if &*line.close == "finished" { Colour::Green } else { Colour::Yellow };
    let close = output.paint(&printable(&line.close), colour);
    format!("{time} {who}{} {close}{}, {bytes}, {took}{tier}", printable(&backend), printable(&error))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(fields: &serde_json::Value) -> String {
        let mut all = json!({
            "time": "2023-11-14T22:13:20.123Z", "id": 1, "client": "192.0.2.7:4711", "listener": "https",
            "sni": "cloud.example.com", "backend": "100.64.0.2:443", "datapath": "splice", "bytes_up": 1229,
            "bytes_down": 7, "duration_ms": 12.5, "close": "finished"
        });
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let plain = Output { json: false, terminal: false, colours: false, width: None };
        text(&serde_json::from_value(all).unwrap(), plain)
    }

    #[test]
    fn a_line_has_who_where_and_how_it_ended() {
        assert_eq!(
            line(&json!({})),
            "22:13:20 192.0.2.7:4711 cloud.example.com > 100.64.0.2:443 finished, 1.2 KiB up, 7 B down, 12ms, splice"
        );
        assert_eq!(
            line(
                &json!({"sni": null, "sni_raw": "a\u{1b}b", "backend": null, "close": "no_route", "refused": true})
            ),
            "22:13:20 192.0.2.7:4711 a\\u{1b}b refused, no_route"
        );
        assert_eq!(
            line(&json!({"refused": true, "close": "connect_failed", "error": "Connection refused"})),
            "22:13:20 192.0.2.7:4711 cloud.example.com refused, connect_failed: Connection refused"
        );
    }
}
