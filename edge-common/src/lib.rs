//! Types that the BPF programs and the daemon exchange through maps and ring buffers.
//!
//! Every type is `#[repr(C)]` without hidden padding, and its size is asserted at compile time. This crate depends
//! neither on the programs nor on the daemon. [`rules`] are the decisions that the programs make about a flow.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod flow;
mod layout;
#[expect(clippy::inline_always, reason = "calls of the packet programs share 512 bytes of stack")]
pub mod rules;
pub mod shield;
pub mod sockmap;

pub use layout::{LAYOUT, MEANING};
