//! The lists as tables.

use super::{
    style::Colour,
    table::{Cell, Column, NONE, Table},
    units,
};
use crate::{
    control::api::{Backend, BackendState, Block, Connection, Route, RouteSource},
    spec::{Choice, ProxyProtocol, Redirect, Target},
};

/// Where a route leads, in one word.
pub(super) fn target(to: &Target) -> String {
    match to {
        Target::One(one) => one.to_string(),
        Target::Refuse => Target::REFUSE.to_owned(),
        Target::Many(many) => many.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    }
}

pub(super) fn routes(routes: &[Route]) -> Table {
    let mut table = Table::new([
        Column::text("HOST"),
        Column::text("LISTENER").detail(),
        Column::text("TO"),
        Column::text("SOURCE"),
        Column::text("PROTOCOL").optional().detail(),
        Column::text("ALPN").optional().detail(),
        Column::text("FROM").optional().detail(),
        Column::text("ALLOW").optional().detail(),
        Column::text("DENY").optional().detail(),
        Column::text("REDIRECT").optional().detail(),
        Column::text("PROXY").optional().detail(),
        Column::text("DATAPATH").optional().detail(),
        Column::number("CONNECTIONS"),
        Column::number("UP"),
        Column::number("DOWN"),
    ]);
    for route in routes {
        table.row([
            route.host.to_string().into(),
            Cell::list(&route.listener, "all"),
            target(&route.to).into(),
            match route.source {
                RouteSource::File => "file",
                RouteSource::Runtime => "runtime",
            }
            .into(),
            Cell::list(&route.protocol, NONE),
            Cell::list(&route.alpn, NONE),
            Cell::list(&route.from, NONE),
            Cell::list(&route.allow, NONE),
            Cell::list(&route.deny, NONE),
            match route.redirect {
                Redirect::Off => NONE,
                Redirect::Https => "https",
            }
            .into(),
            match route.proxy_protocol {
                ProxyProtocol::Off => NONE,
                ProxyProtocol::V1 => "v1",
                ProxyProtocol::V2 => "v2",
            }
            .into(),
            if route.datapath == Choice::Auto { NONE.into() } else { route.datapath.name().into() },
            of_limit(route.connections, route.connections_limit).into(),
            units::bytes(route.bytes_up).into(),
            units::bytes(route.bytes_down).into(),
        ]);
    }
    table
}

