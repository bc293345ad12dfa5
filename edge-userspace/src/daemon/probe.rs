//! `edgectl routes test --probe` and doctor: follow the whole path to each backend step by step, up to the first
//! that fails, and name the remedy of its cause.

pub(super) mod cause;
mod header;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use self::cause::{Cause, Path};
use crate::{
    control::api::{CheckStatus, Probe, ProbeStep},
    pool::{
        Backend, Pool,
        check::{
            CheckError, Plan, check,
            diagnosis::{certificate, is_black_hole},
        },
    },
    shield::{Blocked, Vital, cut},
    spec::{Ask, ClientProtocol, HealthSpec, HostName, ProxyProtocol},
    tunnel::{self, Peer},
};

/// The names of the steps that doctor reads.
pub(super) const HELLO: &str = "hello";
pub(super) const LARGE_HELLO: &str = "large hello";
pub(super) const HEADER: &str = "PROXY header";

const LOST: &str = "large packets are lost on the way";

/// Tries every backend of a pool as a connection for `host` would.
pub(super) async fn probe(
    pool: &Pool,
    host: Option<&HostName>,
    protocol: ClientProtocol,
    port: u16,
    blocked: &[Blocked],
) -> Vec<Probe> {
    let plan = Plan {
        health: HealthSpec { timeout: pool.connect_timeout(), ..HealthSpec::default() },
        asks: vec![Ask::of(protocol)],
        port,
        server_name: host.cloned(),
        proxy_protocol: pool.proxy_protocol(),
    };
    futures_util::future::join_all(pool.backends().iter().map(|backend| walk(backend, &plan, blocked))).await
}

