//! TOML → validated settings, with errors that say how to mend the file.

#![forbid(unsafe_code)]

mod changes;
mod document;
mod hosts;
mod listeners;
mod network;
mod port_ranges;
mod problem;
mod references;
mod settings;
pub mod state;
mod tables;
mod uses;
mod value;
mod warnings;

pub use changes::{ChangedItem, ChangedItems, Changes, route_name};
pub use problem::{ConfigError, Problem, Refusal};
pub use settings::{DaemonSettings, FlowSpec, Limits, ResolverSpec, Settings, ShieldSpec};
pub use uses::{Questions, Uses};
