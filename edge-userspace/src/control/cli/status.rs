//! `edgectl status`: the daemon at a glance.

use std::net::SocketAddr;

use super::{
    style::{Colour, Output, printable},
    table::{Cell, Column, Table},
    units,
};
use crate::{
    control::api::{Guard, GuardedBy, Status},
    listener::holder,
    spec::Protocol,
};

/// The summary and the listeners.
pub(super) fn lines(status: &Status, output: Output) -> Vec<String> {
    let mut lines = summary(status, output);
    let closed = status.listeners.iter().flat_map(|listener| &listener.troubles);
    for trouble in closed.filter(|trouble| !trouble.listening) {
        if let Some(holder) = holder(trouble.bind) {
            lines.push(format!("{} {} is held by {holder}", " ".repeat(14), trouble.bind));
        }
    }
    lines.push(String::new());
    lines.extend(listeners(status).lines(output.colours, output.width));
    lines
}

/// One line for each thing there is to know.
pub(super) fn summary(status: &Status, output: Output) -> Vec<String> {
    let Status { config, connections, routes, backends, .. } = status;
    let mut lines = Vec::new();
    let mut say = |name: &str, what: String| {
        lines.push(format!("{} {what}", output.paint(&format!("{name:14}"), Colour::Dim)));
    };
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
    say("configuration", {
        let reload = match &config.last_reload {
            Some(reload) if !reload.successful => {
                let error = reload.error.as_deref().unwrap_or("no reason given");
                let first = error.lines().next().unwrap_or_default();
                let failed =
                    format!("last reload failed {} ago: {}", units::since(reload.time), printable(first));
                format!("; {}", output.paint(&failed, Colour::Red))
            }
            _ => String::new(),
        };
        format!("{}, loaded {} ago{reload}", config.path.display(), units::since(config.loaded))
    });
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
    for trouble in &status.troubles {
        say("trouble", output.paint(&printable(trouble), Colour::Red));
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

    #[test]
    fn ports_in_a_row_are_one_range() {
        let addresses = ["[::]:25565", "[::]:25566", "[::]:25567", "[::]:25569", "0.0.0.0:25570"];
        let addresses = addresses.map(|text| text.parse().unwrap());
        assert_eq!(ranges(&addresses), ["[::]:25565-25567", "[::]:25569", "0.0.0.0:25570"]);
    }
}
