//! The problems of this moment, as far as memory tells: each with its cause and its remedy. `edgectl doctor`
//! also tries things out.

use std::collections::BTreeMap;

use crate::{
    control::api::{Backend, BackendState, BindTrouble, Check, CheckStatus, Route, Status},
    spec::{HostPattern, Target},
};

/// Every problem, the worst first.
pub(super) fn find(status: &Status, routes: &[Route], backends: &[Backend]) -> Vec<Check> {
    let mut found: Vec<_> = daemon(status)
        .into_iter()
        .chain(listeners(status))
        .chain(troubles(status))
        .chain(limits(status))
        .chain(pools(routes, backends))
        .collect();
    found.sort_by_key(|check| std::cmp::Reverse(check.status));
    found
}

fn daemon(status: &Status) -> Vec<Check> {
    let mut found = Vec::new();
    if status.draining {
        found.push(
            Check::new("edged", CheckStatus::Fail, "it is ending and takes no new connections")
                .remedy("nothing, if it was told to end or to restart; otherwise `systemctl start edge`"),
        );
    }
    let reload = status.config.last_reload.as_ref().filter(|reload| !reload.successful);
    if let Some(reload) = reload {
        let cause = reload.error.clone().unwrap_or_default();
        let remedy = format!(
            "mend {} and run `edgectl reload`; until then the configuration before it is in effect",
            status.config.path.display()
        );
        found.push(Check::new("configuration", CheckStatus::Fail, cause).remedy(remedy));
    }
    found
}

fn listeners(status: &Status) -> impl Iterator<Item = Check> {
    let all =
        status.listeners.iter().flat_map(|listener| listener.troubles.iter().map(move |at| (listener, at)));
    all.map(|(listener, BindTrouble { bind, listening, reason })| {
        let (level, remedy) = if *listening {
            (CheckStatus::Warn, "give this machine the address; clients are accepted as soon as it appears")
        } else {
            (
                CheckStatus::Fail,
                "`ss -ltnp` shows who has the port: stop that program; edged tries again by itself",
            )
        };
        Check::new(format!("listener {} on {bind}", listener.name), level, reason.as_str()).remedy(remedy)
    })
}

/// The troubles of other parts; a line begins with the name of the part.
fn troubles(status: &Status) -> impl Iterator<Item = Check> {
    let others = status.troubles.iter().filter(|line| !line.starts_with("listener "));
    others.map(|line| {
        let (part, cause) = line.split_once(": ").unwrap_or(("edged", line));
        Check::new(part, CheckStatus::Warn, cause).remedy("`edgectl doctor` says what to do")
    })
}

fn limits(status: &Status) -> Vec<Check> {
    let nearly = |now: u64, limit: u64| limit > 0 && u128::from(now) * 10 >= u128::from(limit) * 9;
    let level = |now, limit| if now >= limit { CheckStatus::Fail } else { CheckStatus::Warn };
    let mut found = Vec::new();
    let connections = status.connections;
    if nearly(connections.now, connections.limit) {
        let cause =
            format!("{} of at most {}: further clients are reset", connections.now, connections.limit);
        let check = Check::new("connections", level(connections.now, connections.limit), cause);
        found.push(check.remedy("raise LimitNOFILE= of the service and limits.connections, or `edgectl block add` a source that holds many"));
    }
    if let Some(conntrack) = status.conntrack
        && nearly(conntrack.entries, conntrack.limit)
    {
        let cause = format!(
            "the kernel tracks {} of at most {} connections, and drops packets of new ones beyond",
            conntrack.entries, conntrack.limit
        );
        let check = Check::new("connection tracking", level(conntrack.entries, conntrack.limit), cause);
        let double = conntrack.limit.saturating_mul(2);
        found.push(check.remedy(format!("`sysctl -w net.netfilter.nf_conntrack_max={double}`")));
    }
    found
}

