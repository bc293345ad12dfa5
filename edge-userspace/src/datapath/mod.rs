//! Carries bytes: one file per tier, behind one small interface.
//!
//! [`carry`] takes a connected [`Pair`] and the bytes already read, carries the connection to its end, and
//! returns why it ended. It updates the [`Meter`] continuously, so that an operator sees live counts. Nothing
//! here knows routes, pools or configuration.

#![forbid(unsafe_code)]

mod bulk;
mod copy;
mod direction;
pub mod flow;
mod meter;
mod pipe;
mod relay;
mod sockmap;
mod splice;
mod stop;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};

use futures_util::future::{Either, FutureExt as _};

use self::flow::FlowTier;
use crate::{kernel::Sockmap, spec::Choice};

pub use meter::Meter;
pub use pipe::{LARGER_PIPES, SMALL_PIPES, are_pipes_large};
pub(crate) use relay::reset;
pub use relay::{Hold, Pair, Preread};
pub use stop::{Stop, StopReason};

/// The tiers that not every machine has.
#[derive(Clone, Debug, Default)]
pub struct Tiers {
    /// Loaded when the first route asks for it.
    sockmap: OnceLock<Arc<Sockmap>>,
    flow: OnceLock<Arc<FlowTier>>,
}

impl Tiers {
    /// The packet path, once it is there.
    pub fn flow(&self) -> Option<&Arc<FlowTier>> {
        self.flow.get()
    }

    /// From now on connections can be handed to the packet path.
    pub fn add_flow(&self, flow: Arc<FlowTier>) {
        // A second one of the same kind is of no use.
        let _ = self.flow.set(flow);
    }

    /// Redirection between sockets, once it is there.
    pub fn sockmap(&self) -> Option<&Arc<Sockmap>> {
        self.sockmap.get()
    }

    /// From now on connections can be redirected between sockets. [`Sockmap::deliver`] has to run.
    pub fn add_sockmap(&self, sockmap: Arc<Sockmap>) {
        // A second one of the same kind is of no use.
        let _ = self.sockmap.set(sockmap);
    }
}

/// Carries a connection until it ends or is handed over: by the chosen tier or, if that is not possible, by
/// copy and splice.
pub fn carry<'a>(
    pair: Pair,
    preread: Preread,
    choice: Choice,
    tiers: &'a Tiers,
    passenger: &'a impl Passenger,
    meter: &'a Meter,
    stop: &'a Stop,
) -> impl Future<Output = Fate> + Send + 'a {
    // Futures of the rarer tiers are boxed, so that other connections do not pay for their size.
    match (choice, tiers.sockmap(), tiers.flow()) {
        (Choice::Sockmap, Some(sockmap), _) => {
            let carried = sockmap::carry(pair, preread, Arc::clone(sockmap), meter, stop);
            Either::Left(carried.map(Fate::Ended).boxed())
        }
        (Choice::Auto | Choice::Flow, _, Some(tier)) => {
            let at_once = choice == Choice::Flow;
            Either::Right(flow::carry::carry(pair, preread, at_once, tier, passenger, meter, stop))
        }
        _ => {
            let carried = relay::carry(pair, preread, choice, meter, stop);
            Either::Left(carried.map(Fate::Ended).boxed())
        }
    }
}

/// The outcome of carrying a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It has ended.
    Ended(End),
    /// It goes on as a flow, without sockets and without this task.
    HandedOver,
}

impl Fate {
    /// How it ended; `None` where it goes on.
    pub fn end(self) -> Option<End> {
        match self {
            Self::Ended(end) => Some(end),
            Self::HandedOver => None,
        }
    }
}

/// A connection as the flow that it becomes is known by.
pub trait Passenger: Sync {
    /// Asked for when it is handed over.
    fn ticket(&self) -> Ticket;

    /// [`Ticket::label`] reduced to what it shares with others, for when labels are scarce. `None` if the
    /// rest cannot be left out.
    fn common_label(&self) -> Option<String>;
}

/// The part of a connection's description that its flow keeps for accounting.
#[derive(Clone, Debug, Default)]
pub struct Ticket {
    /// The connection's number.
    pub id: u64,
    /// The description as text; flows with the same description share it.
    pub label: String,
    /// When it was accepted, `CLOCK_MONOTONIC` in nanoseconds.
    pub accepted: u64,
    /// How long connecting to the backend took, in microseconds.
    pub connect_time: u32,
}

impl Passenger for Ticket {
    fn ticket(&self) -> Ticket {
        self.clone()
    }

    fn common_label(&self) -> Option<String> {
        None
    }
}

/// The two ends of a connection through the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that connected to us.
    Client,
    /// Whom we connected to.
    Backend,
}

/// Why carrying ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both directions were closed in order.
    Finished,
    /// This side reset the connection, or its network failed; the other side was reset after it had received
    /// the data sent before.
    Reset(Side),
    /// The edge ended it.
    Stopped(StopReason),
}
