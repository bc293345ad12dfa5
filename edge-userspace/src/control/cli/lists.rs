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
        Column::text("LISTENER"),
        Column::text("TO"),
        Column::text("SOURCE"),
        Column::text("PROTOCOL").optional(),
        Column::text("ALPN").optional(),
        Column::text("FROM").optional(),
        Column::text("ALLOW").optional(),
        Column::text("DENY").optional(),
        Column::text("REDIRECT").optional(),
        Column::text("PROXY").optional(),
        Column::text("DATAPATH").optional(),
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
        Column::text("ADDRESS"),
        Column::text("STATE"),
        Column::text("FOR"),
        Column::text("DEVICE").optional(),
        Column::number("WEIGHT"),
        Column::number("CONNECTIONS"),
        Column::number("UP"),
        Column::number("DOWN"),
        Column::number("RTT"),
        Column::text("REASON").optional(),
        Column::text("LAST ERROR").optional(),
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
        Column::text("LISTENER"),
        Column::text("HOST"),
        Column::text("BACKEND"),
        Column::text("DEVICE").optional(),
        Column::text("DATAPATH"),
        Column::number("AGE"),
        Column::number("IDLE"),
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
