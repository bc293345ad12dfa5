//! `edgectl doctor` on backends: walks the path to each as `edgectl routes test --probe` does, and reports the first
//! step that fails with the remedy of its cause.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};

use crate::{
    connection::{Destination, Running},
    control::api::{self, Check, CheckStatus, Probe, ProbeStep},
    daemon::{
        probe::{HEADER, HELLO, LARGE_HELLO, walk},
        status,
    },
    pool::{Backend, BackendState, check::Plan},
    shield::Blocked,
    spec::{Ask, ClientProtocol, HealthSpec, HostName, HostPattern, ListenerSpec, Protocol},
};

/// Backends that are connected to for one report; each takes a few connections.
pub(super) const MOST: usize = 64;
/// How many at once.
pub(super) const AT_ONCE: usize = 16;
/// How long one step may take, whatever the pool's health check allows.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long one path may take; a dozen steps that all wait are not worth more.
const A_PATH: Duration = Duration::from_secs(15);

/// A backend, a destination that leads to it, and how its clients ask.
pub(super) struct Home {
    pub(super) backend: Arc<Backend>,
    pub(super) destination: Arc<Destination>,
    pub(super) ask: Ask,
    pub(super) plan: Plan,
}

/// The backends of all destinations: each path once per route, in the order of the routes, then those of tcp listeners.
pub(super) fn homes(running: &Running) -> Vec<Home> {
    let mut listeners: Vec<_> = running.listeners.values().collect();
    // A route for every listener is asked as its TLS clients do.
    listeners
        .sort_by_key(|listener| (listener.spec.protocol != Protocol::Tls, Arc::clone(&listener.spec.name)));
    let mut homes = Vec::new();
    let mut add = |destination: &Arc<Destination>, ask: Ask, port: u16, host: Option<&HostName>| {
        let pool = &destination.pool;
        homes.extend(pool.backends().iter().map(|backend| Home {
            backend: Arc::clone(backend),
            destination: Arc::clone(destination),
            ask,
            plan: Plan {
                health: HealthSpec { timeout: pool.health().timeout.min(PATIENCE), ..*pool.health() },
                asks: vec![ask],
                port,
                server_name: host.cloned(),
                proxy_protocol: destination.proxy_protocol,
            },
        }));
    };
    let port = |spec: &ListenerSpec| spec.bind.first().map_or(443, SocketAddr::port);
    for rule in &running.routes {
        let conditions = &rule.conditions;
        let heard = listeners.iter().filter(|listener| conditions.hear(&listener.spec.name));
        let spoken =
            heard.flat_map(|listener| listener.spec.speaks().iter().map(move |&spoken| (listener, spoken)));
        let mut taken = spoken.filter(|(_, spoken)| conditions.take(*spoken));
        let Some((listener, spoken)) = taken.next() else { continue };
        add(&rule.target, Ask::of(spoken), port(&listener.spec), exact(&conditions.host));
    }
    for listener in &listeners {
        if let Some(destination) = &listener.destination {
            add(destination, Ask::of(ClientProtocol::Any), port(&listener.spec), None);
        }
    }
    homes
}

/// The name of a route for one host. For other routes none is invented: a server may request a certificate
/// for it.
pub(super) fn exact(host: &HostPattern) -> Option<&HostName> {
    match host {
        HostPattern::Exact(name) => Some(name),
        HostPattern::Below(_) | HostPattern::Any => None,
    }
}

/// Walks the path to each backend once for each header that it is sent; passes on the findings as they come, in the order
/// of the routes.
pub(super) async fn walks(homes: &[Home], blocked: &[Blocked], found: &mut (impl FnMut(Check) + Send)) {
    let mut seen = HashSet::new();
    let distinct: Vec<_> =
        homes.iter().filter(|home| seen.insert((home.backend.id(), home.plan.proxy_protocol))).collect();
    let all = distinct.len();
    let walked: Vec<_> = distinct.into_iter().take(MOST).map(|home| one(home, blocked)).collect();
    let mut walked = stream::iter(walked).buffered(AT_ONCE);
    while let Some(checks) = walked.next().await {
        checks.into_iter().for_each(&mut *found);
    }
    if all > MOST {
        let message = format!(
            "{MOST} of {all} backends were connected to; `edgectl routes test HOST --probe` tries others"
        );
        found(Check::new("backends", CheckStatus::Skip, message));
    }
}

