//! The flow tier: a connection is handed to the packet path and needs neither sockets nor daemon any more.
//!
//! [`carry`] decides when, [`survey`] and [`confirm`] whether its packets would take the path of a flow's.
//! [`ready`] prepares it, [`agreement`] computes the numbers, [`handover`] determines the steps and [`drive`]
//! performs them. The kernel rewrites the packets (`edge-ebpf/src/flow`).

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
