//! Accepting connections: what a listener is, its sockets, and the loop that accepts.

mod accept;
mod bind;
mod holder;
mod spec;

pub use accept::accept;
pub use bind::{BindError, bind, is_local, is_taken, tune};
pub use holder::{Holder, holder};
pub use spec::{ListenerSpec, Protocol};
