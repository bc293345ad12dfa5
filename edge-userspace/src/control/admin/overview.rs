//! The content of the dashboard, in sections that are sent when they change.

use std::sync::Arc;

use axum::body::Bytes;
use serde::Serialize;

use super::{Observed, problems};
use crate::{
    control::api::{Backend, Check, Route, Status, Timestamp},
    observe::refusals::Refusal,
};

/// A device that backends are reached through, or a WireGuard device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Tunnel {
    /// Its name.
    pub device: String,
    /// Whether there is such a device, and it is up with a carrier.
    pub up: bool,
    /// The largest packet it takes, in bytes; `None` if there is no such device.
    pub mtu: Option<u32>,
    /// Whether it is WireGuard.
    pub wireguard: bool,
    /// When a WireGuard peer last shook hands; `None` where none did.
    pub last_handshake: Option<Timestamp>,
    /// WireGuard peers.
    pub peers: usize,
}

/// Answers "is everything well?".
#[derive(Debug, Serialize)]
struct Now {
    time: Timestamp,
    /// The problems, the worst first.
    problems: Vec<Check>,
    /// Whether there is a token with which things can be changed here.
    changes: bool,
}

#[derive(Debug, Serialize)]
struct Refused {
    at: Timestamp,
    count: u64,
    reason: &'static str,
    name: Option<Arc<str>>,
    listener: Arc<str>,
    route: Option<Arc<str>>,
    error: Option<String>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let Refusal { at, count, reason, name, listener, route, error } = refusal;
        Self { at: Timestamp(at), count, reason, name, listener, route, error }
    }
}

/// Everything at one time, each section as JSON. It shows no clients, because anyone who reaches this address may read it.
#[derive(Debug)]
pub(super) struct Overview(Vec<(&'static str, Bytes)>);

impl Overview {
    /// Collects it; may take as long as a walk over all flows.
    pub(super) fn of(observed: &impl Observed) -> Option<Self> {
        let (status, routes, backends) = (observed.status(), observed.routes(), observed.backends());
        let tunnels = observed.tunnels();
        let now = Now {
            time: Timestamp::now(),
            problems: problems::find(&status, &routes, &backends),
            changes: observed.admin_token().is_some(),
        };
        Self::sections(&now, &status, &routes, &backends, &tunnels, observed.refusals()).ok()
    }

    fn sections(
        now: &Now,
        status: &Status,
        routes: &[Route],
        backends: &[Backend],
        tunnels: &[Tunnel],
        refusals: Vec<Refusal>,
    ) -> serde_json::Result<Self> {
        let refusals: Vec<Refused> = refusals.into_iter().map(Refused::from).collect();
        // `now` is the last: when a page has it, it has everything of the same time.
        Ok(Self(vec![
            ("status", json(status)?),
            ("routes", json(routes)?),
            ("backends", json(backends)?),
            ("tunnels", json(tunnels)?),
            ("refusals", json(&refusals)?),
            ("now", json(now)?),
        ]))
    }

    /// All of it, as one object.
    pub(super) fn whole(&self) -> Bytes {
        let mut text = vec![b'{'];
        for (position, (name, json)) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "," };
            text.extend_from_slice(format!("{comma}\"{name}\":").as_bytes());
            text.extend_from_slice(json);
        }
        text.push(b'}');
        text.into()
    }

    /// The sections that differ from an earlier time, as server-sent events (HTML, "Server-sent events").
    pub(super) fn events(&self, since: Option<&Self>) -> Bytes {
        let is_known =
            |section: &(&str, Bytes)| since.is_some_and(|since| since.0.iter().any(|known| known == section));
        let mut text = Vec::new();
        for (name, json) in self.0.iter().filter(|section| !is_known(section)) {
            for part in [&b"event: "[..], name.as_bytes(), b"\ndata: ", json, b"\n\n"] {
                text.extend_from_slice(part);
            }
        }
        text.into()
    }
}

fn json(value: &(impl Serialize + ?Sized)) -> serde_json::Result<Bytes> {
    serde_json::to_vec(value).map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overview(sections: &[(&'static str, &'static str)]) -> Overview {
        Overview(sections.iter().map(|&(name, json)| (name, Bytes::from_static(json.as_bytes()))).collect())
    }

    #[test]
    fn only_what_changed_is_sent() {
        let (first, second) = (overview(&[("a", "1"), ("b", "[]")]), overview(&[("a", "2"), ("b", "[]")]));
        assert_eq!(first.events(None), "event: a\ndata: 1\n\nevent: b\ndata: []\n\n");
        assert_eq!(second.events(Some(&first)), "event: a\ndata: 2\n\n");
        assert_eq!(first.events(Some(&first)), "");
        assert_eq!(first.whole(), r#"{"a":1,"b":[]}"#);
    }
}
