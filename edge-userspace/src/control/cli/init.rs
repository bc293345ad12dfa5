//! `edgectl init`: says what it found, asks two questions, writes the first configuration, starts edged, probes home, and
//! says which DNS records to make.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use serde::Serialize;

use super::{
    Client, Failure, Output,
    arguments::{CONFIG, Init, TestRoute, TestedHost},
    routes,
    style::{self, Colour},
};
use crate::{
    setup::{Answers, Findings, Record, Tunnel, TunnelKind, is_blank, look, write_new},
    spec::{BackendAddress, HostPattern},
};

/// The output with `--json`.
#[derive(Serialize)]
struct Report<'r> {
    found: &'r Findings,
    file: String,
    config: &'r str,
    written: bool,
    records: Vec<Record>,
}

pub(super) async fn run(arguments: Init, daemon: &Client, output: Output) -> Result<(), Failure> {
    // Before any question: a file that stays makes them pointless.
    let previous = existing(&arguments)?;
    let found = look().await;
    if !output.json {
        style::write_lines(what_was_found(&found, output))?;
    }
    let answers = answers(&arguments, &found, output)?;
    let text = answers.text().map_err(Failure::Invalid)?;
    let file = arguments.config.display().to_string();
    if !arguments.print {
        if let Some(previous) = &previous {
            keep(&arguments.config, previous)?;
        }
        write_new(&arguments.config, &text).map_err(|error| unwritten(&file, &error))?;
    }
    let records = found.records(&answers.hosts);
    if output.json {
        let report = Report { found: &found, file, config: &text, written: !arguments.print, records };
        style::write_lines([serde_json::to_string(&report).map_err(io::Error::other)?])?;
        if arguments.print {
            return Ok(());
        }
        return start(&arguments, output).map(drop);
    }
    if arguments.print {
        style::write_lines([String::new(), text.trim_end().to_owned()])?;
        return Ok(());
    }
    style::write_lines([String::new(), format!("{} {file}", output.paint("wrote", Colour::Green))])?;
    let started = start(&arguments, output)?;
    style::write_lines(dns(&answers.hosts, &records, output))?;
    if !started {
        return Ok(());
    }
    let probed = name_to_probe(&answers.hosts);
    let client = TestRoute {
        host: TestedHost(probed.parse().ok()),
        protocol: None,
        alpn: Vec::new(),
        from: None,
        listener: None,
        probe: true,
    };
    style::write_lines([
        String::new(),
        format!("The way home, as `edgectl routes test {probed} --probe` shows it:"),
    ])?;
    routes::run(super::arguments::Routes::Test(client), daemon, output).await
}

