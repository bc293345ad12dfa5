//! Every connection that lives.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::Connection;
use crate::{
    datapath::{StopReason, flow::OLD_ENOUGH},
    lock::lock,
};

/// Locks that share the connections, so that workers seldom meet.
const SHARDS: usize = 16;

/// Every connection that lives, by its number.
#[derive(Debug, Default)]
pub struct Registry {
    shards: [Mutex<HashMap<u64, Arc<Connection>>>; SHARDS],
}

impl Registry {
    pub(super) fn insert(&self, connection: Arc<Connection>) {
        self.shard(connection.id).insert(connection.id, connection);
    }

    pub(super) fn remove(&self, id: u64) {
        let _removed = self.shard(id).remove(&id);
    }

    /// The connection of this number.
    pub fn get(&self, id: u64) -> Option<Arc<Connection>> {
        self.shard(id).get(&id).cloned()
    }

    /// All, in the order in which they came.
    pub fn list(&self) -> Vec<Arc<Connection>> {
        let mut all: Vec<_> = (0..SHARDS).flat_map(|shard| self.members(shard)).collect();
        all.sort_unstable_by_key(|connection| connection.id);
        all
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Brings the counters of destinations and backends up to date.
    pub fn settle(&self) {
        let now = Instant::now();
        for shard in 0..SHARDS {
            for connection in self.members(shard) {
                connection.settle(now);
            }
        }
    }

    /// The same; also ends connections that were idle for as long as their route or their listener allows, or
    /// for `idle` without such a setting, and turns on keepalive for long-lived ones.
    pub fn sweep(&self, idle: Option<Duration>) {
        let now = Instant::now();
        for shard in 0..SHARDS {
            for connection in self.members(shard) {
                let quiet = connection.settle(now);
                // A connection without a backend has time limits of its own.
                let limit = connection.idle_timeout(idle);
                if connection.upstream().is_some() && limit.is_some_and(|limit| quiet >= limit) {
                    connection.stop.order(StopReason::Idle);
                } else if connection.accepted.elapsed() >= OLD_ENOUGH {
                    connection.stop.nudge();
                }
            }
        }
    }

    /// Tells all that the daemon is about to end: it is time to be handed over, where they may be.
    pub fn last_call(&self) {
        for shard in 0..SHARDS {
            self.members(shard).iter().for_each(|connection| connection.stop.last_call());
        }
    }

    /// Ends all that `which` picks; says how many.
    pub fn stop(&self, reason: StopReason, which: impl Fn(&Connection) -> bool) -> usize {
        let chosen: Vec<_> = self.list().into_iter().filter(|connection| which(connection)).collect();
        for connection in &chosen {
            connection.stop.order(reason);
        }
        chosen.len()
    }

    fn members(&self, shard: usize) -> Vec<Arc<Connection>> {
        self.lock(shard).values().cloned().collect()
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.lock(usize::try_from(id % SHARDS as u64).unwrap_or(0))
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        lock(&self.shards[shard])
    }
}
