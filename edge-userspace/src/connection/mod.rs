//! The life of one connection, from accept to its line in the access log, and the registry of all live
//! connections.
//!
//! A connection consults one immutable [`Running`] state. It leaves counts at its [`Destination`], its
//! backend and the listener's refusals. This module does not know where the state comes from.

#![forbid(unsafe_code)]

mod accept;
mod account;
mod destination;
mod edge;
mod flows;
mod header;
mod hello;
mod hello_memory;
mod open;
mod outcome;
mod passport;
mod postgres;
mod received;
mod refusal;
mod registry;
mod running;
mod serve;
mod view;

pub use accept::accept;
pub use account::Connection;
pub use destination::{Destination, Source, identity_of, identity_of_conditions};
pub use edge::Edge;
pub use flows::{Flows, LiveFlow};
pub use hello_memory::HelloMemory;
pub use outcome::CloseReason;
pub use passport::Passport;
pub use postgres::Sessions;
pub use refusal::told;
pub use registry::Registry;
pub use running::{ListenerState, Running};
pub use serve::{Accepted, serve};
pub use view::View;