/// Backends that are down or fail, and pools in which none is left.
fn pools(routes: &[Route], backends: &[Backend]) -> Vec<Check> {
    let mut pools: BTreeMap<&str, Vec<&Backend>> = BTreeMap::new();
    for backend in backends {
        pools.entry(&backend.pool).or_default().push(backend);
    }
    let mut found = Vec::new();
    for (pool, backends) in pools {
        let takes = |backend: &&Backend| matches!(backend.state, BackendState::Up | BackendState::Unchecked);
        let left = backends.iter().copied().filter(takes).count();
        if left == 0 && backends.iter().all(|backend| backend.state == BackendState::Drained) {
            let name = format!("pool {pool}");
            let remedy = format!("`edgectl backends ready {}` brings it back", backends[0].to);
            found.push(
                Check::new(name, CheckStatus::Fail, "every backend is drained: its clients are refused")
                    .remedy(remedy),
            );
        }
        let remedy = |backend| remedy(backend, routes);
        for backend in backends {
            let error = || backend.last_error.clone().or_else(|| backend.reason.clone());
            let check = match backend.state {
                BackendState::Down => {
                    let cause =
                        backend.reason.clone().or_else(error).unwrap_or_else(|| "it does not work".into());
                    let (level, rest) = match left {
                        0 => (CheckStatus::Fail, "no backend of the pool is left: its clients are refused"),
                        _ => (CheckStatus::Warn, "the others of the pool take its clients"),
                    };
                    Check::new(name(backend), level, format!("{cause}; {rest}"))
                }
                BackendState::Up | BackendState::Unchecked
                    if backend.last_error_at > backend.last_success_at =>
                {
                    let cause = error().unwrap_or_default();
                    Check::new(
                        name(backend),
                        CheckStatus::Warn,
                        format!("the last connection failed: {cause}"),
                    )
                }
                _ => continue,
            };
            found.push(check.remedy(remedy(backend)));
        }
    }
    found
}

fn name(backend: &Backend) -> String {
    let to = backend.to.to_string();
    if *to == *backend.pool { format!("backend {to}") } else { format!("backend {to} of {}", backend.pool) }
}

