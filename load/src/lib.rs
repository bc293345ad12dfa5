//! The [`bench`] and its load: a service on the host at home and clients on the host in front, two roles of one
//! program, `edge-load`.
//!
//! Both use blocking sockets and one thread per stream: a closed loop with as few system calls as possible,
//! so that the edge between them is measured. They share the machine's processors with the edge, whereas real
//! clients and services have their own. Bulk data is therefore counted and discarded in the kernel
//! (`MSG_TRUNC`), instead of being copied to a buffer that nobody reads.

pub mod bench;
pub mod job;
pub mod opening;

mod drive;
mod handshake;
mod serve;
mod stream;

pub use drive::drive;
pub use serve::{Service, serve};
