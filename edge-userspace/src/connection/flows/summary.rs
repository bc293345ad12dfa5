//! A flow as the operator sees it, from its entries or from the kernel's report about its end; and its last account.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use edge_common::flow::FlowEvent;

use super::since;
use crate::{
    accounts::{Account, unique_id},
    connection::{CloseReason, Passport, View},
    datapath::{End, Side, StopReason},
    kernel::{FlowPair, monotonic},
    spec::Tier,
    tally::FlowSum,
};

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowEnd {
    Finished,
    ClientReset,
    BackendReset,
    Stopped(StopReason),
    /// This side answered no keepalive.
    Gone(Side),
    /// A hand-over that an earlier daemon did not finish, and bytes were lost.
    Unfinished,
}

impl FlowEnd {
    /// Of a flow that ended by itself. `is_up` when the report is about its client → backend entry.
    pub(super) const fn reported(event: &FlowEvent, is_up: bool) -> Self {
        match (event.resets, is_up) {
            (0, _) => Self::Finished,
            (1, true) | (2, false) => Self::ClientReset,
            _ => Self::BackendReset,
        }
    }

    /// `close` in the access log.
    fn label(self) -> &'static str {
        match self {
            Self::Finished => CloseReason::Carried(End::Finished).label(),
            Self::ClientReset => CloseReason::Carried(End::Reset(Side::Client)).label(),
            Self::BackendReset => CloseReason::Carried(End::Reset(Side::Backend)).label(),
            Self::Stopped(reason) => CloseReason::Stopped(reason).label(),
            Self::Gone(Side::Client) => "client_gone",
            Self::Gone(Side::Backend) => "backend_gone",
            Self::Unfinished => "handover_interrupted",
        }
    }
}

/// A flow as the kernel has it. Times are `CLOCK_MONOTONIC` nanoseconds.
#[derive(Debug)]
pub(super) struct Summary {
    id: u64,
    pub(super) label: u32,
    /// The peer of the client's connection.
    pub(super) peer: SocketAddr,
    local: SocketAddr,
    pub(super) backend: SocketAddr,
    accepted: u64,
    duration: Duration,
    connect_time: Duration,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
}

impl Summary {
    /// One whose end the kernel reported.
    pub(super) fn reported(event: &FlowEvent, is_up: bool) -> Self {
        let (peer, local, backend) = if is_up {
            (event.key.source(), event.key.destination(), event.to.destination())
        } else {
            (event.to.destination(), event.to.source(), event.key.source())
        };
        let (bytes_up, bytes_down) =
            if is_up { (event.bytes, event.peer_bytes) } else { (event.peer_bytes, event.bytes) };
        let connect_time = Duration::from_micros(event.connect_time.into());
        Self {
            id: event.id,
            label: event.label,
            peer,
            local,
            backend,
            accepted: event.accepted,
            // The kernel looks at a coarse clock, which may be a tick behind.
            duration: since(event.last_seen, event.accepted).max(connect_time),
            connect_time,
            bytes_up,
            bytes_down,
        }
    }

    /// One that lives now.
    pub(super) fn of_live(pair: &FlowPair) -> Self {
        Self::until(monotonic(), pair)
    }

    /// One that this daemon ended.
    pub(super) fn of_ended(pair: &FlowPair, end: FlowEnd) -> Self {
        match end {
            FlowEnd::Stopped(_) => Self::of_live(pair),
            _ => Self::until(pair.up.last_seen.max(pair.down.last_seen), pair),
        }
    }

    fn until(end: u64, FlowPair { up_key, up, down }: &FlowPair) -> Self {
        Self {
            id: up.id,
            label: up.label,
            peer: up_key.source(),
            local: up_key.destination(),
            backend: up.to.destination(),
            accepted: up.accepted,
            duration: since(end, up.accepted),
            connect_time: Duration::from_micros(up.connect_time.into()),
            bytes_up: up.bytes(),
            bytes_down: down.bytes(),
        }
    }

    /// The bytes that it carried.
    pub(super) const fn sum(&self) -> FlowSum {
        FlowSum { live: 0, up: self.bytes_up, down: self.bytes_down }
    }

    /// The flow with its description.
    pub(super) fn view(&self, passport: &Passport) -> View {
        let age = since(monotonic(), self.accepted);
        View {
            id: self.id,
            client: passport.client_or(self.peer),
            local: self.local,
            listener: Arc::clone(&passport.listener),
            protocol: passport.protocol,
            host: passport.host.clone(),
            raw_name: passport.raw_name.clone(),
            alpn: passport.alpn(),
            ech: passport.ech,
            route: Some(Arc::clone(&passport.route)),
            backend: Some(self.backend.into()),
            datapath: Some(Tier::Flow),
            spilled: false,
            bytes_up: self.bytes_up,
            bytes_down: self.bytes_down,
            accepted: SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH),
            duration: self.duration,
            connect_time: Some(self.connect_time),
        }
    }

    /// The last account of it.
    pub(super) fn account(&self, passport: &Passport, end: FlowEnd) -> Account {
        let name = passport.unique_id.clone().unwrap_or_else(|| unique_id(passport.run, self.id));
        let record = self.view(passport).record(end.label(), name);
        Account { record, refused: false, is_logged: true }
    }
}
