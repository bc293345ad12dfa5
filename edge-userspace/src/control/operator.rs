//! What the daemon does for the control API, and how it refuses.

use std::{borrow::Cow, collections::HashSet, future::Future};

use super::api::{
    AddBlock, AddRoute, AddedRoutes, Backend, BackendSelector, Block, Check, ClosedConnection, Connection,
    ErrorBody, ErrorDetail, ReloadPlan, ReloadReport, RemoveBlock, RemoveRoute, RemovedRoutes, Route,
    RouteTest, Status, TestRoute, Trace, TraceClient,
};
use crate::observe::access_log::AccessLog;

/// The daemon as the control API sees it.
///
/// Calls that answer from memory are plain functions and must not block. Calls that wait for the disk, the
/// network or the workers return a future. A caller that disconnects may drop it, so a change that must not
/// stop halfway runs in a task of its own.
pub trait Operator: Send + Sync + 'static {
    /// Every route, in the order of precedence or of the file.
    fn routes(&self) -> Vec<Route>;

    /// Adds a route for each host, all or none; they are in effect and on disk before the answer.
    ///
    /// Adding an identical route succeeds and changes nothing. Refused are: conditions that a route of the
    /// file already has; a runtime route that leads elsewhere, unless `replace`; an unknown listener or pool.
    fn add_route(&self, route: AddRoute) -> impl Future<Output = Result<AddedRoutes, Refusal>> + Send;

    /// Removes one runtime route for each host, all or none; they are off the disk before the answer.
    ///
    /// Refused are: an unknown route, a route of the file, and a host that matches several routes.
    fn remove_route(&self, route: RemoveRoute)
    -> impl Future<Output = Result<RemovedRoutes, Refusal>> + Send;

    /// Says which route an imagined client would get, and with `probe` what the backends answer.
    fn test_route(&self, client: TestRoute) -> impl Future<Output = Result<RouteTest, Refusal>> + Send;

    /// Every backend of every pool.
    fn backends(&self) -> Vec<Backend>;

    /// Takes a backend out (`drained`) or puts it back; on disk before the answer, which holds what changed.
    fn set_drained(
        &self,
        backend: BackendSelector,
        drained: bool,
    ) -> impl Future<Output = Result<Vec<Backend>, Refusal>> + Send;

    /// Every live connection.
    fn connections(&self) -> Vec<Connection>;

    /// Ends a connection.
    fn close_connection(&self, id: u64) -> Result<ClosedConnection, Refusal>;

    /// Ends these connections; returns how many there were.
    fn close_connections(&self, ids: &HashSet<u64>) -> u64;

    /// The access log.
    fn access_log(&self) -> &AccessLog;

    /// The daemon at a glance.
    fn status(&self) -> Status;

    /// Reads the configuration file again. A file that is wrong changes nothing.
    fn reload(&self) -> impl Future<Output = Result<ReloadReport, Refusal>> + Send;

    /// Reads the configuration file and says what a reload would change. Applies nothing.
    fn plan_reload(&self) -> impl Future<Output = Result<ReloadPlan, Refusal>> + Send;

    /// Looks at kernel, capabilities, ports, tunnels and backends; passes on each finding at once.
    fn doctor(&self, found: impl FnMut(Check) + Send) -> impl Future<Output = ()> + Send;

    /// Every blocked prefix.
    fn blocks(&self) -> Result<Vec<Block>, Refusal>;

    /// Blocks a prefix.
    fn add_block(&self, block: AddBlock) -> impl Future<Output = Result<Block, Refusal>> + Send;

    /// Lets a blocked prefix in again; the answer is the block as it was.
    fn remove_block(&self, block: RemoveBlock) -> impl Future<Output = Result<Block, Refusal>> + Send;

    /// Gives the lines about a client's packets that have come since the reader's last call.
    fn trace(&self, client: TraceClient) -> Result<Trace, Refusal>;
}

/// The kind of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// The request cannot be understood (400).
    BadRequest,
    /// The caller did not prove who it is (401).
    Unauthorized,
    /// Nobody may do this here (403).
    Forbidden,
    /// There is no such thing (404).
    NotFound,
    /// It contradicts what is there (409).
    Conflict,
    /// The request took too long to arrive (408).
    Timeout,
    /// The body is larger than any request needs (413).
    TooLarge,
    /// There is such a thing, and this cannot be done with it (405).
    Method,
    /// Understood, and wrong: an unknown listener, a configuration file with errors (422).
    Invalid,
    /// The daemon failed; nothing was changed (500).
    Internal,
    /// This machine cannot do it (501).
    Unsupported,
    /// Not now: the daemon is ending (503).
    Unavailable,
}

impl RefusalKind {
    /// The HTTP status of the answer (RFC 9110 §15).
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Method => 405,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::TooLarge => 413,
            Self::Invalid => 422,
            Self::Internal => 500,
            Self::Unsupported => 501,
            Self::Unavailable => 503,
        }
    }
}

/// Why the daemon did not do it, and what the operator can do about that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Its kind.
    pub kind: RefusalKind,
    /// A stable name in `snake_case`, such as `route_exists`.
    pub code: Cow<'static, str>,
    /// One sentence, or for a configuration error the whole report.
    pub message: String,
    /// The remedy.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without a hint.
    pub fn new(kind: RefusalKind, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { kind, code: code.into(), message: message.into(), hint: None }
    }

    /// The same, with what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The body of the answer.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                code: self.code.clone().into_owned(),
                message: self.message.clone(),
                hint: self.hint.clone(),
            },
        }
    }
}
