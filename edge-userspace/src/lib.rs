//! The daemon `edged` and its remote `edgectl`, as a library: the binaries are wiring only.
//!
//! One connection's way: `listener` accepts, `sniff` reads what the client asks for, `route` picks, `pool`
//! chooses a backend, `datapath` carries, `connection` keeps the account of it all.

pub mod alpn;
pub mod config;
pub mod connection;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod group;
pub mod hash;
pub mod host;
pub mod kernel;
pub mod listener;
pub mod moment;
pub mod observe;
pub mod pool;
pub mod proxy_protocol;
pub mod receive;
pub mod route;
pub mod shield;
pub mod sniff;
pub mod source;
pub mod tally;
pub mod tunnel;