fn remedy(backend: &Backend, routes: &[Route]) -> String {
    let tunnel = match &backend.device {
        Some(device) => format!("the tunnel {device} is up"),
        None => "the tunnel is up".to_owned(),
    };
    // A name whose path can be tried as it is.
    let leads = |route: &&Route| match &route.to {
        Target::One(to) => *to == backend.pool,
        Target::Many(all) => all.contains(&backend.to),
        Target::Refuse => false,
    };
    let host = routes.iter().filter(leads).find_map(|route| match &route.host {
        HostPattern::Exact(name) => Some(name.to_string()),
        _ => None,
    });
    let host = host.as_deref().unwrap_or("NAME");
    format!(
        "see that the service runs at home and that {tunnel}; `edgectl routes test {host} --probe` shows the step that fails"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const EARLY: &str = "2026-01-01T00:00:00Z";
    const LATE: &str = "2026-01-01T00:01:00Z";

    /// A status without a problem, except for these fields.
    fn status(change: impl FnOnce(&mut serde_json::Value)) -> Status {
        let mut status = json!({
            "version": "0.1.0", "pid": 1, "started": EARLY, "uptime_seconds": 1.0, "draining": false,
            "config": {"path": "/etc/edge/edge.toml", "loaded": EARLY, "last_reload": null},
            "datapath": {"allowed": "auto", "tiers": []}, "listeners": [], "troubles": [],
            "connections": {"now": 1, "total": 1, "limit": 100}, "bytes_up": 0, "bytes_down": 0, "rejected": {},
            "routes": {"file": 0, "runtime": 0}, "backends": {"up": 0, "down": 0, "drained": 0}, "blocked_packets": 0,
        });
        change(&mut status);
        serde_json::from_value(status).unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "callers make the value in place")]
    fn backend(to: &str, change: serde_json::Value) -> Backend {
        let mut backend = json!({
            "pool": "caddy", "to": to, "address": to, "state": "up", "since": EARLY, "reason": null, "last_error": null,
            "last_error_at": null, "last_success_at": LATE, "device": "wg0", "weight": 1, "backup": false, "connections": 0,
            "bytes_up": 0, "bytes_down": 0, "rtt_ms": null,
        });
        backend.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        serde_json::from_value(backend).unwrap()
    }

    fn down(to: &str) -> Backend {
        backend(to, json!({"state": "down", "reason": "connection refused"}))
    }

    fn route() -> Route {
        let conditions = crate::spec::Conditions::of("cloud.example".parse().unwrap());
        let spec = crate::spec::RouteSpec::new(conditions, Target::One("caddy".into()));
        Route::new(&spec, crate::control::api::RouteSource::File)
    }

    #[test]
    fn nothing_is_found_where_nothing_is_wrong() {
        let drained = backend("100.64.0.3:443", json!({"state": "drained"}));
        let found = find(&status(|_| {}), &[route()], &[backend("100.64.0.2:443", json!({})), drained]);
        assert_eq!(found, []);
    }

    #[test]
    fn a_backend_that_is_down_is_worse_when_it_was_the_last() {
        let up = backend("100.64.0.3:443", json!({}));
        let [one] = &find(&status(|_| {}), &[route()], &[down("100.64.0.2:443"), up])[..] else { panic!() };
        assert_eq!((one.status, &*one.name), (CheckStatus::Warn, "backend 100.64.0.2:443 of caddy"));
        assert!(one.message.starts_with("connection refused; the others"), "{}", one.message);
        let remedy = one.remedy.as_deref().unwrap();
        assert!(remedy.contains("wg0") && remedy.contains("routes test cloud.example --probe"), "{remedy}");
        let [last] = &find(&status(|_| {}), &[], &[down("100.64.0.2:443")])[..] else { panic!() };
        assert_eq!(last.status, CheckStatus::Fail);
    }

    #[test]
    fn an_unchecked_backend_is_a_problem_once_a_client_failed_on_it() {
        let unchecked = json!({"state": "unchecked", "last_success_at": null});
        assert_eq!(find(&status(|_| {}), &[], &[backend("100.64.0.2:443", unchecked)]), []);
        let failed = json!({"state": "unchecked", "last_error": "timed out", "last_error_at": LATE, "last_success_at": EARLY});
        let [one] = &find(&status(|_| {}), &[], &[backend("100.64.0.2:443", failed)])[..] else { panic!() };
        assert_eq!((one.status, &*one.message), (CheckStatus::Warn, "the last connection failed: timed out"));
    }

    #[test]
    fn what_is_worst_comes_first_and_each_has_a_remedy() {
        let status = status(|status| {
            status["connections"]["now"] = json!(95);
            status["conntrack"] = json!({"entries": 100, "limit": 100});
            status["troubles"] = json!(["listener https: in use", "state: read-only"]);
            status["config"]["last_reload"] =
                json!({"time": LATE, "successful": false, "error": "edge.toml:3:1: unknown key"});
            status["listeners"] = json!([{
                "name": "https", "protocol": "tls", "bind": ["[::]:443"], "connections": 0, "accepted": 0, "mss": null,
                "troubles": [{"bind": "[::]:443", "listening": false, "reason": "in use"}],
            }]);
        });
        let drained = backend("100.64.0.2:443", json!({"state": "drained"}));
        let found = find(&status, &[], &[drained]);
        let names: Vec<_> = found.iter().map(|check| (&*check.name, check.status)).collect();
        assert_eq!(
            names,
            [
                ("configuration", CheckStatus::Fail),
                ("listener https on [::]:443", CheckStatus::Fail),
                ("connection tracking", CheckStatus::Fail),
                ("pool caddy", CheckStatus::Fail),
                ("state", CheckStatus::Warn),
                ("connections", CheckStatus::Warn),
            ]
        );
        assert!(found.iter().all(|check| check.remedy.is_some()));
    }
}
