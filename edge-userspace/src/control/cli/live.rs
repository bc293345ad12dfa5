//! Candidates for shell completion from the running daemon: hosts, backends, connections, blocks.
//!
//! Errors are not shown: if the daemon does not answer in time, there are no candidates.

use std::{collections::BTreeSet, ffi::OsString, path::PathBuf, time::Duration};

use clap_complete::CompletionCandidate;
use serde::de::DeserializeOwned;

use super::arguments::CONTROL;
use crate::{
    control::{
        api::{Backend, Block, Connection, Route, RouteSource, Status},
        client::Client,
    },
    spec::HostPattern,
};

/// The operator waits for each press of the tab key.
const PATIENCE: Duration = Duration::from_secs(1);

/// Hosts of the routes that can be removed: those added at run time.
pub(super) fn added_hosts() -> Vec<CompletionCandidate> {
    hosts(|route| route.source == RouteSource::Runtime)
}

/// Names that a client may ask for: the hosts that are no patterns.
pub(super) fn exact_hosts() -> Vec<CompletionCandidate> {
    hosts(|route| matches!(route.host, HostPattern::Exact(_)))
}

/// Names that live connections asked for.
pub(super) fn hosts_asked_for() -> Vec<CompletionCandidate> {
    let all: Vec<Connection> = ask("/v1/connections").unwrap_or_default();
    let hosts = all.iter().filter_map(|connection| connection.host.as_ref());
    distinct(hosts.map(|host| (host.to_string(), "host".to_owned())))
}

fn hosts(wanted: impl Fn(&Route) -> bool) -> Vec<CompletionCandidate> {
    let routes: Vec<Route> = ask("/v1/routes").unwrap_or_default();
    let wanted = routes.iter().filter(|route| wanted(route));
    distinct(wanted.map(|route| (route.host.to_string(), format!("to {}", route.to))))
}

/// The targets for a route: the pools and the backends that are there.
pub(super) fn targets() -> Vec<CompletionCandidate> {
    let mut all = pools();
    all.extend(backends());
    all
}

/// Backends, as they are written.
pub(super) fn backends() -> Vec<CompletionCandidate> {
    distinct(all_backends().iter().map(|backend| (backend.to.to_string(), format!("in {}", backend.pool))))
}

/// Pools with a name; the pool of a route with addresses is called as these.
pub(super) fn pools() -> Vec<CompletionCandidate> {
    distinct(all_backends().iter().map(|backend| (backend.pool.to_string(), "pool".to_owned())))
}

fn all_backends() -> Vec<Backend> {
    ask("/v1/backends").unwrap_or_default()
}

/// Connections by their number.
pub(super) fn connections() -> Vec<CompletionCandidate> {
    let all: Vec<Connection> = ask("/v1/connections").unwrap_or_default();
    distinct(all.iter().map(|connection| {
        let host = connection.host.as_ref().map(|host| format!(" to {host}")).unwrap_or_default();
        (connection.id.to_string(), format!("{}{host}", connection.client))
    }))
}

/// Blocked prefixes.
pub(super) fn blocks() -> Vec<CompletionCandidate> {
    let all: Vec<Block> = ask("/v1/blocks").unwrap_or_default();
    distinct(all.iter().map(|block| (block.cidr.to_string(), format!("{} packets dropped", block.packets))))
}

/// Listeners.
pub(super) fn listeners() -> Vec<CompletionCandidate> {
    let listeners = ask::<Status>("/v1/status").map(|status| status.listeners).unwrap_or_default();
    distinct(listeners.iter().map(|listener| (listener.name.to_string(), "listener".to_owned())))
}

/// Each value once, with the first description.
fn distinct(values: impl Iterator<Item = (String, String)>) -> Vec<CompletionCandidate> {
    let mut seen = BTreeSet::new();
    values
        .filter(|(value, _)| seen.insert(value.clone()))
        .map(|(value, help)| CompletionCandidate::new(value).help(Some(help.into())))
        .collect()
}

/// What the control API has at a path; `None` if the daemon cannot be asked.
fn ask<T: DeserializeOwned>(path: &str) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let daemon = Client::new(socket(std::env::args_os()));
    let answer = async { daemon.get(path).await?.read() };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await }).ok()?.ok()
}

/// The control socket that a command line names. clap cannot parse the line, which is incomplete.
fn socket(arguments: impl Iterator<Item = OsString>) -> PathBuf {
    let mut arguments = arguments.map(|argument| argument.to_string_lossy().into_owned());
    while let Some(argument) = arguments.next() {
        let named = match argument.strip_prefix("--control") {
            Some("") => arguments.next(),
            Some(rest) => rest.strip_prefix('=').map(str::to_owned),
            None => None,
        };
        if let Some(socket) = named {
            return socket.into();
        }
    }
    CONTROL.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_may_name_another_socket() {
        let named = |line: &str| socket(line.split(' ').map(OsString::from));
        assert_eq!(named("edgectl -- edgectl routes remove "), PathBuf::from(CONTROL));
        assert_eq!(named("edgectl -- edgectl --control /a backends drain "), PathBuf::from("/a"));
        assert_eq!(named("edgectl -- edgectl block --control=/b remove "), PathBuf::from("/b"));
        assert_eq!(named("edgectl -- edgectl --control"), PathBuf::from(CONTROL));
    }
}
