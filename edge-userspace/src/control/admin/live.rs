//! The dashboard's stream: server-sent events, about one a second, of what has changed (HTML, "Server-sent events").
//!
//! All streams share one look at the daemon. The number of streams is limited, and each holds one event at most: a page that
//! reads slowly misses the ones between, and one that does not read at all is dropped by its connection.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use super::{Admin, Observed, overview::Overview};

/// Pages at the same time; as many again can still ask for metrics.
const MOST: usize = 16;
/// Between two events.
const EVERY: Duration = Duration::from_secs(1);
/// How long a browser waits before it connects again.
const GREETING: &[u8] = b"retry: 2000\n\n";
/// Tells a page that edged ends in order.
const FAREWELL: &[u8] = b"event: ended\ndata: {}\n\n";

/// The places of all streams, and when they must end.
pub(super) struct Live {
    places: Arc<Semaphore>,
    ended: watch::Receiver<bool>,
}

impl Live {
    /// No streams yet; they end when `ended` becomes true.
    pub(super) fn new(ended: watch::Receiver<bool>) -> Self {
        Self { places: Arc::new(Semaphore::new(MOST)), ended }
    }
}

/// One page.
struct Viewer<O> {
    admin: Arc<Admin<O>>,
    _place: OwnedSemaphorePermit,
    ended: watch::Receiver<bool>,
    tick: Interval,
    seen: Option<Arc<Overview>>,
    greeted: bool,
}

/// A new stream, or 503 when there are enough.
pub(super) fn stream<O: Observed>(admin: Arc<Admin<O>>) -> Response {
    let Ok(place) = Arc::clone(&admin.live.places).try_acquire_owned() else {
        let text = format!("{MOST} pages are open already; /overview.json has the same\n");
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], text).into_response();
    };
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = admin.live.ended.clone();
    let viewer = Viewer { admin, _place: place, ended, tick, seen: None, greeted: false };
    let events = stream::unfold(Some(viewer), async |viewer| Some(next(viewer?).await));
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

/// The next event; without a viewer it was the last.
async fn next<O: Observed>(mut viewer: Viewer<O>) -> (Result<Bytes, Infallible>, Option<Viewer<O>>) {
    if !std::mem::replace(&mut viewer.greeted, true) {
        return (Ok(Bytes::from_static(GREETING)), Some(viewer));
    }
    loop {
        tokio::select! {
            _ = viewer.ended.wait_for(|ended| *ended) => return (Ok(Bytes::from_static(FAREWELL)), None),
            _ = viewer.tick.tick() => {}
        }
        let Some(overview) = viewer.admin.overview().await else { return (Ok(Bytes::new()), None) };
        let events = overview.events(viewer.seen.as_deref());
        viewer.seen = Some(overview);
        if !events.is_empty() {
            return (Ok(events), Some(viewer));
        }
    }
}
