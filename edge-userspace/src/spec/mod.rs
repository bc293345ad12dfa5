//! The operator's settings and the properties that clients request: plain data, with parsing, printing and
//! defaults.
//!
//! Every other room may know this one; it knows none of them.

#![forbid(unsafe_code)]

mod access;
pub mod alpn;
mod ask;
mod datapath;
pub mod host;
mod label;
mod listener;
mod pool;
mod protocol;
mod proxy_tlvs;
mod redirect;
mod route;
mod tunnel;
mod unix;

pub use access::Access;
pub use alpn::AlpnList;
pub use ask::Ask;
pub use datapath::{Choice, FLOW_PORTS, Tier};
pub use host::{HostName, HostNameError};
pub use label::{LabelName, LabelNameError};
pub use listener::{ListenerSpec, Protocol};
pub use pool::{
    BackendAddress, BackendAddressError, BackendHost, BackendSpec, Balance, HealthKind, HealthSpec, PoolSpec,
    ProxyProtocol, Target, Warm,
};
pub use protocol::ClientProtocol;
pub use proxy_tlvs::{ProxyTlv, ProxyTlvError, ProxyTlvs};
pub use redirect::Redirect;
pub use route::{Conditions, HostPattern, RouteSpec};
pub use tunnel::TunnelSpec;
pub use unix::{SocketName, UnixPath, UnixPathError};
