//! `edgectl config`: a file checked here, and the daemon told to read its own again.

use std::path::Path;

use serde::Serialize;

use super::{
    Client, Failure, Output, show,
    style::{self, Colour, printable},
    units,
};
use crate::{
    config::{Changes, Problem, Settings},
    control::api::{ConcernedConnections, ReloadPlan, ReloadReport},
};

/// The output of `config check --json`.
#[derive(Serialize)]
struct Checked<'a> {
    file: String,
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    listeners: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pools: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<usize>,
    problems: &'a [Problem],
    /// Warnings about what is valid and probably not intended.
    warnings: Vec<String>,
    /// Problems beyond those listed.
    more: usize,
}

pub(super) fn check(file: &Path, output: Output) -> Result<(), Failure> {
    let name = file.display().to_string();
    let settings = Settings::load(file);
    if output.json {
        let (found, problems, more) = match &settings {
            Ok(settings) => (Some(settings), &[][..], 0),
            Err(error) => (None, &*error.problems, error.more),
        };
        let checked = Checked {
            file: name,
            valid: found.is_some(),
            listeners: found.map(|settings| settings.listeners.len()),
            pools: found.map(|settings| settings.pools.len()),
            routes: found.map(|settings| settings.routes.len()),
            problems,
            warnings: found.map(|settings| settings.warnings(&[])).unwrap_or_default(),
            more,
        };
        style::write_lines([serde_json::to_string(&checked).map_err(std::io::Error::other)?])?;
        return if checked.valid { Ok(()) } else { Err(Failure::Found) };
    }
    match settings {
        Ok(settings) => {
            let warnings = settings.warnings(&[]);
            let warnings = warnings.iter().map(|warning| warned(output, warning));
            let Settings { listeners, pools, routes, .. } = &settings;
            let counts =
                [(listeners.len(), "listener"), (pools.len(), "pool"), (routes.len(), "route")].map(count);
            let valid = format!("{name}: {}, {}", output.paint("valid", Colour::Green), counts.join(", "));
            Ok(style::write_lines(std::iter::once(valid).chain(warnings))?)
        }
        Err(error) => Err(Failure::Invalid(error)),
    }
}

pub(super) async fn reload(daemon: &Client, output: Output) -> Result<(), Failure> {
    let answer = daemon.post("/v1/reload", &serde_json::Map::new()).await?;
    show(output, &answer, |report: &ReloadReport| {
        let counts =
            [(report.listeners, "listener"), (report.pools, "pool"), (report.routes, "route")].map(count);
        let mut lines = vec![format!("reloaded: {}", counts.join(", "))];
        lines.extend(report.warnings.iter().map(|warning| warned(output, warning)));
        lines
    })
}

/// What a reload would change; the exit status is 0 as well where that is something.
pub(super) async fn plan(daemon: &Client, output: Output) -> Result<(), Failure> {
    let answer = daemon.get("/v1/reload").await?;
    show(output, &answer, |plan: &ReloadPlan| planned(plan, output))
}

fn planned(plan: &ReloadPlan, output: Output) -> Vec<String> {
    let Changes { listeners, pools, routes, settings } = &plan.changes;
    let mut lines = Vec::new();
    for (kind, items) in [("listener", listeners), ("pool", pools), ("route", routes)] {
        let mut say = |sign: &str, name: &str, keys: &str, colour| {
            lines.push(printable(&format!("{sign} {kind} {name}{keys}")).into_owned());
            if let Some(line) = lines.last_mut() {
                *line = output.paint(line, colour);
            }
        };
        items.added.iter().for_each(|name| say("+", name, "", Colour::Green));
        items.removed.iter().for_each(|name| say("-", name, "", Colour::Red));
        for item in &items.changed {
            say("~", &item.name, &format!(": {}", item.keys.join(", ")), Colour::Yellow);
        }
    }
    lines.extend(settings.iter().map(|key| output.paint(&format!("~ {key}"), Colour::Yellow)));
    if lines.is_empty() {
        lines.push("a reload would change nothing".to_owned());
    }
    let ConcernedConnections { ended, kept } = plan.connections;
    if ended > 0 {
        let count = units::count(ended, "connection");
        lines.push(output.paint(&format!("{count} would be ended: their clients are refused"), Colour::Red));
    }
    if kept > 0 {
        let count = units::count(kept, "connection");
        lines.push(format!("{count} would go on, on listeners or routes that change"));
    }
    lines.extend(plan.warnings.iter().map(|warning| warned(output, warning)));
    lines.push("nothing was applied".to_owned());
    lines
}

fn warned(output: Output, warning: &str) -> String {
    format!("{} {warning}", output.paint("warning:", Colour::Yellow))
}

fn count<N: std::fmt::Display + PartialEq + From<u8>>((number, thing): (N, &str)) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{plural}")
}
