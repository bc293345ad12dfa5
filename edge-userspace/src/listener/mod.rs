//! The sockets of listeners: bound, tuned, kept over a restart.

#![forbid(unsafe_code)]

mod bind;
mod holder;

pub use bind::{BindError, bind, is_local, is_taken, tune};
pub use holder::{Holder, holder};