/// The file that is there and may be replaced; none where it says nothing.
fn existing(arguments: &Init) -> Result<Option<String>, Failure> {
    let file = arguments.config.display();
    match fs::read_to_string(&arguments.config) {
        Ok(text) if is_blank(&text) => Ok(None),
        Ok(text) if arguments.force => Ok(Some(text)),
        Ok(_) if arguments.print => Ok(None),
        Ok(_) => Err(Failure::File(format!(
            "{file} has settings already: edit it, or replace it with --force (the old file is kept beside it)"
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::File(format!("{file}: cannot be read: {error}"))),
    }
}

fn unwritten(file: &str, error: &io::Error) -> Failure {
    let hint = if error.kind() == io::ErrorKind::PermissionDenied { "; run as root" } else { "" };
    Failure::File(format!("{file}: cannot be written: {error}{hint}"))
}

fn keep(path: &Path, text: &str) -> Result<(), Failure> {
    let mut old = path.as_os_str().to_owned();
    old.push(".old");
    write_new(old.as_ref(), text)
        .map_err(|error| Failure::File(format!("{}: cannot be written: {error}", old.display())))
}

fn what_was_found(found: &Findings, output: Output) -> Vec<String> {
    let mut lines = Vec::new();
    for Tunnel { device, kind, up, addresses, homes } in &found.tunnels {
        let kind = match kind {
            TunnelKind::Wireguard => "WireGuard",
            TunnelKind::Tailscale => "Tailscale",
            TunnelKind::Other => "tunnel",
        };
        let own: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let state = if *up { "" } else { ", down" };
        lines.push(format!("tunnel    {device}: {kind}{state}, this machine is {}", listed(&own)));
        for home in homes.iter().take(5) {
            let name =
                home.name.as_ref().map(|name| format!(" ({})", style::printable(name))).unwrap_or_default();
            let heard = if home.alive { "" } else { ", not heard of yet" };
            lines.push(format!("            {}{name}{heard}", home.address));
        }
    }
    if found.tunnels.is_empty() {
        lines.push(format!(
            "tunnel    {}: bring up WireGuard or Tailscale first, or name an address that leads home",
            output.paint("none found", Colour::Yellow)
        ));
    }
    let public: Vec<_> = found.public.iter().map(ToString::to_string).collect();
    lines.push(match &*public {
        [] => {
            "public    no public address on this machine's devices: your provider's panel shows it".to_owned()
        }
        public => format!("public    {}", public.join(", ")),
    });
    for taken in &found.taken {
        let who = taken.program.clone().unwrap_or_else(|| "another program".to_owned());
        lines.push(format!(
            "port {:<4} {}: stop and disable it, or edge cannot listen there",
            taken.port,
            output.paint(&format!("taken by {who}"), Colour::Yellow)
        ));
    }
    if let Some(command) = &found.firewall {
        lines.push(format!("firewall  {}: {command}", output.paint("may keep clients out", Colour::Yellow)));
    }
    lines
}

fn listed(texts: &[String]) -> String {
    if texts.is_empty() { "without an address".to_owned() } else { texts.join(", ") }
}

/// The two answers: from the arguments, by `--yes` from what was found, else from the operator.
fn answers(arguments: &Init, found: &Findings, output: Output) -> Result<Answers, Failure> {
    let ask = !arguments.yes && !output.json;
    let hosts = match &*arguments.host {
        [] if ask => question(
            "Which names does home serve? (such as .example.com, which includes all names below)",
            "*",
            |text| {
                let names = text.split([' ', ',']).filter(|name| !name.is_empty());
                let hosts: Result<Vec<_>, _> = names.map(HostPattern::several).collect();
                hosts.map(|hosts| hosts.concat()).map_err(|error| error.to_string())
            },
        )?,
        [] => vec![HostPattern::Any],
        given => given.iter().flat_map(|hosts| hosts.0.clone()).collect(),
    };
    let guess = found.guess().map(|home| home.address.to_string());
    let to = match (&arguments.to, guess) {
        (Some(to), _) => to.clone(),
        (None, Some(guess)) if !ask => {
            guess.parse().map_err(|_| Failure::Usage("name home's address with --to".to_owned()))?
        }
        (None, None) if !ask => {
            return Err(Failure::Usage(
                "no machine behind a tunnel was found: name home's address in the tunnel with --to"
                    .to_owned(),
            ));
        }
        (None, guess) => {
            question("Where is home? (its address in the tunnel)", &guess.unwrap_or_default(), |text| {
                text.parse::<BackendAddress>().map_err(|error| error.to_string())
            })?
        }
    };
    Ok(Answers { hosts, to })
}

/// Asks until the answer is one. An empty line takes the guess.
fn question<T>(words: &str, guess: &str, read: impl Fn(&str) -> Result<T, String>) -> Result<T, Failure> {
    let mut input = io::stdin().lock();
    loop {
        let shown = if guess.is_empty() { String::new() } else { format!(" [{guess}]") };
        let mut stdout = io::stdout().lock();
        write!(stdout, "\n{words}{shown}: ")?;
        stdout.flush()?;
        drop(stdout);
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            return Err(Failure::Usage(
                "standard input has ended: answer by --host and --to, or take the guesses with --yes"
                    .to_owned(),
            ));
        }
        let answer = if line.trim().is_empty() { guess } else { line.trim() };
        match read(answer) {
            Ok(answer) => return Ok(answer),
            Err(error) if io::stdin().is_terminal() => style::write_lines([error])?,
            Err(error) => return Err(Failure::Usage(format!("{answer}: {error}"))),
        }
    }
}

/// Enables and starts the unit. Whether edged runs with the new file now; where that is for the operator to do, says how.
fn start(arguments: &Init, output: Output) -> Result<bool, Failure> {
    let file = arguments.config.display();
    let is_of_unit = arguments.config == Path::new(CONFIG);
    if arguments.no_start || !is_of_unit || !Path::new("/run/systemd/system").is_dir() {
        if !output.json {
            style::write_lines([if is_of_unit {
                "start it:  systemctl enable --now edged   (without systemd: edged)".to_owned()
            } else {
                format!("start it:  edged --config {file}")
            }])?;
        }
        return Ok(false);
    }
    // A unit that runs already does not notice `enable --now`.
    for arguments in [&["enable", "--now", "edged"][..], &["reload-or-restart", "edged"]] {
        let mut command = Command::new("systemctl");
        let done = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).status();
        if !done.is_ok_and(|status| status.success()) {
            return Err(Failure::File(format!(
                "`systemctl {}` failed: `journalctl -u edged -n 20` has the reason",
                arguments.join(" ")
            )));
        }
    }
    if !output.json {
        style::write_lines([format!(
            "{} edged, now and at every boot",
            output.paint("started", Colour::Green)
        )])?;
    }
    Ok(true)
}

fn dns(hosts: &[HostPattern], records: &[Record], output: Output) -> Vec<String> {
    let mut lines =
        vec![String::new(), output.paint("DNS records to make, where your domain is:", Colour::Bold)];
    let width = records.iter().map(|record| record.name.len()).max().unwrap_or(0);
    lines.extend(records.iter().map(|Record { name, kind, address }| {
        let address = address.map_or_else(|| "this machine's public address".to_owned(), |at| at.to_string());
        format!("  {name:width$}  {kind:4}  {address}")
    }));
    if hosts.contains(&HostPattern::Any) {
        lines
            .push("  each name that home serves, to this machine's public addresses (A and AAAA)".to_owned());
    }
    lines
}

/// A name of the first host.
fn name_to_probe(hosts: &[HostPattern]) -> String {
    match hosts.first() {
        Some(HostPattern::Exact(name)) => name.to_string(),
        Some(HostPattern::Below(name)) => format!("www.{name}"),
        Some(HostPattern::Any) | None => "-".to_owned(),
    }
}
