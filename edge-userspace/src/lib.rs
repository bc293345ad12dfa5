//! The daemon `edged` and its remote `edgectl`, as a library: the binaries are wiring only.
//!
//! One connection's way: `listener` binds, `connection` accepts, `sniff` reads what the client asks for, `route` picks,
//! `pool` chooses a backend, `datapath` carries, and `connection` keeps the account of it all. `spec` is what the
//! operator says.

pub mod accounts;
pub mod config;
pub mod connection;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod group;
pub mod hash;
pub mod import;
pub mod kernel;
pub mod listener;
pub mod lock;
pub mod moment;
#[cfg(test)]
mod namespace;
pub mod observe;
pub mod places;
pub mod pool;
pub mod proxy_protocol;
pub mod receive;
pub mod route;
pub mod setup;
pub mod shield;
pub mod sniff;
pub mod source;
pub mod spec;
pub mod tally;
pub mod tunnel;
