//! Types that the BPF programs and the daemon exchange through maps and ring buffers.
//!
//! Every type is `#[repr(C)]` without hidden padding, its size asserted at compile time. This crate knows
//! nobody: neither the programs nor the daemon.
#![no_std]

pub mod flow;
pub mod shield;
pub mod sockmap;

/// The version of the layout of all pinned maps. It is part of the path of every pin: a daemon adopts what a
/// daemon of the same layout left, and nothing else. Raise it with any change of a type or meaning here.
pub const LAYOUT: u32 = 2;
