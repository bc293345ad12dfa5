//! The operator's interface to the daemon: JSON over HTTP/1.1 on a Unix socket, and the client behind
//! `edgectl`.
//!
//! The [`Operator`] decides what the daemon does for a request. This module knows neither client sockets nor
//! the kernel. `edgectl config check`, `doctor`, `init` and `import` read and write files themselves, without the
//! daemon.

#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod cli;
pub mod client;
pub(crate) mod http;
mod operator;
mod request;
mod server;
mod socket;
mod stalled;
mod stream;

pub use operator::{Operator, Refusal, RefusalKind};
pub use server::serve;
pub use socket::{BindError, ControlSocket};
