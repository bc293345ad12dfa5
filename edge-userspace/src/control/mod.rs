//! How an operator steers the daemon: JSON over HTTP/1.1 on a Unix socket, and the client that `edgectl` is made of.
//!
//! What the daemon does behind it is the [`Operator`]'s business; nothing here knows sockets of clients, the
//! configuration file or the kernel.

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

pub use operator::{Operator, Refusal, RefusalKind};
pub use server::serve;
pub use socket::{BindError, ControlSocket};
