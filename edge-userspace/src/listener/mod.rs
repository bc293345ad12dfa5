//! Accepting connections: what a listener is, its sockets, and the loop that accepts.

mod accept;
mod bind;
mod spec;

pub use accept::accept;
pub use bind::{BindError, bind, tune};
pub use spec::{ListenerSpec, Protocol};
