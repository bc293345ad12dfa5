//! What an operator can observe: access log, metrics, times.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod log_filter;
pub mod metrics;
pub mod timings;
