//! The admin address: metrics, a health check and the dashboard. It is read-only.

mod hosts;
mod shared;

use std::{future::Future, io, net::TcpListener, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

use self::{hosts::Misdirected, shared::Shared};
use super::{
    Operator,
    api::{Backend, Route, Status},
    http,
};
use crate::{
    observe::metrics::{CONTENT_TYPE, Snapshot},
    spec::HostName,
};

/// The daemon as the admin address sees it.
pub trait Observed: Operator {
    /// Everything that is counted.
    fn metrics(&self) -> Snapshot;

    /// Whether clients are served, from memory.
    fn health(&self) -> Health;

    /// Names of this machine that requests may be for.
    fn admin_hosts(&self) -> Vec<HostName>;
}

/// Whether clients are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// No new connections are taken: the daemon ends.
    pub draining: bool,
    /// Listeners that no client can reach.
    pub closed: Vec<Arc<str>>,
    /// Parts of the configuration that are not in effect, one per line.
    pub troubles: Vec<String>,
}

/// The data shown, and the last answers. Each answer is gathered once at a time for all who request it.
struct Admin<O> {
    observed: Arc<O>,
    metrics: Shared<Bytes>,
    overview: Shared<Bytes>,
}

/// The contents of the dashboard. It shows no clients, because anyone who reaches this address may read it.
#[derive(Debug, Serialize)]
struct Overview {
    status: Status,
    routes: Vec<Route>,
    backends: Vec<Backend>,
}

/// The page: one file, nothing from elsewhere.
const DASHBOARD: &str = include_str!("dashboard.html");

/// Serves until `shutdown`; runs on the control runtime, never on a worker. `listener` may be blocking or
/// not.
pub async fn serve<O: Observed>(
    listener: TcpListener,
    observed: Arc<O>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    http::serve(tokio::net::TcpListener::from_std(listener)?, router(observed), shutdown).await;
    Ok(())
}

fn router<O: Observed>(observed: Arc<O>) -> Router {
    let admin =
        Admin { observed: Arc::clone(&observed), metrics: Shared::default(), overview: Shared::default() };
    Router::new()
        .route("/", get(async || Html(DASHBOARD)))
        .route("/overview.json", get(overview::<O>))
        .route("/metrics", get(metrics::<O>))
        .route("/healthz", get(healthz::<O>))
        .fallback(async || {
            (StatusCode::NOT_FOUND, "there are /, /overview.json, /metrics and /healthz, and nothing else\n")
        })
        .layer(middleware::from_fn_with_state(observed, for_us::<O>))
        .layer(middleware::map_response(async |response| with_headers(response)))
        .with_state(Arc::new(admin))
}

async fn metrics<O: Observed>(State(admin): State<Arc<Admin<O>>>) -> Response {
    let observed = Arc::clone(&admin.observed);
    let text = admin.metrics.get(move || observed.metrics().render().ok().map(Bytes::from));
    shown(CONTENT_TYPE, text.await)
}

async fn overview<O: Observed>(State(admin): State<Arc<Admin<O>>>) -> Response {
    let observed = Arc::clone(&admin.observed);
    let text = admin.overview.get(move || {
        let overview =
            Overview { status: observed.status(), routes: observed.routes(), backends: observed.backends() };
        serde_json::to_vec(&overview).ok().map(Bytes::from)
    });
    shown("application/json", text.await)
}

fn shown(content_type: &'static str, body: Option<Bytes>) -> Response {
    match body {
        Some(body) => ([(header::CONTENT_TYPE, content_type)], body).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// For a load balancer or a watchdog: whether every listener accepts new connections. Answered from memory,
/// so that it may be requested at any rate.
async fn healthz<O: Observed>(State(admin): State<Arc<Admin<O>>>) -> (StatusCode, String) {
    let Health { draining, closed, troubles } = admin.observed.health();
    let (status, first) = match (draining, &*closed) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining".to_owned()),
        (false, []) => (StatusCode::OK, "ok".to_owned()),
        (false, closed) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("no client can reach {}", closed.join(", ")))
        }
    };
    let lines = std::iter::once(first).chain(troubles);
    (status, lines.map(|line| line + "\n").collect())
}

/// Answers only what is meant for this address; see [`hosts`].
async fn for_us<O: Observed>(State(observed): State<Arc<O>>, request: Request, next: Next) -> Response {
    match hosts::check(request.uri(), request.headers(), &observed.admin_hosts()) {
        Ok(()) => next.run(request).await,
        Err(Misdirected::Name(name)) => (
            StatusCode::MISDIRECTED_REQUEST,
            format!(
                "{name} is not a name of this machine: ask for an address or localhost, or list the name in \
                 daemon.admin_hosts\n"
            ),
        )
            .into_response(),
        Err(Misdirected::Malformed) => (StatusCode::BAD_REQUEST, "one Host is needed\n").into_response(),
    }
}

/// The page runs its own script and connects to this address alone; no other page may frame it or guess at
/// types.
fn with_headers(mut response: Response) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
                          connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers: [(HeaderName, &'static str); 4] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
