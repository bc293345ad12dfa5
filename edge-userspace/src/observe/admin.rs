//! The admin address: metrics, a health check and the dashboard. It only shows; nothing can be changed here.

use std::{future::Future, io, net::TcpListener, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use serde::Serialize;

use super::metrics::{CONTENT_TYPE, Snapshot};
use crate::control::{
    Operator,
    api::{Backend, Route, Status},
    http,
};

/// The daemon as the admin address sees it.
pub trait Observed: Operator {
    /// Everything that is counted.
    fn metrics(&self) -> Snapshot;
}

/// What the dashboard shows: no clients, since whoever reaches this address may read it.
#[derive(Debug, Serialize)]
struct Overview {
    status: Status,
    routes: Vec<Route>,
    backends: Vec<Backend>,
}

/// The page: one file, nothing from elsewhere.
const DASHBOARD: &str = include_str!("dashboard.html");

/// Answers until `shutdown`; runs on the control runtime, never on a worker. `listener` is of any kind, blocking
/// or not.
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
    Router::new()
        .route("/", get(async || Html(DASHBOARD)))
        .route("/overview.json", get(overview::<O>))
        .route("/metrics", get(metrics::<O>))
        .route("/healthz", get(healthz::<O>))
        .fallback(async || {
            (StatusCode::NOT_FOUND, "there are /, /overview.json, /metrics and /healthz, and nothing else\n")
        })
        .layer(axum::middleware::map_response(async |response| with_headers(response)))
        .with_state(observed)
}

async fn metrics<O: Observed>(State(observed): State<Arc<O>>) -> Response {
    match off_the_runtime(observed, |observed| observed.metrics().render()).await {
        Some(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        _ => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn overview<O: Observed>(State(observed): State<Arc<O>>) -> Response {
    let overview = off_the_runtime(observed, |observed| Overview {
        status: observed.status(),
        routes: observed.routes(),
        backends: observed.backends(),
    });
    match overview.await {
        Some(overview) => Json(overview).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// For a load balancer in front, or a watchdog: whether new connections are taken.
async fn healthz<O: Observed>(State(observed): State<Arc<O>>) -> (StatusCode, &'static str) {
    match off_the_runtime(observed, |observed| observed.status().draining).await {
        Some(false) => (StatusCode::OK, "ok\n"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

/// Gathers what may be much where health checks and reloads need not wait for it.
async fn off_the_runtime<O: Observed, T: Send + 'static>(
    observed: Arc<O>,
    gather: impl FnOnce(&O) -> T + Send + 'static,
) -> Option<T> {
    tokio::task::spawn_blocking(move || gather(&observed)).await.ok()
}

/// The page runs its own script and asks this address alone; no other page may frame it or guess at types.
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
