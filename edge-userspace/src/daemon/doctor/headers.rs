//! `edgectl doctor` on PROXY headers: whether each backend of TLS clients expects the header it gets. If not,
//! clients see a connection that breaks, and the backend logs garbage.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};

use crate::{
    connection::Running,
    control::api::{Check, CheckStatus},
    pool::{
        Backend,
        check::{CheckError, Plan, check},
    },
    proxy_protocol::{V2_IPV4, V2_IPV6, V2_MAX_SENT},
    spec::{Ask, ClientProtocol, HealthSpec, HostPattern, ProxyProtocol},
};

/// Backends that are asked for one report; each takes a few connections.
const MOST: usize = 64;
/// How many at once.
const AT_ONCE: usize = 16;
/// How long one may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks every backend as clients would, and where that fails with the other headers there are.
pub(super) async fn look(running: &Running) -> Vec<Check> {
    let asked =
        stream::iter(ways(running)).map(|(backend, plan)| async move { judge(&backend, &plan).await });
    asked.buffered(AT_ONCE).filter_map(std::future::ready).collect().await
}

/// How long the headers of version 2 are that each pool is sent.
pub(super) fn sizes(running: &Running) -> Vec<Check> {
    let mut seen = HashSet::new();
    let sent = running.destinations().filter(|to| to.proxy_protocol == ProxyProtocol::V2);
    let pools = sent.map(|to| &to.pool).filter(|pool| seen.insert((pool.name(), pool.proxy_tlvs())));
    pools
        .map(|pool| {
            let tlvs = pool.proxy_tlvs();
            let message = if tlvs.is_empty() {
                format!("{V2_IPV4} bytes for clients of IPv4, {V2_IPV6} for those of IPv6")
            } else {
                format!(
                    "up to {V2_MAX_SENT} bytes with {tlvs}: {V2_IPV4} for clients of IPv4, {V2_IPV6} for those of IPv6, and \
                     these TLVs; nginx before 1.23.2 takes no more than 107"
                )
            };
            Check::new(format!("PROXY header size for {}", pool.name()), CheckStatus::Ok, message)
        })
        .collect()
}

/// Backends that TLS clients can reach, each once.
fn ways(running: &Running) -> Vec<(Arc<Backend>, Plan)> {
    let mut seen = HashSet::new();
    let mut ways = Vec::new();
    for rule in running.routes.iter().filter(|rule| rule.conditions.take(ClientProtocol::Tls)) {
        let conditions = &rule.conditions;
        let mut listeners = running.listeners.values().filter(|listener| {
            let name = &listener.spec.name;
            listener.spec.speaks().contains(&ClientProtocol::Tls)
                && (conditions.listeners.is_empty() || conditions.listeners.contains(name))
        });
        let Some(listener) = listeners.next() else { continue };
        let plan = Plan {
            health: HealthSpec { timeout: PATIENCE, ..HealthSpec::default() },
            asks: vec![Ask::Tls],
            port: listener.spec.bind.first().map_or(443, SocketAddr::port),
            server_name: match &conditions.host {
                HostPattern::Exact(name) => Some(name.clone()),
                HostPattern::Below(_) | HostPattern::Any => None,
            },
            proxy_protocol: rule.target.proxy_protocol,
        };
        for backend in rule.target.pool.backends() {
            if ways.len() < MOST && seen.insert((backend.id().clone(), plan.proxy_protocol)) {
                ways.push((Arc::clone(backend), plan.clone()));
            }
        }
    }
    ways
}

/// `None` if nothing can be concluded: it cannot be reached, does not speak TLS, or gets no header and wants
/// none.
async fn judge(backend: &Backend, plan: &Plan) -> Option<Check> {
    let sent = plan.proxy_protocol;
    let answers = async |header| {
        let plan = Plan { proxy_protocol: header, ..plan.clone() };
        match check(backend, &plan).await {
            Ok(_) => Some(true),
            Err(CheckError::Connect(_)) => None,
            Err(_) => Some(false),
        }
    };
    let name = format!("PROXY header for {}", backend.id());
    if answers(sent).await? {
        let taken = || Check::new(name, CheckStatus::Ok, format!("is sent {}, and takes it", word(sent)));
        return (sent != ProxyProtocol::Off).then(taken);
    }
    for expected in [ProxyProtocol::Off, ProxyProtocol::V2, ProxyProtocol::V1] {
        if expected != sent && answers(expected).await? {
            let found = format!("is sent {}, but answers with {} only", word(sent), word(expected));
            return Some(Check::new(name, CheckStatus::Fail, found).remedy(remedy(expected)));
        }
    }
    None
}

fn word(header: ProxyProtocol) -> &'static str {
    match header {
        ProxyProtocol::Off => "no PROXY header",
        ProxyProtocol::V1 => "a PROXY header of version 1",
        ProxyProtocol::V2 => "a PROXY header of version 2",
    }
}

fn remedy(expected: ProxyProtocol) -> &'static str {
    match expected {
        ProxyProtocol::Off => {
            "make it expect one (nginx: `listen … proxy_protocol`, HAProxy: `accept-proxy`, Caddy: the listener \
             wrapper `proxy_protocol`), or write proxy_protocol = \"off\" in its pool or route"
        }
        ProxyProtocol::V1 => "write proxy_protocol = \"v1\" in its pool or route",
        ProxyProtocol::V2 => "write proxy_protocol = \"v2\" in its pool or route",
    }
}
