//! A lab for the cases, the demo and the benches. Three hosts in network namespaces (client — edge — home)
//! are joined by veth pairs and optionally a WireGuard tunnel. Real peers run on them. Everything is removed
//! again, even if a case fails, panics or is interrupted.
//!
//! The lab knows nothing of the daemon's internals: it runs the built programs as an operator would.

pub mod access_log;
pub mod capture;
pub mod certificates;
pub mod clients;
pub mod dns;
pub mod edged;
pub mod failover;
pub mod firewall;
pub mod forge;
pub mod hello;
pub mod host;
pub mod lock;
pub mod loss;
pub mod metrics;
pub mod netns;
pub mod older;
pub mod peers;
pub mod process;
pub mod relay;
pub mod require;
pub mod router;
pub mod service;
pub mod soak;
pub mod stream;
pub mod streaming;
pub mod table;
mod teardown;
pub mod topology;
pub mod wait;
pub mod wireguard;

pub use anyhow::{Context, Error, Result, bail, ensure};
pub use edged::{Edgectl, Edged, EdgedPlan};
pub use host::Host;
pub use rustix::process::{Pid, Signal};
pub use topology::Lab;