async fn one(home: &Home, blocked: &[Blocked]) -> Vec<Check> {
    let walked = tokio::time::timeout(A_PATH, walk(&home.backend, &home.plan, blocked)).await;
    let id = home.backend.id().to_string();
    let state = (home.backend.state(), status::backend(&home.backend));
    let Ok(probe) = walked else {
        let message = format!("its path was not walked to its end within {} s", A_PATH.as_secs());
        return vec![Check::new(format!("backend {id}"), CheckStatus::Warn, message)];
    };
    judge(&id, state.0, &state.1, &probe)
}

/// The findings about one backend. Pure.
fn judge(id: &str, state: BackendState, shown: &api::Backend, probe: &Probe) -> Vec<Check> {
    let step = |name: &str| probe.steps.iter().find(|step| &*step.name == name);
    let answers = [HELLO, LARGE_HELLO, HEADER];
    let path = |step: &&ProbeStep| !answers.contains(&&*step.name) && step.status == CheckStatus::Fail;
    let name = format!("backend {id}");
    if let Some(broken) = probe.steps.iter().find(path) {
        // A drained backend has no clients: it may be down because somebody works on it.
        let status = if state == BackendState::Drained { CheckStatus::Warn } else { CheckStatus::Fail };
        return vec![of_step(name, status, &broken.message, broken)];
    }
    let mut checks = vec![of_state(name, state, shown)];
    checks.extend(
        probe
            .steps
            .iter()
            .filter(|step| &*step.name == "peer" && step.status == CheckStatus::Warn)
            .map(|peer| of_step(format!("WireGuard peer of {id}"), peer.status, &peer.message, peer)),
    );
    match (step(HELLO), step(LARGE_HELLO), step(HEADER)) {
        (_, Some(large), _) if large.status == CheckStatus::Fail => checks.push(of_step(
            format!("hello to {id}"),
            CheckStatus::Fail,
            "a ClientHello of 2.4 kB in small packets is answered, in large ones it is lost: they vanish on the way",
            large,
        )),
        // The header explains the hello.
        (_, _, Some(header)) if header.status == CheckStatus::Fail => {}
        (_, Some(large), _) if large.status == CheckStatus::Ok => checks.push(Check::new(
            format!("hello to {id}"),
            CheckStatus::Ok,
            "a ClientHello of 2.4 kB, as browsers send it, is answered",
        )),
        (_, Some(large), _) => {
            checks.push(of_step(format!("hello to {id}"), large.status, &large.message, large));
        }
        (Some(hello), None, _) => {
            checks.push(of_step(format!("hello to {id}"), hello.status, &hello.message, hello));
        }
        (None, None, _) => {}
    }
    checks.extend(
        step(HEADER)
            .map(|header| of_step(format!("PROXY header for {id}"), header.status, &header.message, header)),
    );
    checks
}

fn of_step(name: String, status: CheckStatus, message: &str, step: &ProbeStep) -> Check {
    let check = Check::new(name, status, message);
    match &step.remedy {
        Some(remedy) => check.remedy(remedy),
        None => check,
    }
}

/// The state of a backend whose path is in order, or cannot be walked.
fn of_state(name: String, state: BackendState, shown: &api::Backend) -> Check {
    let reason = shown.reason.clone().unwrap_or_else(|| "in order".into());
    let failing = shown.last_error.as_ref().filter(|_| shown.last_error_at > shown.last_success_at);
    match (state, failing) {
        (BackendState::Up | BackendState::Unchecked, Some(error)) => {
            let message = format!("accepts connections now; the last one before failed: {error}");
            Check::new(name, CheckStatus::Warn, message)
                .remedy("`edgectl routes test HOST --probe` if it happens again; `journalctl -u edged` has the times")
        }
        (BackendState::Up, None) => Check::new(name, CheckStatus::Ok, reason),
        (BackendState::Unchecked, None) => {
            Check::new(name, CheckStatus::Ok, "accepts connections; no check watches it, and no client has come yet")
        }
        (BackendState::Drained, _) => Check::new(name, CheckStatus::Warn, reason)
            .remedy(format!("`edgectl backends ready {}`", shown.to)),
        (BackendState::Down, _) => {
            Check::new(name, CheckStatus::Warn, format!("accepts connections now, but is down: {reason}")).remedy(
                "wait for the next checks, which bring it back; if they do not, `health.kind` asks what it does not answer",
            )
        }
    }
}

#[cfg(test)]
mod tests;
