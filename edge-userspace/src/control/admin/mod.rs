//! The admin address: metrics, a health check and the dashboard. Whoever reaches it may read; clients are shown, and
//! things changed, for the token alone.

mod guard;
mod hosts;
mod live;
mod overview;
mod page;
mod problems;
mod shared;
mod token;

use std::{future::Future, io, net::TcpListener, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use tokio::sync::watch;

use self::{guard::Allowed, hosts::Misdirected, live::Live, overview::Overview, shared::Shared};
pub use self::{
    overview::Tunnel,
    token::{Token, TokenError},
};
use super::{
    Operator, Refusal, RefusalKind,
    api::{BackendSelector, TestRoute},
    http,
    request::Fields,
    server::{answer, closed, list, to_the_end},
};
use crate::{
    observe::{
        metrics::{CONTENT_TYPE, Snapshot},
        refusals,
    },
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

    /// The token that changes need; without one there are none.
    fn admin_token(&self) -> Option<Arc<Token>>;

    /// The tunnels that backends are reached through.
    fn tunnels(&self) -> Vec<Tunnel>;

    /// The last refusals, the newest first.
    fn refusals(&self) -> Vec<refusals::Refusal>;
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
    overview: Shared<Arc<Overview>>,
    live: Live,
}

impl<O: Observed> Admin<O> {
    async fn overview(&self) -> Option<Arc<Overview>> {
        let observed = Arc::clone(&self.observed);
        self.overview.get(move || Overview::of(&*observed).map(Arc::new)).await
    }
}

/// How long an overview serves all who look: pages ask once a second.
const OVERVIEW: Duration = Duration::from_millis(900);

/// Serves until `shutdown`; runs on the control runtime, never on a worker. `listener` may be blocking or
/// not.
pub async fn serve<O: Observed>(
    listener: TcpListener,
    observed: Arc<O>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let (ending, ended) = watch::channel(false);
    let shutdown = async {
        shutdown.await;
        // The streams of open pages would not end by themselves.
        let _ = ending.send(true);
    };
    http::serve(tokio::net::TcpListener::from_std(listener)?, router(observed, ended), shutdown).await;
    Ok(())
}

fn router<O: Observed>(observed: Arc<O>, ended: watch::Receiver<bool>) -> Router {
    let admin = Admin {
        observed: Arc::clone(&observed),
        metrics: Shared::default(),
        overview: Shared::kept(OVERVIEW),
        live: Live::new(ended),
    };
    page::files(Router::new())
        .route("/overview.json", get(overview::<O>))
        .route("/events", get(async |State(admin): State<Arc<Admin<O>>>| live::stream(admin)))
        .route("/routes/test", get(test_route::<O>))
        .route("/connections.json", get(connections::<O>))
        .route("/connections/{id}", delete(close_connection::<O>))
        .route("/backends/drain", post(drain::<O>))
        .route("/backends/ready", post(ready::<O>))
        .route("/metrics", get(metrics::<O>))
        .route("/healthz", get(healthz::<O>))
        .fallback(async || {
            (
                StatusCode::NOT_FOUND,
                "there are /, /overview.json, /metrics and /healthz; docs/control-api.md lists all paths\n",
            )
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
    shown("application/json", admin.overview().await.map(|overview| overview.whole()))
}

/// Which route an imagined client would get. Shows what the list of routes shows; a probe would have edged connect to
/// home for anybody.
async fn test_route<O: Observed>(
    State(admin): State<Arc<Admin<O>>>,
    Fields(client): Fields<TestRoute>,
) -> Response {
    if client.probe {
        return Refusal::new(RefusalKind::Forbidden, "no_probe", "nothing is probed from here")
            .hint("`edgectl routes test NAME --probe`")
            .into_response();
    }
    answer(admin.observed.test_route(client).await)
}

async fn connections<O: Observed>(_: Allowed, State(admin): State<Arc<Admin<O>>>) -> Response {
    list(Arc::clone(&admin.observed), |observed| Ok(observed.connections())).await
}

async fn close_connection<O: Observed>(
    _: Allowed,
    State(admin): State<Arc<Admin<O>>>,
    Path(id): Path<String>,
) -> Response {
    tracing::info!(connection = id, "the dashboard closes a connection");
    closed(&*admin.observed, &id)
}

async fn drain<O: Observed>(
    _: Allowed,
    State(admin): State<Arc<Admin<O>>>,
    Fields(backend): Fields<BackendSelector>,
) -> Response {
    set_drained(&admin, backend, true).await
}

async fn ready<O: Observed>(
    _: Allowed,
    State(admin): State<Arc<Admin<O>>>,
    Fields(backend): Fields<BackendSelector>,
) -> Response {
    set_drained(&admin, backend, false).await
}

async fn set_drained<O: Observed>(admin: &Admin<O>, backend: BackendSelector, drained: bool) -> Response {
    tracing::info!(backend = %backend.to, pool = backend.pool.as_deref(), drained, "the dashboard sets a backend");
    let observed = Arc::clone(&admin.observed);
    answer(to_the_end(async move { observed.set_drained(backend, drained).await }).await)
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

/// The page runs scripts of its own files and connects to this address alone; no other page may frame it, embed its
/// files or guess at types.
fn with_headers(mut response: Response) -> Response {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                          connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; \
                          require-trusted-types-for 'script'";
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
