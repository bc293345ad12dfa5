//! `edgectl doctor`: what the daemon finds, or without a daemon what can be seen from here.

mod print;

use std::{io, net::TcpListener, path::Path};

use serde::Serialize;

use self::print::Report;
use super::{Client, ClientError, Failure, Output, arguments::DoctorArgs, style};
use crate::{
    config::Settings,
    control::api::{Check, CheckStatus, DoctorReport},
    listener::holder,
};

/// The body of a request that selects nothing.
#[derive(Serialize)]
struct NoFields {}

pub(super) async fn run(daemon: &Client, output: Output, arguments: &DoctorArgs) -> Result<(), Failure> {
    let (worst, reached) = if output.json {
        let (report, reached) = whole(daemon, arguments).await?;
        style::write_lines([serde_json::to_string(&report).map_err(io::Error::other)?])?;
        (report.worst(), reached)
    } else {
        let mut report = Report::new(output, arguments.verbose);
        let reached = streamed(daemon, arguments, &mut report).await?;
        report.end()?;
        (report.found().iter().map(|check| check.status).max(), reached)
    };
    match worst {
        _ if !reached => Err(Failure::Unreachable),
        Some(CheckStatus::Fail) => Err(Failure::Found),
        _ => Ok(()),
    }
}

/// The whole report, and whether it is the daemon's.
async fn whole(daemon: &Client, arguments: &DoctorArgs) -> Result<(DoctorReport, bool), Failure> {
    match daemon.get("/v1/doctor").await {
        Ok(answer) => Ok((answer.read()?, true)),
        Err(refused @ ClientError::Refused(_)) => Err(refused.into()),
        Err(unreachable) => Ok((from_outside(&unreachable, &arguments.config), false)),
    }
}

/// The same, finding by finding as the daemon makes them.
async fn streamed(daemon: &Client, arguments: &DoctorArgs, report: &mut Report) -> Result<bool, Failure> {
    match follow(daemon, report).await? {
        Ok(()) => return Ok(true),
        // A daemon of an earlier version has the whole report only.
        Err(ClientError::Refused(refused)) if refused.code == "no_such_path" => {}
        Err(refused @ ClientError::Refused(_)) => return Err(refused.into()),
        // It went away in the middle.
        Err(broken) if !report.found().is_empty() => return Err(broken.into()),
        Err(_) => {}
    }
    let (whole, reached) = whole(daemon, arguments).await?;
    for check in whole.checks {
        report.add(check)?;
    }
    Ok(reached)
}

/// Reports each finding as it comes. The inner error is the daemon's.
async fn follow(daemon: &Client, report: &mut Report) -> io::Result<Result<(), ClientError>> {
    let mut lines = match daemon.lines("/v1/doctor/stream", &NoFields {}).await {
        Ok(lines) => lines,
        Err(error) => return Ok(Err(error)),
    };
    loop {
        let check = match lines.next().await {
            Ok(Some(line)) => serde_json::from_slice::<Check>(&line),
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        match check {
            Ok(check) => report.add(check)?,
            Err(error) => {
                return Ok(Err(ClientError::NotEdged(daemon.socket().to_owned(), error.to_string())));
            }
        }
    }
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
