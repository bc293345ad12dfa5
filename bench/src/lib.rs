//! The load of the bench: a service for the host at home and clients for the host in front, two roles of one
//! program, `edge-load`.
//!
//! Both use blocking sockets and a thread for each stream: a closed loop with as few system calls as there can
//! be, so that what is measured is the edge between them. They share the machine's processors with the edge,
//! whereas real clients and services have their own; that is why bulk that arrives is counted and thrown away
//! in the kernel (`MSG_TRUNC`) instead of being copied to a buffer that nobody reads.

pub mod job;
pub mod opening;

mod drive;
mod handshake;
mod serve;
mod stream;

pub use drive::drive;
pub use serve::{Service, serve};
