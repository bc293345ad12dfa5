//! `edgectl routes test --probe`: follows the whole path to each backend step by step, up to the first that
//! fails.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    control::api::{CheckStatus, Probe, ProbeStep},
    pool::{
        Backend, Pool,
        check::{
            CheckError, Plan, check,
            diagnosis::{certificate, is_black_hole},
        },
    },
    spec::{Ask, ClientProtocol, HealthSpec, HostName},
    tunnel,
};

const LOST: &str = "large packets are lost on the way; `edgectl doctor` says how to mend it";

/// Tries every backend of a pool as a connection for `host` would.
pub(super) async fn probe(
    pool: &Pool,
    host: Option<&HostName>,
    protocol: ClientProtocol,
    port: u16,
) -> Vec<Probe> {
    let plan = Plan {
        health: HealthSpec { timeout: pool.connect_timeout(), ..HealthSpec::default() },
        asks: vec![Ask::of(protocol)],
        port,
        server_name: host.cloned(),
        proxy_protocol: pool.proxy_protocol(),
    };
    futures_util::future::join_all(pool.backends().iter().map(|backend| walk(backend, &plan))).await
}

async fn walk(backend: &Arc<Backend>, plan: &Plan) -> Probe {
    let address = backend.addresses(plan.port).first().copied();
    let mut steps = Vec::new();
    match address {
        _ if backend.to().has_label() => {
            let message = "edge looks up a name for each client; the access log has the address";
            steps.push(step("address", CheckStatus::Skip, message));
        }
        None if backend.to().unix().is_some() => steps.extend(talk(backend, plan).await),
        Some(address) => {
            steps.push(step("address", CheckStatus::Ok, address.to_string()));
            steps.extend(leave(backend, address).await);
            if steps.iter().all(|step| step.status != CheckStatus::Fail) {
                steps.extend(talk(backend, plan).await);
            }
        }
        None => steps.push(step("address", CheckStatus::Fail, "the name has no address")),
    }
    // A step that could not be examined makes the path neither better nor worse.
    let status = steps.iter().map(|step| step.status).filter(|&status| status != CheckStatus::Skip).max();
    Probe {
        to: backend.to().clone(),
        address: address.map(|address| address.to_string().into()),
        status: status.unwrap_or(CheckStatus::Skip),
        steps,
    }
}

/// By which device it leaves, and whether the other end of a tunnel lives.
async fn leave(backend: &Backend, address: SocketAddr) -> Vec<ProbeStep> {
    let device = backend.device().map(|device| &**device);
    let egress = match tunnel::egress(address.ip(), device).await {
        Ok(egress) => egress,
        Err(error) => return vec![step("route", CheckStatus::Fail, no_route(&error, device))],
    };
    let message = format!("leaves by {}, which carries packets of {} bytes", egress.device, egress.mtu);
    let mut steps = vec![step("route", CheckStatus::Ok, message)];
    if let Some(peers) = tunnel::peers(&egress.device).await {
        let own = peers.iter().filter(|peer| peer.allowed.iter().any(|net| net.contains(&address.ip())));
        steps.push(match own.max_by_key(|peer| peer.handshake) {
            None => {
                let message = format!("no WireGuard peer of {} has it in its AllowedIPs", egress.device);
                step("peer", CheckStatus::Fail, message)
            }
            Some(peer) => match peer.handshake {
                // Connecting may be what wakes it.
                None => step("peer", CheckStatus::Warn, "never shook hands"),
                Some(at) => {
                    let ago = SystemTime::now().duration_since(at).unwrap_or_default();
                    let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
                    step("peer", CheckStatus::Ok, format!("shook hands {ago} ago"))
                }
            },
        });
    }
    steps
}

fn no_route(error: &io::Error, device: Option<&str>) -> String {
    match (device, error.raw_os_error()) {
        (Some(device), Some(libc::ENODEV)) => format!("the device {device} does not exist"),
        (Some(device), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
            format!("{device} is down or has no route there")
        }
        _ => format!("no route leads there: {error}"),
    }
}

/// Connects and asks as the route's clients do. For TLS, also sends a ClientHello as large as a browser's,
/// and reads the certificate.
async fn talk(backend: &Backend, plan: &Plan) -> Vec<ProbeStep> {
    let started = Instant::now();
    let (ask, connected) = match check(backend, plan).await {
        Ok(answered) => answered,
        Err(error @ CheckError::Connect(_)) => {
            return vec![timed("connect", CheckStatus::Fail, error.to_string(), started.elapsed())];
        }
        Err(error) => {
            let took = started.elapsed();
            let mut steps = vec![
                step("connect", CheckStatus::Ok, "connected"),
                timed("hello", CheckStatus::Fail, error.to_string(), took),
            ];
            // Its answer may be what is too large.
            if matches!(error, CheckError::Silent(Ask::Tls, _))
                && is_black_hole(backend, plan).await.is_ok_and(|lost| lost)
            {
                steps.push(step("large hello", CheckStatus::Fail, LOST));
            }
            return steps;
        }
    };
    let mut steps = vec![timed("connect", CheckStatus::Ok, "connected", connected)];
    if ask == Ask::Connect {
        return steps;
    }
    let answered = started.elapsed().saturating_sub(connected);
    let message = format!("answered {} as {} does", ask.asked(), ask.protocol());
    steps.push(timed("hello", CheckStatus::Ok, message, answered));
    if ask != Ask::Tls {
        return steps;
    }
    steps.push(match is_black_hole(backend, plan).await {
        Ok(false) => step("large hello", CheckStatus::Ok, "one of 2.4 kB is answered too"),
        Ok(true) => step("large hello", CheckStatus::Fail, LOST),
        Err(error) => step("large hello", CheckStatus::Warn, error.to_string()),
    });
    steps.push(match (certificate(backend, plan).await, &plan.server_name) {
        (Ok(found), Some(name)) if !found.covers(name.as_str()) => {
            let names = found.names.join(", ");
            step("certificate", CheckStatus::Warn, format!("is for {names}, not for {name}"))
        }
        (Ok(found), _) if found.not_after < SystemTime::now() => {
            step("certificate", CheckStatus::Warn, "its time is over")
        }
        (Ok(found), _) => step("certificate", CheckStatus::Ok, format!("is for {}", found.names.join(", "))),
        (Err(error), _) => step("certificate", CheckStatus::Skip, error.to_string()),
    });
    steps
}

fn step(name: &str, status: CheckStatus, message: impl Into<String>) -> ProbeStep {
    ProbeStep { name: name.into(), status, message: message.into(), duration_ms: None }
}

fn timed(name: &str, status: CheckStatus, message: impl Into<String>, took: Duration) -> ProbeStep {
    ProbeStep { duration_ms: Some(took.as_secs_f64() * 1000.0), ..step(name, status, message) }
}