/// Walks the path to one backend. Each step ends within `plan.health.timeout`.
pub(super) async fn walk(backend: &Arc<Backend>, plan: &Plan, blocked: &[Blocked]) -> Probe {
    let address = backend.addresses(plan.port).first().copied();
    let mut steps = Vec::new();
    match address {
        _ if backend.to().has_label() => {
            let message = "edge looks up a name for each client; the access log has the address";
            steps.push(step("address", CheckStatus::Skip, message));
        }
        None if backend.to().unix().is_some() => steps.extend(talk(backend, plan, Path::default()).await),
        Some(address) => {
            steps.push(step("address", CheckStatus::Ok, address.to_string()));
            steps.extend(follow(backend, address, plan, blocked).await);
        }
        None => {
            let name = backend.to().to_string();
            let cause = Cause::NoAddress { name: &name };
            steps.push(failed("address", "the name has no address", &cause));
        }
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

/// From the route on.
async fn follow(
    backend: &Arc<Backend>,
    address: SocketAddr,
    plan: &Plan,
    blocked: &[Blocked],
) -> Vec<ProbeStep> {
    let device = backend.device().map(|device| &**device);
    let egress = match tunnel::egress(address.ip(), device).await {
        Ok(egress) => egress,
        Err(error) => return vec![no_route(&error, device, address)],
    };
    let message = format!("leaves by {}, which carries packets of {} bytes", egress.device, egress.mtu);
    let mut steps = vec![step("route", CheckStatus::Ok, message)];
    let peers = tunnel::peers(&egress.device).await;
    let peer = peers.as_deref().map(|peers| peer_of(peers, address));
    match (&peer, peers.as_deref()) {
        (Some(None), Some(peers)) => {
            let message = format!("no WireGuard peer of {} has it in its AllowedIPs", egress.device);
            let cause = Cause::NotAllowed { device: &egress.device, address: address.ip(), peers };
            steps.push(failed("peer", message, &cause));
            return steps;
        }
        (Some(Some(peer)), _) => steps.push(shaken(peer, &egress.device)),
        _ => {}
    }
    let path = Path { device: Some(&egress.device), is_wireguard: peers.is_some() };
    let mut talked = talk(backend, plan, path).await;
    // A block is the cause only where nothing comes back: devices that lead home may be free of the shield's program.
    if let Some(last) =
        talked.last_mut().filter(|last| &*last.name == "connect" && last.status == CheckStatus::Fail)
    {
        let endpoint = peer.flatten().and_then(|peer| peer.endpoint).map(|endpoint| endpoint.ip());
        let places = [Some(address.ip()), endpoint].into_iter().flatten();
        let vital: Vec<_> = places.map(|ip| Vital::at(ip, "it is on the path")).collect();
        if let Some((net, by, list)) = blocks(blocked, &vital) {
            let message = format!("{}; edge's own block {net} covers {by}", last.message);
            let cause = Cause::Blocked { net, list };
            *last = ProbeStep { duration_ms: last.duration_ms, ..failed("connect", message, &cause) };
        }
    }
    steps.extend(talked);
    steps
}

/// The first block that covers one of these, and which.
fn blocks<'a>(
    blocked: &'a [Blocked],
    vital: &[Vital],
) -> Option<(ipnet::IpNet, std::net::IpAddr, Option<&'a str>)> {
    blocked
        .iter()
        .find_map(|block| Some((block.net, cut(&block.net, vital)?.net.addr(), block.list.as_deref())))
}

/// The peer that a device sends packets for this address to: that of the longest prefix.
fn peer_of(peers: &[Peer], address: SocketAddr) -> Option<&Peer> {
    let prefix = |peer: &Peer| {
        let holding = peer.allowed.iter().filter(|net| net.contains(&address.ip()));
        holding.map(ipnet::IpNet::prefix_len).max()
    };
    peers.iter().filter(|peer| prefix(peer).is_some()).max_by_key(|peer| prefix(peer))
}

fn shaken(peer: &Peer, device: &str) -> ProbeStep {
    match peer.handshake {
        // Connecting may be what wakes it.
        None => ProbeStep {
            remedy: Some(Cause::NoHandshake { device }.remedy()),
            ..step("peer", CheckStatus::Warn, "never shook hands")
        },
        Some(at) => {
            let ago = SystemTime::now().duration_since(at).unwrap_or_default();
            let ago = humantime::format_duration(Duration::from_secs(ago.as_secs()));
            step("peer", CheckStatus::Ok, format!("shook hands {ago} ago"))
        }
    }
}

fn no_route(error: &io::Error, device: Option<&str>, address: SocketAddr) -> ProbeStep {
    let address = address.ip();
    match (device, error.raw_os_error()) {
        (Some(device), Some(libc::ENODEV)) => {
            failed("route", format!("the device {device} does not exist"), &Cause::NoDevice { device })
        }
        (Some(device), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => {
            let message = format!("{device} is down or has no route there");
            failed("route", message, &Cause::NoWayBy { device, address })
        }
        _ => failed("route", format!("no route leads there: {error}"), &Cause::NoWay { address }),
    }
}

/// Connects and asks as the route's clients do. For TLS, also sends a ClientHello as large as a browser's,
/// and reads the certificate.
async fn talk(backend: &Backend, plan: &Plan, path: Path<'_>) -> Vec<ProbeStep> {
    let started = Instant::now();
    let (ask, connected) = match check(backend, plan).await {
        Ok(answered) => answered,
        Err(error @ CheckError::Connect(_)) => {
            let step = timed("connect", CheckStatus::Fail, error.to_string(), started.elapsed());
            return vec![mended(step, Cause::of(&error, path).as_ref())];
        }
        Err(error) => {
            let took = started.elapsed();
            let hello = timed(HELLO, CheckStatus::Fail, error.to_string(), took);
            let mut steps = vec![
                step("connect", CheckStatus::Ok, "connected"),
                mended(hello, Cause::of(&error, path).as_ref()),
            ];
            // Its answer may be what is too large.
            if matches!(error, CheckError::Silent(Ask::Tls, _))
                && is_black_hole(backend, plan).await.is_ok_and(|lost| lost)
            {
                steps.push(failed(LARGE_HELLO, LOST, &Cause::LargeLost { device: path.device }));
            } else if let Some(expected) = header::expected(backend, plan).await {
                let message = header::mismatch(plan.proxy_protocol, expected);
                steps.push(failed(HEADER, message, &Cause::Header { expected }));
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
    steps.push(timed(HELLO, CheckStatus::Ok, message, answered));
    if plan.proxy_protocol != ProxyProtocol::Off {
        steps.push(step(HEADER, CheckStatus::Ok, header::taken(plan.proxy_protocol)));
    }
    if ask != Ask::Tls {
        return steps;
    }
    steps.push(match is_black_hole(backend, plan).await {
        Ok(false) => step(LARGE_HELLO, CheckStatus::Ok, "one of 2.4 kB is answered too"),
        Ok(true) => failed(LARGE_HELLO, LOST, &Cause::LargeLost { device: path.device }),
        Err(error) => step(LARGE_HELLO, CheckStatus::Warn, error.to_string()),
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
    ProbeStep { name: name.into(), status, message: message.into(), duration_ms: None, remedy: None }
}

fn timed(name: &str, status: CheckStatus, message: impl Into<String>, took: Duration) -> ProbeStep {
    ProbeStep { duration_ms: Some(took.as_secs_f64() * 1000.0), ..step(name, status, message) }
}

fn failed(name: &str, message: impl Into<String>, cause: &Cause<'_>) -> ProbeStep {
    mended(step(name, CheckStatus::Fail, message), Some(cause))
}

fn mended(step: ProbeStep, cause: Option<&Cause<'_>>) -> ProbeStep {
    ProbeStep { remedy: cause.map(Cause::remedy), ..step }
}
