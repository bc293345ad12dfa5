//! `edgectl routes`: listed, added, removed, and tested with the reasons.

use std::io;

use super::{
    Client, Failure, Output, arguments,
    arguments::{Routes, When},
    export, filter, lists,
    progress::Progress,
    show,
    style::{self, Colour, printable},
    table::{Cell, Column, NONE, Table},
    units,
};
use crate::{
    control::api::{
        AddRoute, AddedRoutes, CheckStatus, Probe, RemoveRoute, RemovedRoutes, Route, RouteSource, RouteTest,
        TestRoute, parse_target,
    },
    spec::Target,
};

pub(super) async fn run(command: Routes, daemon: &Client, output: Output) -> Result<(), Failure> {
    match command {
        Routes::List(filter) => {
            let answer = daemon.get("/v1/routes").await?;
            filter::show(output, &answer, |route: &Route| filter.takes(route), filter.limit, lists::routes)
        }
        Routes::Export => {
            let answer = daemon.get("/v1/routes").await?;
            if output.json {
                let added = |route: &Route| route.source == RouteSource::Runtime;
                return filter::show(output, &answer, added, None, lists::routes);
            }
            let toml = export::toml(&answer.read::<Vec<Route>>()?).map_err(io::Error::other)?;
            Ok(style::write(toml.as_bytes())?)
        }
        Routes::Add(route) => {
            let answer = daemon.post("/v1/routes", &to_add(route)?).await?;
            show(output, &answer, |added: &AddedRoutes| added.all().iter().map(added_route).collect())
        }
        Routes::Remove(route) => {
            let answer = daemon.delete("/v1/routes", &to_remove(route)).await?;
            show(output, &answer, removed)
        }
        Routes::Test(client) => test(client, daemon, output).await,
    }
}

fn added_route(Route { host, to, .. }: &Route) -> String {
    match to {
        Target::Refuse => format!("clients of {host} are refused"),
        to => format!("{host} leads to {}", printable(&lists::target(to))),
    }
}

fn to_add(route: arguments::AddRoute) -> Result<AddRoute, Failure> {
    let to = parse_target(&route.to).map_err(|error| Failure::Usage(error.to_string()))?;
    let When { listener, protocol, alpn, from } = route.when;
    Ok(AddRoute {
        host: route.host.0,
        to,
        listener,
        protocol: protocol.into_iter().map(Into::into).collect(),
        alpn,
        from,
        allow: route.allow,
        deny: route.deny,
        redirect: route.redirect.into(),
        connections: route.connections,
        proxy_protocol: route.proxy_protocol.into(),
        proxy_tlvs: route.proxy_tlv,
        datapath: route.datapath.into(),
        replace: route.replace,
    })
}

fn to_remove(route: arguments::RemoveRoute) -> RemoveRoute {
    fn given<T>(list: Vec<T>) -> Option<Vec<T>> {
        (!list.is_empty()).then_some(list)
    }
    let When { listener, protocol, alpn, from } = route.when;
    RemoveRoute {
        host: route.host.0,
        listener: given(listener),
        protocol: given(protocol.into_iter().map(Into::into).collect()),
        alpn: given(alpn),
        from: given(from),
        close: route.close,
    }
}

fn removed(removed: &RemovedRoutes) -> Vec<String> {
    let mut lines: Vec<_> = (removed.removed.iter())
        .map(|route| format!("removed {} to {}", route.host, printable(&lists::target(&route.to))))
        .collect();
    if removed.closed > 0 {
        lines.push(format!("closed {}", units::count(removed.closed, "connection")));
    }
    lines
}

async fn test(client: arguments::TestRoute, daemon: &Client, output: Output) -> Result<(), Failure> {
    let arguments::TestRoute { host, protocol, alpn, from, listener, probe } = client;
    let request = TestRoute { host: host.0, protocol: protocol.map(Into::into), alpn, from, listener, probe };
    let call = daemon.post("/v1/routes/test", &request);
    let answer = if probe {
        Progress::new(output).during("walking the way to the backends", call).await?
    } else {
        call.await?
    };
    let test: RouteTest = answer.read()?;
    show(output, &answer, |test| lines(test, output))?;
    let broken = test.probe.iter().flatten().any(|probe| probe.status == CheckStatus::Fail);
    // That no route matches is an answer like another; a way that is broken is not.
    if broken { Err(Failure::Found) } else { Ok(()) }
}

fn lines(test: &RouteTest, output: Output) -> Vec<String> {
    let host = test.host.as_ref().map_or("a client that names no host", |host| host.as_str());
    let mut lines = vec![format!(
        "{} on {}: {}",
        output.paint(host, Colour::Bold),
        test.listener,
        printable(&test.outcome)
    )];
    if !test.considered.is_empty() {
        let mut table = Table::new([
            Column::text(" "),
            Column::text("ROUTE"),
            Column::text("LISTENER"),
            Column::text("PROTOCOL").optional(),
            Column::text("ALPN").optional(),
            Column::text("FROM").optional(),
            Column::text("TO"),
            Column::text("REASON"),
        ]);
        for route in &test.considered {
            table.row([
                if route.wins { Cell::coloured(">", Colour::Green) } else { " ".into() },
                route.host.to_string().into(),
                Cell::list(&route.listener, "all"),
                Cell::list(&route.protocol, NONE),
                Cell::list(&route.alpn, NONE),
                Cell::list(&route.from, NONE),
                lists::target(&route.to).into(),
                route.reason.as_str().into(),
            ]);
        }
        lines.push(String::new());
        lines.extend(table.lines(output.colours, output.width));
    }
    if !test.backends.is_empty() {
        lines.push(String::new());
        lines.extend(lists::backends(&test.backends).lines(output.colours, output.width));
    }
    for probe in test.probe.iter().flatten() {
        lines.push(String::new());
        lines.extend(probe_lines(probe, output));
    }
    lines
}

fn probe_lines(probe: &Probe, output: Output) -> Vec<String> {
    let address = probe.address.as_deref().map(|address| format!(" ({address})")).unwrap_or_default();
    let mut lines = vec![format!("probe of {}{}", probe.to, printable(&address))];
    for step in &probe.steps {
        let time = step.duration_ms.map(|ms| format!(" ({ms:.1} ms)")).unwrap_or_default();
        let (word, colour) = status(step.status);
        let word = output.paint(&format!("{word:4}"), colour);
        lines.push(format!("  {word}  {:11} {}{time}", step.name, printable(&step.message)));
        lines.extend(step.remedy.as_ref().map(|remedy| format!("        -> {}", printable(remedy))));
    }
    lines
}

/// How a check went, in a word and its colour.
pub(super) fn status(status: CheckStatus) -> (&'static str, Colour) {
    match status {
        CheckStatus::Ok => ("ok", Colour::Green),
        CheckStatus::Skip => ("skip", Colour::Dim),
        CheckStatus::Warn => ("warn", Colour::Yellow),
        CheckStatus::Fail => ("fail", Colour::Red),
    }
}
