//! Decides who may change something on the admin address, and see clients: a caller with the token, from a page of this address.
//!
//! A page elsewhere cannot send the token, which no browser adds by itself. Its Origin is looked at all the same: a token
//! that leaked is of no use to other pages, whose reader's browser can reach an address that they cannot.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{
        HeaderMap, Uri,
        header::{AUTHORIZATION, HOST, ORIGIN},
        request::Parts,
    },
};

use super::{Admin, Observed, Token};
use crate::control::{Refusal, RefusalKind};

/// A request that may change something.
pub(super) struct Allowed;

impl<O: Observed> FromRequestParts<Arc<Admin<O>>> for Allowed {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, admin: &Arc<Admin<O>>) -> Result<Self, Refusal> {
        check(&parts.headers, admin.observed.admin_token().as_deref())
    }
}

fn check(headers: &HeaderMap, token: Option<&Token>) -> Result<Allowed, Refusal> {
    let Some(token) = token else {
        return Err(Refusal::new(
            RefusalKind::Forbidden,
            "no_token_file",
            "nothing can be changed here, and no client is shown: edged has no token",
        )
        .hint("set daemon.admin_token_file and restart edged, or use edgectl"));
    };
    if !is_same_origin(headers) {
        return Err(Refusal::new(
            RefusalKind::Forbidden,
            "other_origin",
            "the request comes from a page of another address",
        ));
    }
    let mut sent = headers.get_all(AUTHORIZATION).iter();
    let (Some(sent), None) = (sent.next(), sent.next()) else { return Err(wrong("no token was sent")) };
    match sent.as_bytes().split_first_chunk() {
        Some((b"Bearer ", offered)) if token.is(offered) => Ok(Allowed),
        _ => Err(wrong("this is not the token")),
    }
}

fn wrong(message: &str) -> Refusal {
    Refusal::new(RefusalKind::Unauthorized, "wrong_token", message)
        .hint("the token is in the file that daemon.admin_token_file names: `Authorization: Bearer TOKEN`")
}

/// Whether the page that sends the request, if any, is of the address that it is sent to (Fetch, "Origin header";
/// Fetch Metadata). The scheme may differ: a proxy in front may speak TLS.
fn is_same_origin(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(|site| matches!(site.as_bytes(), b"same-origin" | b"none"));
    let origin = headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        match (origin.as_ref().and_then(Uri::authority), host) {
            (Some(origin), Some(host)) => origin.as_str().eq_ignore_ascii_case(host),
            _ => false,
        }
    });
    site.unwrap_or(true) && origin
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair =
            |&(name, value): &(&str, &str)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_page_elsewhere_is_told_from_the_own_one() {
        let host = ("host", "localhost:9464");
        for own in [
            &[host][..],
            &[host, ("origin", "http://localhost:9464"), ("sec-fetch-site", "same-origin")],
            &[("host", "vps.tail.ts.net"), ("origin", "https://vps.tail.ts.net")],
        ] {
            assert!(is_same_origin(&headers(own)), "{own:?}");
        }
        for other in [
            &[host, ("origin", "http://localhost:3000")][..],
            &[host, ("origin", "http://localhost")],
            &[host, ("origin", "null")],
            &[host, ("origin", "https://evil.example")],
            &[("origin", "http://localhost:9464")],
            &[host, ("sec-fetch-site", "cross-site")],
            &[host, ("sec-fetch-site", "same-site")],
        ] {
            assert!(!is_same_origin(&headers(other)), "{other:?}");
        }
    }
}
