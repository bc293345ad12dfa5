//! `edgectl status`: the daemon at a glance.

use std::net::SocketAddr;

use super::{
    Client, Failure,
    style::{self, Colour, Output, printable},
    table::{Cell, Column, Table, wrapped},
    units,
};
use crate::{
    control::api::{Backend, BackendState, Guard, GuardedBy, Status},
    listener::holder,
    spec::Protocol,
};

/// Backends that are down and stand among the problems; `edgectl backends list` has all.
const BACKENDS: usize = 8;
/// Columns of the names before what is said.
const NAMES: usize = 14;

/// Asks for the status and, where backends are down, for these.
pub(super) async fn run(daemon: &Client, output: Output) -> Result<(), Failure> {
    let answer = daemon.get("/v1/status").await?;
    if output.json {
        return Ok(style::write(answer.json())?);
    }
    let status: Status = answer.read()?;
    let backends = match status.backends.down {
        0 => Vec::new(),
        _ => daemon.get("/v1/backends").await?.read()?,
    };
    Ok(style::write_lines(lines(&status, &backends, output))?)
}

/// The problems, the summary and the listeners.
fn lines(status: &Status, backends: &[Backend], output: Output) -> Vec<String> {
    let mut lines = problems(status, backends, output);
    if !lines.is_empty() {
        lines.push(String::new());
    }
    lines.extend(summary(status, output));
    lines.push(String::new());
    lines.extend(listeners(status).lines(output.colours, output.width));
    lines
}

/// The problems that need the operator, in red, the worst first; nothing where all is well. `backends` may be empty.
pub(super) fn problems(status: &Status, backends: &[Backend], output: Output) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |name: &str, what: &str| lines.extend(said(name, what, Some(Colour::Red), output));
    for trouble in &status.troubles {
        say("trouble", &printable(trouble));
    }
    let closed = status.listeners.iter().flat_map(|listener| &listener.troubles);
    for trouble in closed.filter(|trouble| !trouble.listening) {
        if let Some(holder) = holder(trouble.bind) {
            say("trouble", &format!("{} is held by {holder}", trouble.bind));
        }
    }
    if let Some(reload) = status.config.last_reload.as_ref().filter(|reload| !reload.successful) {
        let error = reload.error.as_deref().unwrap_or("no reason given");
        let first = error.lines().next().unwrap_or_default();
        let ago = units::since(reload.time);
        say("reload failed", &format!("{ago} ago, the old configuration runs: {}", printable(first)));
    }
    let down: Vec<_> = backends.iter().filter(|backend| backend.state == BackendState::Down).collect();
    for backend in down.iter().take(BACKENDS) {
        let Backend { to, pool, since, reason, .. } = backend;
        let pool = if **pool == *to.to_string() { String::new() } else { format!(" of {pool}") };
        let why = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
        say("backend down", &printable(&format!("{to}{pool} for {}{why}", units::since(*since))));
    }
    match (down.len(), status.backends.down) {
        (0, 0) => {}
        (0, count) => say("backends down", &format!("{count}; `edgectl backends list` says why")),
        (shown, _) if shown > BACKENDS => {
            say("backends down", &format!("{} more; `edgectl backends list` has all", shown - BACKENDS));
        }
        _ => {}
    }
    lines
}

/// A line for one thing; on a narrow terminal several, which stand below each other.
fn said(name: &str, what: &str, colour: Option<Colour>, output: Output) -> Vec<String> {
    let what: Vec<_> = match output.width.map(|width| width.saturating_sub(NAMES + 1)) {
        Some(room) => wrapped(what, room.max(20)).collect(),
        None => vec![what.to_owned()],
    };
    let paint = |text: &str| colour.map_or_else(|| text.to_owned(), |colour| output.paint(text, colour));
    let mut lines = Vec::new();
    for (nth, part) in what.iter().enumerate() {
        let name = if nth == 0 { name } else { "" };
        let name = output.paint(&format!("{name:NAMES$}"), colour.unwrap_or(Colour::Dim));
        lines.push(format!("{name} {}", paint(part)));
    }
    lines
}

