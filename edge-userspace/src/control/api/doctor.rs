//! The daemon's findings about itself and its environment.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Could not be looked at, or does not apply.
    Skip,
    /// It works, but not as well as it could.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The subject of the check, in a few words.
    pub name: Arc<str>,
    /// How it is.
    pub status: CheckStatus,
    /// The finding.
    pub message: String,
    /// How to mend it.
    pub remedy: Option<String>,
}

impl Check {
    /// A check without a remedy.
    pub fn new(name: impl Into<Arc<str>>, status: CheckStatus, message: impl Into<String>) -> Self {
        Self { name: name.into(), status, message: message.into(), remedy: None }
    }

    /// The same, with how to mend it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// `GET /v1/doctor`: everything looked at, in the order to read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoctorReport {
    /// The checks.
    pub checks: Vec<Check>,
}

impl DoctorReport {
    /// The worst finding; `None` when nothing was looked at.
    pub fn worst(&self) -> Option<CheckStatus> {
        self.checks.iter().map(|check| check.status).max()
    }
}
