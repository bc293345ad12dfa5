//! What an operator can observe: access log, metrics, times.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod log;
pub mod metrics;
pub mod process;
pub mod refusals;
pub mod timings;
