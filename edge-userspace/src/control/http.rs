//! Serves a router on any listener, with bounded connections and time, and an orderly shutdown.
//!
//! Shared by the control socket and the admin address, which supply the routers.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{Router, serve::Listener};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::sync::Semaphore;

use super::stalled::Impatient;

/// Connections at the same time; who comes later waits. An operator's tools need a few.
const MAX_CONNECTIONS: usize = 128;
/// From a new connection, or the last answer on it, to a complete request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a peer may read nothing of an answer.
const STALLED: Duration = Duration::from_secs(15);
/// How long answers that are under way may take when the daemon ends.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Accepts until `shutdown` and gives what is under way a moment to end.
pub(crate) async fn serve<L: Listener>(mut listener: L, router: Router, shutdown: impl Future<Output = ()>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accept = async {
            // The semaphore is never closed, so that a slot is only ever waited for.
            let slot = Arc::clone(&slots).acquire_owned().await.ok();
            (slot, listener.accept().await.0)
        };
        let (slot, stream) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept => accepted,
        };
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(
                TokioIo::new(Impatient::new(stream, STALLED)),
                TowerToHyperService::new(router.clone()),
            );
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(LAST_ANSWERS, graceful.shutdown()).await.is_err() {
        tracing::debug!("HTTP answers were still under way");
    }
}
