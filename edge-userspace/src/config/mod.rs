//! TOML → validated settings, with errors that say how to mend the file.

mod document;
mod listeners;
mod network;
mod problem;
mod references;
mod settings;
pub mod state;
mod tables;
mod value;

pub use problem::{ConfigError, Problem, Refusal};
pub use settings::{AccessLogTarget, DaemonSettings, FlowSpec, Limits, ResolverSpec, Settings, ShieldSpec};
