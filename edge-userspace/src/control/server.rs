//! The control API on the Unix socket: maps paths to calls of the [`Operator`].
//!
//! Every answer is JSON, and every error has the same shape; docs/control-api.md describes them for users.

use std::{future::Future, io, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, Uri, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    ControlSocket, Operator, Refusal, RefusalKind,
    api::{
        AddBlock, AddRoute, BackendSelector, ClosedConnections, ConnectionFilter, DoctorReport, LogRequest,
        RemoveBlock, RemoveRoute, TestRoute, TraceClient,
    },
    http,
    request::Fields,
    stream,
};

/// Answers on the control socket until `shutdown`; runs on the control runtime, never on a worker.
pub async fn serve<O: Operator>(
    socket: ControlSocket,
    operator: Arc<O>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = tokio::net::UnixListener::from_std(socket.listener()?)?;
    http::serve(listener, router(operator), shutdown).await;
    drop(socket);
    Ok(())
}

fn router<O: Operator>(operator: Arc<O>) -> Router {
    Router::new()
        .route("/v1/routes", get(routes::<O>).post(add_route::<O>).delete(remove_route::<O>))
        .route("/v1/routes/test", post(test_route::<O>))
        .route("/v1/backends", get(backends::<O>))
        .route("/v1/backends/drain", post(drain::<O>))
        .route("/v1/backends/ready", post(ready::<O>))
        .route("/v1/connections", get(connections::<O>).delete(close_connections::<O>))
        .route("/v1/connections/{id}", delete(close_connection::<O>))
        .route("/v1/status", get(status::<O>))
        .route("/v1/doctor", get(doctor::<O>))
        .route("/v1/doctor/stream", get(doctor_stream::<O>))
        .route("/v1/blocks", get(blocks::<O>).post(add_block::<O>).delete(remove_block::<O>))
        .route("/v1/log", get(log::<O>))
        .route("/v1/reload", get(plan_reload::<O>).post(reload::<O>))
        .route("/v1/trace", post(trace::<O>))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .with_state(operator)
}

async fn routes<O: Operator>(State(operator): State<Arc<O>>) -> Response {
    list(operator, |operator| Ok(operator.routes())).await
}

async fn add_route<O: Operator>(State(operator): State<Arc<O>>, Fields(route): Fields<AddRoute>) -> Response {
    answer(to_the_end(async move { operator.add_route(route).await }).await)
}

async fn remove_route<O: Operator>(
    State(operator): State<Arc<O>>,
    Fields(route): Fields<RemoveRoute>,
) -> Response {
    answer(to_the_end(async move { operator.remove_route(route).await }).await)
}

async fn test_route<O: Operator>(
    State(operator): State<Arc<O>>,
    Fields(client): Fields<TestRoute>,
) -> Response {
    answer(operator.test_route(client).await)
}

async fn backends<O: Operator>(State(operator): State<Arc<O>>) -> Response {
    list(operator, |operator| Ok(operator.backends())).await
}

async fn drain<O: Operator>(
    State(operator): State<Arc<O>>,
    Fields(backend): Fields<BackendSelector>,
) -> Response {
    answer(to_the_end(async move { operator.set_drained(backend, true).await }).await)
}

async fn ready<O: Operator>(
    State(operator): State<Arc<O>>,
    Fields(backend): Fields<BackendSelector>,
) -> Response {
    answer(to_the_end(async move { operator.set_drained(backend, false).await }).await)
}

async fn connections<O: Operator>(
    State(operator): State<Arc<O>>,
    Fields(filter): Fields<ConnectionFilter>,
) -> Response {
    list(operator, move |operator| Ok(filter.apply(operator.connections()))).await
}

async fn close_connections<O: Operator>(
    State(operator): State<Arc<O>>,
    Fields(filter): Fields<ConnectionFilter>,
) -> Response {
    if filter.is_empty() {
        return Refusal::new(RefusalKind::BadRequest, "no_condition", "this would end every connection")
            .hint("name at least one of client, host, listener, backend, datapath, older")
            .into_response();
    }
    list(operator, move |operator| {
        let meant = filter.apply(operator.connections());
        let ids = meant.iter().map(|connection| connection.id).collect();
        Ok(ClosedConnections { closed: operator.close_connections(&ids) })
    })
    .await
}

async fn close_connection<O: Operator>(State(operator): State<Arc<O>>, Path(id): Path<String>) -> Response {
    closed(&*operator, &id)
}

