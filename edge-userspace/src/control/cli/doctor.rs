//! `edgectl doctor`: what the daemon finds, or without a daemon what can be seen from here.

use std::{io, net::TcpListener, path::Path};

use super::{
    Client, ClientError, Failure, Output, routes,
    style::{self, Colour, printable},
    table::wrapped,
};
use crate::{
    config::Settings,
    control::api::{Check, CheckStatus, DoctorReport},
    listener::holder,
};

pub(super) async fn run(daemon: &Client, output: Output, config: &Path) -> Result<(), Failure> {
    let (report, reached) = match daemon.get("/v1/doctor").await {
        Ok(answer) => (answer.read()?, true),
        Err(refused @ ClientError::Refused(_)) => return Err(refused.into()),
        Err(unreachable) => (from_outside(&unreachable, config), false),
    };
    if output.json {
        style::write_lines([serde_json::to_string(&report).map_err(io::Error::other)?])?;
    } else {
        style::write_lines(lines(&report, output))?;
    }
    match report.worst() {
        _ if !reached => Err(Failure::Unreachable),
        Some(CheckStatus::Fail) => Err(Failure::Found),
        _ => Ok(()),
    }
}

fn lines(report: &DoctorReport, output: Output) -> Vec<String> {
    let width = report.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for check in &report.checks {
        let (word, colour) = routes::status(check.status);
        let word = output.paint(&format!("{word:4}"), colour);
        // A message may have several lines, such as the report on a configuration file.
        let message: Vec<_> = check.message.lines().map(|line| printable(line).into_owned()).collect();
        let arrow = output.paint("->", Colour::Bold);
        let remedy = check.remedy.as_ref().map(|remedy| printable(remedy).into_owned());
        let longest = message.iter().chain(&remedy).map(|line| line.chars().count() + "-> ".len()).max();
        match output.width {
            // Beside a long name there is no room: below it.
            Some(room) if 6 + width + 2 + longest.unwrap_or(0) > room => {
                lines.push(format!("{word}  {}", check.name));
                let room = room.saturating_sub(6);
                lines.extend(
                    message.iter().flat_map(|line| wrapped(line, room)).map(|line| format!("      {line}")),
                );
                let remedy = remedy.iter().flat_map(|remedy| wrapped(remedy, room.saturating_sub(3)));
                let before = |nth| if nth == 0 { arrow.as_str() } else { "  " };
                lines.extend(remedy.enumerate().map(|(nth, line)| format!("      {} {line}", before(nth))));
            }
            _ => {
                let mut message = message.into_iter();
                let first = message.next().unwrap_or_default();
                lines.push(format!("{word}  {:width$}  {first}", check.name));
                lines.extend(message.map(|line| format!("      {:width$}  {line}", "")));
                lines.extend(remedy.map(|remedy| format!("      {:width$}  {arrow} {remedy}", "")));
            }
        }
    }
    lines
}

/// Findings that need no daemon.
fn from_outside(error: &ClientError, config: &Path) -> DoctorReport {
    let mut checks = vec![
        Check::new("edged", CheckStatus::Fail, error.to_string())
            .remedy("start it, or read why it ended: `journalctl -u edged -n 50`"),
    ];
    let uname = rustix::system::uname();
    checks.push(Check::new(
        "kernel",
        CheckStatus::Ok,
        format!("Linux {}", uname.release().to_string_lossy()),
    ));
    match Settings::load(config) {
        Ok(settings) => {
            checks.push(Check::new(
                "configuration",
                CheckStatus::Ok,
                format!("{} is valid", config.display()),
            ));
            checks.extend(
                settings.listeners.iter().flat_map(|listener| &listener.bind).map(|address| port(*address)),
            );
        }
        Err(error) => {
            let remedy = format!("mend it, then `edgectl config check {}`", config.display());
            checks.push(Check::new("configuration", CheckStatus::Fail, error.to_string()).remedy(remedy));
        }
    }
    DoctorReport { checks }
}

/// Whether a listener could have its address: tried, and given back at once.
fn port(address: std::net::SocketAddr) -> Check {
    let name = format!("port {}", address.port());
    match TcpListener::bind(address) {
        Ok(_) => Check::new(name, CheckStatus::Ok, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let who = holder(address).map_or_else(|| "something else".into(), |holder| holder.to_string());
            Check::new(name, CheckStatus::Fail, format!("{who} listens on {address}"))
                .remedy(format!("find it with `ss -ltnp sport = :{}` and stop it", address.port()))
        }
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Check::new(
            name,
            CheckStatus::Warn,
            format!("this machine does not have the address {} now", address.ip()),
        )
        .remedy(
            "bring its device or tunnel up, or correct `bind`; edged accepts clients as soon as it is there",
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Check::new(name, CheckStatus::Skip, format!("{address} cannot be tried by this user"))
                .remedy("run as root")
        }
        Err(error) => Check::new(name, CheckStatus::Fail, format!("{address}: {error}")),
    }
}
