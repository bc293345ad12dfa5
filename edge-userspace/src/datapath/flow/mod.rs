//! The flow tier: a connection is handed to the packet path and needs neither sockets nor daemon any more.
//!
//! [`carry`] says when, [`survey`] and [`confirm`] whether its packets go the way that a flow's would, [`ready`] what is done for it before, [`agreement`]
//! with which numbers, [`handover`] in which steps, [`drive`] takes them. The packets themselves are rewritten in the kernel (`edge-ebpf/src/flow`).

mod again;
pub mod agreement;
pub(super) mod carry;
mod confirm;
mod drive;
pub mod handover;
mod ports;
mod ready;
mod round_trip;
mod stay;
mod survey;
mod tier;
mod tracks;
mod trust;
mod wire;

pub use carry::OLD_ENOUGH;
pub use ports::{PortLease, Ports};
pub use stay::Stay;
pub use tier::{FlowTier, Older, Options};
pub use trust::Suspected;
