//! What the edge says about its work: the access log, metrics, the dashboard.

pub mod access_log;
pub mod admin;
mod hosts;
pub mod metrics;
mod shared;
pub mod timings;
