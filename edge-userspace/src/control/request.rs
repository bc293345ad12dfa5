//! The fields of a request: JSON in the body, or where there is no body the query string.

use std::time::Duration;

use axum::{
    Json,
    body::{Bytes, to_bytes},
    extract::{FromRequest, Query, Request, rejection::JsonRejection},
    http::Uri,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{Refusal, RefusalKind};

/// The largest body; a route with thousands of prefixes fits.
const MAX_BODY: usize = 256 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The fields of a request, read.
pub(super) struct Fields<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Fields<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        let (head, body) = request.into_parts();
        let body = match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => {
                return Err(Refusal::new(
                    RefusalKind::TooLarge,
                    "body_too_large",
                    format!("the body is cut short or larger than {MAX_BODY} bytes"),
                ));
            }
            Err(_) => {
                return Err(Refusal::new(
                    RefusalKind::Timeout,
                    "body_too_slow",
                    "the body did not come in time",
                ));
            }
        };
        if body.is_empty() { from_query(&head.uri) } else { from_json(&body) }.map(Self)
    }
}

fn from_json<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    Json::from_bytes(body).map(|Json(fields)| fields).map_err(|rejection| match rejection {
        JsonRejection::JsonSyntaxError(error) => Refusal::new(
            RefusalKind::BadRequest,
            "bad_json",
            format!("the body is not JSON: {}", inner(&error)),
        ),
        other => bad_field(&inner(&other)),
    })
}

fn from_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Refusal> {
    let Query(pairs) =
        Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(|error| bad_field(&inner(&error)))?;
    let mut fields = Map::new();
    for (key, text) in pairs {
        let value = Value::String(text);
        // The key again makes a list: `alpn=h2&alpn=http/1.1`.
        match fields.get_mut(&key) {
            None => drop(fields.insert(key, value)),
            Some(Value::Array(list)) => list.push(value),
            Some(first) => *first = Value::Array(vec![first.take(), value]),
        }
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| bad_field(&error.to_string()))
}

fn bad_field(what: &str) -> Refusal {
    Refusal::new(RefusalKind::BadRequest, "bad_request", what)
}

/// Serde's message, including the field, without the framework's wrapping.
fn inner(error: &(dyn std::error::Error + 'static)) -> String {
    // The rejection, axum's own error, and then the one that knows the field.
    error.source().and_then(std::error::Error::source).unwrap_or(error).to_string()
}