/// One line for each thing there is to know.
pub(super) fn summary(status: &Status, output: Output) -> Vec<String> {
    let Status { config, connections, routes, backends, .. } = status;
    let mut lines = Vec::new();
    let mut say = |name: &str, what: String| lines.extend(said(name, &what, None, output));
    let draining = if status.draining { ", ends when its last connection has" } else { "" };
    say(
        "edged",
        format!(
            "{}, pid {}, up {}{draining}",
            status.version,
            status.pid,
            units::seconds(status.uptime_seconds)
        ),
    );
    say("configuration", format!("{}, loaded {} ago", config.path.display(), units::since(config.loaded)));
    say("connections", {
        let share = match connections.limit_per_source {
            0 => String::new(),
            share => format!(", {share} of one source"),
        };
        format!("{} now, {} in all, at most {}{share}", connections.now, connections.total, connections.limit)
    });
    say("first bytes", {
        let memory = status.hello_memory;
        format!("{} of at most {}", units::bytes(memory.now), units::bytes(memory.limit))
    });
    say("carried", format!("{} up, {} down", units::bytes(status.bytes_up), units::bytes(status.bytes_down)));
    say("routes", format!("{} from the file, {} added", routes.file, routes.runtime));
    say("backends", {
        let down = format!("{} down", backends.down);
        let down = if backends.down > 0 { output.paint(&down, Colour::Red) } else { down };
        let unchecked = match backends.unchecked {
            0 => String::new(),
            count => format!(", {count} unchecked"),
        };
        format!("{} up, {down}, {} drained{unchecked}", backends.up, backends.drained)
    });
    say("datapath", {
        let tiers = status.datapath.tiers.iter().map(|tier| match &tier.reason {
            _ if tier.available => tier.tier.name().to_owned(),
            Some(reason) => format!("no {} ({})", tier.tier.name(), printable(reason)),
            None => format!("no {}", tier.tier.name()),
        });
        format!("{}: {}", status.datapath.allowed.name(), tiers.collect::<Vec<_>>().join(", "))
    });
    for other in &status.datapath.others {
        let flows = other.flows.map_or_else(|| "flows".to_owned(), |flows| format!("{flows} flows"));
        let note = if other.readable { "" } else { ", which this version cannot list" };
        say("earlier", format!("{flows} of another version, in layout {}{note}", printable(&other.layout)));
    }
    if !status.rejected.is_empty() {
        let reasons = status.rejected.iter().map(|(reason, count)| format!("{count} {reason}"));
        say("rejected", reasons.collect::<Vec<_>>().join(", "));
    }
    if !status.shield.is_empty() {
        say("shield", guards(&status.shield, output));
    }
    if status.blocked_packets > 0 {
        say("blocked", format!("{} packets", status.blocked_packets));
    }
    if let Some(conntrack) = status.conntrack {
        say(
            "conntrack",
            format!("{} of {} entries, of the whole machine", conntrack.entries, conntrack.limit),
        );
    }
    lines
}

/// How blocked sources are kept out, in one line: `dropped on eth0 (xdp), eth1 (tc); refused at accept on wg0 (why)`.
pub(super) fn guards(guards: &[Guard], output: Output) -> String {
    let shown = |which: fn(&&Guard) -> bool, words: fn(&Guard) -> String| {
        let some: Vec<_> = guards.iter().filter(which).map(words).collect();
        (!some.is_empty()).then(|| some.join(", "))
    };
    let dropped = shown(
        |guard| guard.by != GuardedBy::Accept,
        |guard| format!("{} ({})", printable(&guard.device), guard.by.name()),
    );
    let refused = shown(
        |guard| guard.by == GuardedBy::Accept,
        |guard| {
            let reason = guard.reason.as_deref().unwrap_or("no reason given");
            format!("{} ({})", printable(&guard.device), printable(reason))
        },
    );
    let refused =
        refused.map(|refused| output.paint(&format!("refused at accept alone on {refused}"), Colour::Yellow));
    let parts: Vec<_> =
        dropped.map(|dropped| format!("dropped on {dropped}")).into_iter().chain(refused).collect();
    parts.join("; ")
}

