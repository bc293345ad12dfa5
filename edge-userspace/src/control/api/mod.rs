//! The JSON of the control interface, both directions, shared by the daemon and `edgectl`.
//!
//! Field names are fixed: scripts rely on them. A list is a bare array of objects. A field without a value is
//! `null`, never absent, unless its documentation says otherwise. Requests with unknown fields are refused.

mod backends;
mod blocks;
mod connections;
mod doctor;
mod fields;
mod log;
mod plan;
mod routes;
mod status;
mod trace;

use serde::{Deserialize, Serialize};

pub use backends::{Backend, BackendSelector, BackendState};
pub use blocks::{AddBlock, Block, Guard, GuardedBy, RemoveBlock};
pub(super) use connections::asks_for;
pub use connections::{ClosedConnection, ClosedConnections, Connection, ConnectionFilter};
pub use doctor::{Check, CheckStatus, DoctorReport};
pub use fields::{PrefixError, Timestamp, parse_prefix};
pub use log::{LogLine, LogRequest, LostLines};
pub use plan::{ConcernedConnections, ReloadPlan};
pub use routes::{
    AddRoute, AddedRoutes, Considered, Probe, ProbeStep, RemoveRoute, RemovedRoutes, Route, RouteSource,
    RouteTest, TargetError, TestRoute, parse_target,
};
pub use status::{
    BackendCount, BindTrouble, ConfigStatus, ConnectionCount, ConntrackStatus, DatapathStatus, HelloMemory,
    ListenerStatus, OtherLayout, ReloadReport, ReloadStatus, RouteCount, Status, TierStatus,
};
pub use trace::{Trace, TraceClient, TraceLine};

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// An error: a code for scripts, a message for people, and a remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// A stable name in `snake_case`.
    pub code: String,
    /// One sentence, or for a configuration error the whole report.
    pub message: String,
    /// The remedy.
    pub hint: Option<String>,
}
