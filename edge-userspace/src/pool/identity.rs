//! The identity of a backend, and a snapshot of its state for display.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{condition::BackendState, location::Endpoint};
use crate::{hash::fnv1a, spec::BackendAddress};

/// Identifies a backend across reloads.
///
/// The device belongs to it: the same address at home by two tunnels is two backends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendId {
    /// The pool's name.
    pub pool: Arc<str>,
    /// Where it is.
    pub to: BackendAddress,
    /// The tunnel device through which alone it may be reached.
    pub device: Option<Arc<str>>,
}

impl BackendId {
    /// As a number that is the same in every daemon.
    pub fn key(&self) -> u64 {
        fnv1a(&format!("{} {self}", self.pool))
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to)?;
        match &self.device {
            Some(device) => write!(f, " by {device}"),
            None => Ok(()),
        }
    }
}

/// A backend as the control interface shows it.
#[derive(Clone, Debug)]
pub struct BackendStatus {
    /// Which one.
    pub id: BackendId,
    /// The addresses in use; without a port where the listener's is meant.
    pub addresses: Vec<Endpoint>,
    /// The state.
    pub state: BackendState,
    /// When it came into that state.
    pub since: SystemTime,
    /// Why it is in that state; `None` for one that has been up from the start.
    pub reason: Option<Arc<str>>,
    /// The last failure of a check or a connection, and when.
    pub last_error: Option<(SystemTime, Arc<str>)>,
    /// When a check or a client's connection last succeeded.
    pub last_success: Option<SystemTime>,
    /// Its configured share.
    pub weight: u32,
    /// Whether it waits for the others to fail.
    pub backup: bool,
    /// Live connections.
    pub connections: u64,
    /// The most that there may be; 0 means no limit.
    pub connections_limit: usize,
    /// Connections ever made for clients.
    pub connections_total: u64,
    /// Bytes from clients.
    pub bytes_up: u64,
    /// Bytes to clients.
    pub bytes_down: u64,
    /// The round trip, smoothed; `None` before the first connection.
    pub rtt: Option<Duration>,
}