fn listeners(status: &Status) -> Table {
    let mut table = Table::new([
        Column::text("LISTENER"),
        Column::text("PROTOCOL"),
        Column::text("BIND"),
        Column::number("CONNECTIONS"),
        Column::number("ACCEPTED"),
        Column::number("MSS"),
    ]);
    for listener in &status.listeners {
        table.row([
            (&*listener.name).into(),
            match listener.protocol {
                _ if !listener.protocols.is_empty() => Cell::list(&listener.protocols, "-"),
                Protocol::Tls => "tls".into(),
                Protocol::Http => "http".into(),
                Protocol::Tcp => "tcp".into(),
            },
            Cell::list(&ranges(&listener.bind), "-"),
            listener.connections.to_string().into(),
            listener.accepted.to_string().into(),
            Cell::or_none(listener.mss),
        ]);
    }
    table
}

/// Addresses, those whose ports follow each other as one range.
fn ranges(addresses: &[SocketAddr]) -> Vec<String> {
    let follows = |one: &SocketAddr, next: &SocketAddr| {
        one.ip() == next.ip() && one.port().checked_add(1) == Some(next.port())
    };
    let shown = |run: &[SocketAddr]| match run {
        [first, .., last] => Some(format!("{first}-{}", last.port())),
        [one] => Some(one.to_string()),
        [] => None,
    };
    addresses.chunk_by(follows).filter_map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        serde_json::from_value(serde_json::json!({
            "version": "0.1.0", "pid": 42, "started": "2023-11-14T22:13:20Z", "uptime_seconds": 90_061.0,
            "draining": false,
            "config": {"path": "/etc/edge/edge.toml", "loaded": "2023-11-14T22:13:20Z", "last_reload":
                {"time": "2023-11-14T22:13:20Z", "successful": false, "error": "edge.toml:3:1: unknown key `hots`\n  x"}},
            "datapath": {"allowed": "auto", "tiers": [
                {"tier": "copy", "available": true, "reason": null},
                {"tier": "flow", "available": false, "reason": "CAP_BPF is missing; `edgectl doctor` says why"}]},
            "listeners": [], "troubles": ["listener https: nothing can listen on [2001:db8:1234:5678:9abc::1]:443"],
            "connections": {"now": 1, "total": 10, "limit": 1000}, "bytes_up": 1, "bytes_down": 2,
            "rejected": {"no_route": 2}, "routes": {"file": 1, "runtime": 0},
            "backends": {"up": 1, "down": 1, "drained": 0}, "blocked_packets": 0
        }))
        .unwrap()
    }

    fn down() -> Backend {
        serde_json::from_value(serde_json::json!({
            "pool": "caddy", "to": "100.64.0.2:443", "address": null, "state": "down",
            "since": "2023-11-14T22:13:20Z", "reason": "Connection refused", "device": null, "weight": 1,
            "backup": false, "connections": 0, "bytes_up": 0, "bytes_down": 0, "rtt_ms": null
        }))
        .unwrap()
    }

    #[test]
    fn problems_stand_first_in_red_and_all_fits_80_columns() {
        let terminal = |colours| Output { json: false, terminal: true, colours, width: Some(80) };
        let plain = lines(&status(), &[down()], terminal(false));
        assert!(plain.iter().all(|line| line.chars().count() <= 80), "{plain:#?}");
        let at = |text: &str| plain.iter().position(|line| line.starts_with(text)).unwrap();
        assert!(at("trouble ") < at("reload failed ") && at("reload failed ") < at("backend down "));
        assert!(at("backend down ") < at("edged "), "{plain:#?}");
        assert!(plain[at("backend down ")].contains("100.64.0.2:443 of caddy for"), "{plain:#?}");
        let coloured = lines(&status(), &[down()], terminal(true));
        assert!(coloured[0].starts_with("\x1b[31mtrouble"), "{coloured:#?}");

        let unasked = problems(&status(), &[], terminal(false));
        assert!(
            unasked.last().is_some_and(|line| line.contains("1; `edgectl backends list`")),
            "{unasked:#?}"
        );
        let mut well = status();
        (well.troubles, well.config.last_reload, well.backends.down) = (Vec::new(), None, 0);
        assert!(problems(&well, &[], terminal(false)).is_empty());
    }

    #[test]
    fn ports_in_a_row_are_one_range() {
        let addresses = ["[::]:25565", "[::]:25566", "[::]:25567", "[::]:25569", "0.0.0.0:25570"];
        let addresses = addresses.map(|text| text.parse().unwrap());
        assert_eq!(ranges(&addresses), ["[::]:25565-25567", "[::]:25569", "0.0.0.0:25570"]);
    }
}
