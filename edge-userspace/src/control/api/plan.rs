//! The changes that a reload would make.

use serde::{Deserialize, Serialize};

use crate::config::Changes;

/// `GET /v1/reload`: the file compared with what runs. Nothing has been applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadPlan {
    /// The differences.
    #[serde(flatten)]
    pub changes: Changes,
    /// Live connections that are concerned.
    pub connections: ConcernedConnections,
    /// Warnings about the file, and settings that need a restart.
    pub warnings: Vec<String>,
}

/// Live connections that a reload would concern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConcernedConnections {
    /// They would be ended: `allow` and `deny` of the file refuse their clients.
    pub ended: u64,
    /// They would go on, though their listener or route is removed or changed.
    pub kept: u64,
}