/// Ends the connection with this number.
pub(super) fn closed(operator: &impl Operator, id: &str) -> Response {
    answer(match id.parse() {
        Ok(id) => operator.close_connection(id),
        Err(_) => Err(Refusal::new(
            RefusalKind::BadRequest,
            "bad_request",
            format!("{id:?} is not the id of a connection: it is a number"),
        )),
    })
}

async fn status<O: Operator>(State(operator): State<Arc<O>>) -> Response {
    list(operator, |operator| Ok(operator.status())).await
}

async fn doctor<O: Operator>(State(operator): State<Arc<O>>) -> Response {
    let mut report = DoctorReport::default();
    operator.doctor(|check| report.checks.push(check)).await;
    answer(Ok(report))
}

/// The findings of doctor as they come, each on a line of its own.
async fn doctor_stream<O: Operator>(State(operator): State<Arc<O>>) -> Response {
    // A report is finite; the reader need not keep up with it.
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let found = |check| drop(sender.send(check));
        tokio::select! {
            () = operator.doctor(found) => {}
            // Nobody reads any more.
            () = sender.closed() => {}
        }
    });
    stream::findings(receiver)
}

async fn blocks<O: Operator>(State(operator): State<Arc<O>>) -> Response {
    list(operator, Operator::blocks).await
}

async fn add_block<O: Operator>(State(operator): State<Arc<O>>, Fields(block): Fields<AddBlock>) -> Response {
    answer(to_the_end(async move { operator.add_block(block).await }).await)
}

async fn remove_block<O: Operator>(
    State(operator): State<Arc<O>>,
    Fields(block): Fields<RemoveBlock>,
) -> Response {
    answer(to_the_end(async move { operator.remove_block(block).await }).await)
}

async fn trace<O: Operator>(State(operator): State<Arc<O>>, Fields(client): Fields<TraceClient>) -> Response {
    answer(operator.trace(client))
}

async fn reload<O: Operator>(State(operator): State<Arc<O>>) -> Response {
    answer(to_the_end(async move { operator.reload().await }).await)
}

async fn log<O: Operator>(State(operator): State<Arc<O>>, Fields(request): Fields<LogRequest>) -> Response {
    let log = operator.access_log();
    let lines = request.lines;
    if !request.follow {
        return stream::lines(log.last(|line| request.takes(line), lines), None);
    }
    match log.follow(move |line| request.takes(line), lines) {
        Ok((before, follower)) => stream::lines(before, Some(follower)),
        Err(error) => Refusal::new(RefusalKind::Unavailable, "too_many_readers", error.to_string())
            .hint("end one of the calls of `edgectl log --follow`, or read the access log's file")
            .into_response(),
    }
}

async fn plan_reload<O: Operator>(State(operator): State<Arc<O>>) -> Response {
    answer(operator.plan_reload().await)
}

async fn no_such_path(uri: Uri) -> Refusal {
    Refusal::new(RefusalKind::NotFound, "no_such_path", format!("there is no {}", uri.path()))
        .hint("docs/control-api.md lists the paths; edgectl and edged may be of different versions")
}

async fn no_such_method(method: axum::http::Method, uri: Uri) -> Refusal {
    Refusal::new(RefusalKind::Method, "no_such_method", format!("{} does not take {method}", uri.path()))
        .hint("the Allow header of this answer names what it takes")
}

/// Collects and serialises possibly long lists off the runtime, which health checks and reloads share.
pub(super) async fn list<O: Operator, T: Serialize>(
    operator: Arc<O>,
    gather: impl FnOnce(&O) -> Result<T, Refusal> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(move || answer(gather(&operator))).await {
        Ok(response) => response,
        Err(_) => {
            Refusal::new(RefusalKind::Internal, "internal", "the answer could not be made").into_response()
        }
    }
}

/// Makes a change in a task of its own. If the caller hung up while a future waited for the disk, the change
/// would be on disk but not in effect.
pub(super) async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    tokio::spawn(change).await.unwrap_or_else(|_| {
        Err(Refusal::new(RefusalKind::Internal, "internal", "the change ended before it was done"))
    })
}

pub(super) fn answer<T: Serialize>(result: Result<T, Refusal>) -> Response {
    match result {
        Ok(value) => json(StatusCode::OK, &value),
        Err(refusal) => refusal.into_response(),
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json(status, &self.body())
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let mut body = match serde_json::to_vec(value) {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(%error, "an answer of the control API cannot be written as JSON");
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
    };
    body.push(b'\n');
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, axum::http::HeaderValue::from_static("application/json"));
    response
}
