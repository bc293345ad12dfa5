//! Backends, balancing, health and name resolution.

#![forbid(unsafe_code)]

mod attempts;
mod backend;
mod balance;
pub mod check;
mod condition;
pub mod connect;
mod identity;
mod location;
mod lookups;
mod names;
mod registry;
mod resolve;
mod rtt;
mod search;
mod stock;
pub mod warm;
mod ways;

pub use attempts::{Attempts, LAST_RESORT_TIMEOUT, Pool};
pub use backend::{Backend, Lease};
pub use condition::{BackendState, Obstacle};
pub use identity::{BackendId, BackendStatus};
pub use location::{Addresses, Endpoint};
pub use lookups::Names;
pub use registry::Backends;
pub use resolve::Resolver;
pub use ways::Ways;
