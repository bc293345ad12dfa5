//! One run, as it is saved: every sample, and all that is needed to repeat it.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    machine::Machine,
    trials::{Effort, Metric},
};

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// When it began (RFC 3339, UTC).
    pub began: String,
    /// The command line.
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) effort: Effort,
    pub(crate) systems: Vec<Subject>,
    /// Systems that were not measured, and why.
    pub(crate) skipped: Vec<(String, String)>,
    /// The names of the tests, in their order.
    pub(crate) trials: Vec<String>,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failures: Vec<Failure>,
}

/// A system that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) about: String,
    pub(crate) version: Option<String>,
    pub(crate) configuration: String,
}

/// One value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) system: String,
    pub(crate) trial: String,
    pub(crate) metric: Metric,
    pub(crate) value: f64,
}

/// A test that a system did not get through.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) round: usize,
    pub(crate) system: String,
    pub(crate) trial: String,
    pub(crate) reason: String,
}

impl Run {
    /// Reads a saved run.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is no saved run", path.display()))
    }

    /// Saves it as JSON, for `--against` and `--from`.
    pub fn save(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))
    }

    /// The values of one figure, by round.
    pub(crate) fn values(&self, system: &str, trial: &str, metric: Metric) -> Vec<(usize, f64)> {
        self.samples
            .iter()
            .filter(|sample| sample.system == system && sample.trial == trial && sample.metric == metric)
            .map(|sample| (sample.round, sample.value))
            .collect()
    }

    /// The figures of a test, in the order of [`Metric`].
    pub(crate) fn metrics(&self, trial: &str) -> Vec<Metric> {
        let of_trial = self.samples.iter().filter(|sample| sample.trial == trial);
        let mut metrics: Vec<Metric> = of_trial.map(|sample| sample.metric).collect();
        metrics.sort_unstable();
        metrics.dedup();
        metrics
    }
}
