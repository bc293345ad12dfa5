//! Backends, balancing, health and name resolution.

#![forbid(unsafe_code)]

mod attempts;
mod backend;
mod balance;
pub mod check;
mod condition;
pub mod connect;
pub mod failures;
mod identity;
mod location;
mod names;
mod registry;
mod rtt;
mod ways;

pub use attempts::{Attempts, LAST_RESORT_TIMEOUT, Pool};
pub use backend::{Backend, Lease};
pub use condition::{BackendState, Obstacle};
pub use identity::{BackendId, BackendStatus};
pub use location::{Addresses, Endpoint};
pub use names::{Names, Resolver};
pub use registry::Backends;
pub use ways::TunnelPaths;