pub(super) fn backends(backends: &[Backend]) -> Table {
    let mut table = Table::new([
        Column::text("POOL"),
        Column::text("TO"),
        Column::text("ADDRESS").detail(),
        Column::text("STATE"),
        Column::text("FOR"),
        Column::text("DEVICE").optional().detail(),
        Column::number("WEIGHT").detail(),
        Column::number("CONNECTIONS"),
        Column::number("UP"),
        Column::number("DOWN"),
        Column::number("RTT").detail(),
        Column::text("REASON").optional().detail(),
        Column::text("LAST ERROR").optional().detail(),
    ]);
    for backend in backends {
        let weight =
            if backend.backup { format!("{} backup", backend.weight) } else { backend.weight.to_string() };
        table.row([
            (&*backend.pool).into(),
            backend.to.to_string().into(),
            Cell::or_none(backend.address.as_deref()),
            match backend.state {
                BackendState::Up => Cell::coloured("up", Colour::Green),
                BackendState::Unchecked => "unchecked".into(),
                BackendState::Down => Cell::coloured("down", Colour::Red),
                BackendState::Drained => Cell::coloured("drained", Colour::Yellow),
            },
            units::since(backend.since).into(),
            Cell::or_none(backend.device.as_deref()),
            weight.into(),
            of_limit(backend.connections, backend.connections_limit).into(),
            units::bytes(backend.bytes_up).into(),
            units::bytes(backend.bytes_down).into(),
            Cell::or_none(backend.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
            Cell::or_none(backend.reason.as_deref()),
            Cell::or_none(last_error(backend)),
        ]);
    }
    table
}

/// Connections, with how many there may be where that is limited.
fn of_limit(connections: u64, limit: usize) -> String {
    if limit == 0 { connections.to_string() } else { format!("{connections}/{limit}") }
}

/// The last failure, where it is not the reason that stands beside it.
fn last_error(backend: &Backend) -> Option<String> {
    let (error, at) = backend.last_error.as_deref().zip(backend.last_error_at)?;
    (backend.reason.as_deref() != Some(error)).then(|| format!("{} ago: {error}", units::since(at)))
}

pub(super) fn connections(connections: &[Connection]) -> Table {
    let mut table = Table::new([
        Column::number("ID"),
        Column::text("CLIENT"),
        Column::text("LISTENER").detail(),
        Column::text("HOST"),
        Column::text("BACKEND"),
        Column::text("DEVICE").optional().detail(),
        Column::text("DATAPATH").detail(),
        Column::number("AGE"),
        Column::number("IDLE").detail(),
        Column::number("UP"),
        Column::number("DOWN"),
    ]);
    for connection in connections {
        table.row([
            connection.id.to_string().into(),
            connection.client.to_string().into(),
            (&*connection.listener).into(),
            Cell::or_none(connection.host.as_ref()),
            connected_to(connection),
            Cell::or_none(connection.device.as_deref()),
            datapath(connection).into(),
            units::seconds(connection.age_seconds).into(),
            units::seconds(connection.idle_seconds).into(),
            units::bytes(connection.bytes_up).into(),
            units::bytes(connection.bytes_down).into(),
        ]);
    }
    table
}

/// The backend, and what it is good for by now where that is not everything.
fn connected_to(connection: &Connection) -> Cell {
    match (&connection.backend, connection.backend_state) {
        (Some(backend), Some(BackendState::Down)) => Cell::coloured(format!("{backend} (down)"), Colour::Red),
        (Some(backend), Some(BackendState::Drained)) => {
            Cell::coloured(format!("{backend} (drained)"), Colour::Yellow)
        }
        (backend, _) => Cell::or_none(backend.as_ref()),
    }
}

/// The tier that carries, and whether user space has taken over.
pub(super) fn datapath(connection: &Connection) -> String {
    let tier = connection.datapath.map_or(NONE, crate::spec::Tier::name);
    if connection.spilled { format!("{tier} (spilled)") } else { tier.to_owned() }
}

pub(super) fn blocks(blocks: &[Block]) -> Table {
    let mut table = Table::new([
        Column::text("CIDR"),
        Column::text("ENDS IN"),
        Column::number("PACKETS"),
        Column::text("SOURCE"),
    ]);
    for block in blocks {
        table.row([
            block.cidr.to_string().into(),
            block.until.map_or_else(|| "never".to_owned(), units::until).into(),
            block.packets.to_string().into(),
            (&*block.source).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const HOST: &str = "a-service-with-a-name-of-sixty-characters-in-all.example.com1";
    const CLIENT: &str = "[2001:db8:1234:5678:9abc:def0:1234:5678]:54321";
    const BACKEND: &str = "[fd7a:115c:a1e0:ab12:4843:cd96:6258:2]:8443";

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    /// At 80 columns no line is longer, and each of these texts is whole, so that it can be copied.
    fn fits(table: &Table, whole: &[&str]) {
        let lines = table.lines(false, Some(80));
        for line in &lines {
            assert!(line.len() <= 80, "{}: {line:?}", line.len());
        }
        for text in whole {
            assert!(lines.iter().any(|line| line.contains(text)), "{text} is not whole in {lines:#?}");
        }
        let piped = table.lines(false, None);
        assert_eq!(piped.len(), 2, "a row is a line where there is no terminal: {piped:#?}");
    }

    #[test]
    fn connections_fit_80_columns() {
        let connection = read(json!({
            "id": 123_456, "client": CLIENT, "listener": "https", "host": HOST, "alpn": ["h2"], "route": "*",
            "backend": BACKEND, "device": "wg0", "backend_state": "down", "datapath": "sockmap", "spilled": true,
            "age_seconds": 90_061.0, "idle_seconds": 3.0, "bytes_up": 1_234_567, "bytes_down": 5_678_901
        }));
        fits(
            &connections(&[connection]),
            &["123456", HOST, CLIENT, BACKEND, "(down)", "sockmap (spilled)", "5.4 MiB"],
        );
    }

    #[test]
    fn routes_fit_80_columns() {
        let route = read(json!({
            "host": HOST, "listener": ["https"], "to": [BACKEND, "192.0.2.1:443"], "source": "runtime",
            "alpn": ["h2", "http/1.1"], "from": ["2001:db8::/32"], "proxy_protocol": "v2", "datapath": "auto",
            "connections": 5, "connections_limit": 10, "bytes_up": 1_234_567, "bytes_down": 5_678_901
        }));
        fits(&routes(&[route]), &[HOST, BACKEND, "runtime", "2001:db8::/32", "5/10", "5.4 MiB"]);
    }

    #[test]
    fn backends_fit_80_columns() {
        let backend = read(json!({
            "pool": "caddy", "to": BACKEND, "address": BACKEND, "state": "down", "since": "2023-11-14T22:13:20Z",
            "reason": "the tunnel wg0 has had no handshake for ten minutes, and nothing answers behind it",
            "device": "wg0", "weight": 1, "backup": true, "connections": 5, "bytes_up": 1, "bytes_down": 2,
            "rtt_ms": 21.5
        }));
        fits(&backends(&[backend]), &["caddy", BACKEND, "down", "1 backup", "handshake", "21.5 ms"]);
    }
}
