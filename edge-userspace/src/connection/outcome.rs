//! How a connection ended, as the access log and the metrics name it.

use std::sync::Arc;

use super::{Connection, View};
use crate::{
    accounts::Account,
    datapath::{End, Side, StopReason},
    sniff::Rejection,
    spec::SocketName,
};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// It was carried.
    Carried(End),
    /// Its source is blocked.
    Blocked,
    /// Its source may not connect here.
    Denied,
    /// Its source has as many connections as it may have.
    SourceLimit,
    /// Its source has connected too often in the last second.
    SourceRate,
    /// Its first bytes are not an acceptable hello.
    Rejected(Rejection),
    /// No complete PROXY header in time.
    ProxyHeaderTimeout,
    /// There is no memory for its first bytes.
    HelloMemory,
    /// No complete hello in time.
    HelloTimeout,
    /// It went away before it had said what it wants.
    Gone,
    /// No route.
    NoRoute,
    /// Its route refuses everybody.
    Refused,
    /// Its source may not use its route.
    DeniedByRoute,
    /// Its route sent it to https.
    Redirected,
    /// Its route is at the limit of its `connections`.
    RouteLimit,
    /// Every usable backend of its route is at the limit of the pool's `connections`.
    BackendLimit,
    /// No backend could be connected.
    ConnectFailed,
    /// The edge ended it before it was connected.
    Stopped(StopReason),
}

/// How a connection ended, and what the access log has to say of it beside that.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) outcome: CloseReason,
    /// The error of a connection that had a route but got no backend.
    pub(super) failure: Option<Box<Failure>>,
    /// The client sent no byte and was given no answer.
    pub(super) is_empty: bool,
}

impl From<CloseReason> for Ended {
    fn from(outcome: CloseReason) -> Self {
        Self { outcome, failure: None, is_empty: false }
    }
}

impl Ended {
    /// The last account of a connection that is settled.
    pub(super) fn account(self, connection: &Connection, unique_id: String, is_logged: bool) -> Account {
        let Self { outcome, failure, .. } = self;
        let mut record = View::of(connection).record(outcome.label(), unique_id);
        if let Some(Failure { route, backend, attempts, error }) = failure.map(|failure| *failure) {
            record.route = record.route.or(Some(route));
            record.backend = record.backend.or(backend);
            // A redirect tried none, and nothing failed.
            record.attempts = error.is_some().then_some(attempts);
            record.error = error;
        }
        Account { record, refused: outcome.refused().is_some(), is_logged }
    }
}

/// A connection that was routed and got no backend: its route refused or redirected it, or none could be connected.
#[derive(Debug)]
pub(super) struct Failure {
    /// The destination's label.
    pub(super) route: Arc<str>,
    /// The backend tried last.
    pub(super) backend: Option<SocketName>,
    /// How many were tried.
    pub(super) attempts: u32,
    /// Why the last one failed, or the route refused it; `None` for a redirect.
    pub(super) error: Option<String>,
}

impl Failure {
    /// A client that its route does not lead to a backend, with this outcome.
    pub(super) fn of_route(route: Arc<str>, outcome: CloseReason) -> Self {
        let error = match outcome {
            CloseReason::Redirected => None,
            CloseReason::Rejected(rejection) => Some(rejection.to_string()),
            CloseReason::DeniedByRoute => Some("the route does not admit the client's address".to_owned()),
            CloseReason::RouteLimit => {
                Some("the route is at the limit of connections that its `connections` sets".to_owned())
            }
            _ => Some("the route refuses every client".to_owned()),
        };
        Self { route, backend: None, attempts: 0, error }
    }
}

/// The same words, be it refused or ended.
const BLOCKED: &str = "blocked";
const DENIED: &str = "denied";

impl CloseReason {
    /// `close` in the access log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Carried(End::Finished) => "finished",
            Self::Carried(End::Reset(Side::Client)) => "client_reset",
            Self::Carried(End::Reset(Side::Backend)) => "backend_reset",
            Self::Carried(End::Stopped(reason)) | Self::Stopped(reason) => match reason {
                StopReason::Idle => "idle_timeout",
                StopReason::Operator => "closed_by_operator",
                StopReason::RouteRemoved => "route_removed",
                StopReason::Shutdown => "shutdown",
                StopReason::Blocked => BLOCKED,
                StopReason::TunnelGone => "tunnel_gone",
                StopReason::HelloMemory => "hello_memory",
                StopReason::Denied => DENIED,
            },
            Self::Blocked => BLOCKED,
            Self::Denied | Self::DeniedByRoute => DENIED,
            Self::SourceLimit => "source_limit",
            Self::SourceRate => "source_rate",
            Self::Rejected(rejection) => rejection.label(),
            Self::ProxyHeaderTimeout => "proxy_header_timeout",
            Self::HelloMemory => "hello_memory",
            Self::HelloTimeout => "hello_timeout",
            Self::Gone => "client_gone",
            Self::NoRoute => "no_route",
            Self::Refused => "refused",
            Self::Redirected => "redirected",
            Self::RouteLimit => "route_limit",
            Self::BackendLimit => "backend_limit",
            Self::ConnectFailed => "connect_failed",
        }
    }

    /// Whether the client gave up, or was given up, before it had said what it wants.
    pub(super) fn is_silent(self) -> bool {
        matches!(self, Self::Gone | Self::HelloTimeout | Self::ProxyHeaderTimeout | Self::Stopped(_))
    }

    /// The reason for `edge_rejected_total`; `None` for what was carried or redirected, or went away by itself.
    pub fn refused(self) -> Option<&'static str> {
        match self {
            Self::Carried(_) | Self::Redirected | Self::Gone | Self::Stopped(_) => None,
            refused => Some(refused.label()),
        }
    }
}
