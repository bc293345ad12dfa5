//! Answers that go on, one JSON object a line: lines of the access log, and findings of doctor, as they come.

use std::{convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use futures_util::stream::{self, TryStream};
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;

use super::api::{Check, LostLines};
use crate::observe::access_log::{Follower, Line};

/// Bytes that are gathered for one write, if that many wait.
const CHUNK: usize = 16 * 1024;

/// The lines of before, then those of a follower until it ends.
pub(super) fn lines(before: Vec<Arc<Line>>, follower: Option<Follower>) -> Response {
    let mut first = Vec::new();
    for line in before {
        write(&mut first, &*line);
    }
    let rest = stream::unfold((Some(first), follower), |(first, follower)| async {
        if let Some(first) = first.filter(|first| !first.is_empty()) {
            return Some((Ok::<_, Infallible>(Bytes::from(first)), (None, follower)));
        }
        let mut follower = follower?;
        let chunk = next(&mut follower).await?;
        Some((Ok(chunk.into()), (None, Some(follower))))
    });
    response(rest)
}

/// Findings until the examination ends.
pub(super) fn findings(findings: UnboundedReceiver<Check>) -> Response {
    response(stream::unfold(findings, async |mut findings| {
        let check = findings.recv().await?;
        let mut line = Vec::new();
        write(&mut line, &check);
        Some((Ok::<_, Infallible>(Bytes::from(line)), findings))
    }))
}

fn response(lines: impl TryStream<Ok = Bytes, Error = Infallible> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    response
}

/// The next line and those that wait behind it.
async fn next(follower: &mut Follower) -> Option<Vec<u8>> {
    let mut chunk = Vec::new();
    let mut next = Some(follower.next().await?);
    while let Some(line) = next {
        write(&mut chunk, &*line);
        next = if chunk.len() < CHUNK { follower.waiting() } else { None };
    }
    // Behind the lines that were waiting when the others were lost.
    match follower.lost() {
        0 => {}
        lost => write(&mut chunk, &LostLines { lost }),
    }
    Some(chunk)
}

fn write(chunk: &mut Vec<u8>, line: &impl Serialize) {
    // Nothing in it fails to serialise.
    if serde_json::to_writer(&mut *chunk, line).is_ok() {
        chunk.push(b'\n');
    }
}
