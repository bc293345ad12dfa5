//! A backend at run time: its counters and its state, shared by every worker and kept across reloads.
//!
//! How its state comes about is in [`condition`](super::condition); here it is made visible to those who pick,
//! and said once in the log.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use crossbeam_utils::atomic::AtomicCell;
use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};

use super::{
    balance,
    check::health::{Epoch, Evidence},
    condition::{BackendState, Condition, Obstacle, Turn},
    failures::Failures,
    identity::{BackendId, BackendStatus},
    location::{Addresses, Endpoint, Location},
    names::Labels,
    rtt::Rtt,
};
use crate::{
    lock::lock,
    places::Places,
    spec::{BackendAddress, BackendSpec, HealthSpec, Warm},
    tally::Tally,
};

/// A backend. Reads are atomic loads; only a change of state takes a lock.
pub struct Backend {
    id: BackendId,
    /// Where source-hash places it; depends on its identity alone.
    hash: u64,
    weight: AtomicU32,
    backup: AtomicBool,
    /// [`Warm`] of its pool; [`WARM_AUTO`] stands for `auto`.
    warm: AtomicU32,
    /// A copy of what `condition` says.
    state: AtomicCell<BackendState>,
    /// Whether an established connection is news to `health`.
    unsteady: AtomicBool,
    /// A copy of the number of `health`'s [`Epoch`].
    epoch: AtomicU32,
    /// When it came up again, in milliseconds of [`uptime`]; 0 means no slow start.
    recovered: AtomicU64,
    tally: Tally,
    places: Arc<Places>,
    rtt: Rtt,
    failures: Failures,
    /// When a check or a client's connection last succeeded, in milliseconds since the epoch; 0 means never.
    succeeded: AtomicU64,
    /// The port that `health` is about, if it is the listener's; 0 means any.
    checked_port: AtomicU16,
    location: Location,
    condition: Mutex<Condition>,
    /// Somebody failed on it, or got through though it is down: the checker should look now.
    suspicion: Notify,
    changes: Notify,
}

const WARM_AUTO: u32 = u32::MAX;

// Every pick reads the state.
const _: () = assert!(AtomicCell::<BackendState>::is_lock_free());

impl Backend {
    /// A backend that nothing is known of yet: up or unchecked, or down when its name is yet to be resolved.
    pub fn new(
        id: BackendId,
        spec: &BackendSpec,
        places: Arc<Places>,
        health: HealthSpec,
        alone: bool,
    ) -> Self {
        let location = Location::new(&spec.to);
        let condition = Condition::new(health, alone, !location.is_known());
        Self {
            hash: balance::backend_hash(&id),
            id,
            weight: AtomicU32::new(spec.weight),
            backup: AtomicBool::new(spec.backup),
            warm: AtomicU32::new(0),
            state: AtomicCell::new(condition.state),
            unsteady: AtomicBool::new(true),
            epoch: AtomicU32::new(condition.health().epoch().0),
            recovered: AtomicU64::new(0),
            tally: Tally::default(),
            places,
            rtt: Rtt::default(),
            failures: Failures::default(),
            succeeded: AtomicU64::new(0),
            checked_port: AtomicU16::new(0),
            location,
            condition: Mutex::new(condition),
            suspicion: Notify::new(),
            changes: Notify::new(),
        }
    }

    /// Takes what a reload may have changed; counters and state stay.
    pub fn reconfigure(&self, spec: &BackendSpec, health: HealthSpec, alone: bool) {
        self.weight.store(spec.weight, Relaxed);
        self.backup.store(spec.backup, Relaxed);
        self.apply(|condition| condition.reconfigure(health, alone));
    }

    /// Which one it is.
    pub fn id(&self) -> &BackendId {
        &self.id
    }

    /// Where it is, as configured.
    pub fn to(&self) -> &BackendAddress {
        &self.id.to
    }

    /// The tunnel device through which alone it may be reached.
    pub fn device(&self) -> Option<&Arc<str>> {
        self.id.device.as_ref()
    }

    /// Its configured share of new connections; 0 means drained.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Whether it waits for the others to fail.
    pub fn is_backup(&self) -> bool {
        self.backup.load(Relaxed)
    }

    /// Live connections of clients.
    pub fn connections(&self) -> u64 {
        self.tally.live()
    }

    /// The counts of its connections.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Its failed connections.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// The places of its connections.
    pub fn places(&self) -> &Arc<Places> {
        &self.places
    }

    /// Whether it takes new connections.
    pub fn state(&self) -> BackendState {
        if self.weight() == 0 { BackendState::Drained } else { self.state.load() }
    }

    /// Its addresses, `default_port` where neither the configuration nor SRV gives one. Empty while its name
    /// is unresolved, and for a Unix socket.
    pub fn addresses(&self, default_port: u16) -> Addresses {
        self.location.addresses(default_port)
    }

    /// Whether it can be connected to: it has an address, or is a Unix socket.
    pub(super) fn is_located(&self) -> bool {
        self.location.is_known()
    }

    /// The names that depend on the client's; `None` where all clients are led to the same place.
    pub(super) fn labels(&self) -> Option<&Arc<Labels>> {
        self.location.labels()
    }

    /// Where a name that was looked up for one client leads.
    pub(super) fn address_of(&self, endpoint: Endpoint, default_port: u16) -> SocketAddr {
        self.location.address_of(endpoint, default_port)
    }

    /// Takes the resolver's answer; ignored for a backend that is given by address. An empty answer changes
    /// only the reason: the last valid addresses stay in use.
    pub fn resolved(&self, answer: Result<Vec<Endpoint>, &str>) {
        let found = answer.as_ref().is_ok_and(|found| !found.is_empty());
        match answer {
            Ok(endpoints) if found => {
                self.location.resolved(endpoints);
                self.obstacle(Obstacle::Name, None);
            }
            _ if self.location.is_known() => {}
            Ok(_) => self.obstacle(Obstacle::Name, Some("the name has no address")),
            Err(reason) => self.obstacle(Obstacle::Name, Some(reason)),
        }
    }

    /// `address` answered before the ones ahead of it.
    pub(super) fn prefer(&self, address: SocketAddr) {
        self.location.prefer(address.ip());
    }

    /// Counts a live connection for as long as the lease is held.
    pub fn lease(self: &Arc<Self>) -> Lease {
        self.tally.entered();
        Lease { backend: Arc::clone(self) }
    }

    /// A client's connection was established; `rtt` is the kernel's estimate or the time that connecting took.
    /// `default_port` is the listener's, as for [`Backend::addresses`].
    pub fn connected(&self, default_port: u16, rtt: Duration) {
        self.tally.began();
        self.rtt.measured(rtt);
        self.succeeds();
        if self.unsteady.load(Relaxed) && self.is_checked_on(default_port) {
            let mut is_out = false;
            self.apply(|condition| {
                is_out = condition.health().is_out();
                condition.report(Evidence::Traffic(self.epoch()), Ok(()))
            });
            if is_out {
                // No proof, but a reason to look. The checks after that one keep their own pace.
                self.suspicion.notify_one();
            }
        }
    }

    fn succeeds(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.succeeded.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether its state comes from clients alone and its pool has no other backend. Every client then tries
    /// it, down or not, with the full timeout. A fault of its tunnel or its name still counts.
    pub(super) fn is_only_way(&self) -> bool {
        let condition = self.condition();
        condition.health().is_only_way()
            && [Obstacle::Tunnel, Obstacle::Name].iter().all(|&it| !condition.is_set(it))
    }

    /// The time that a client's connection begins in, for [`Backend::failed`].
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Relaxed))
    }

    /// A client's connection that began in the epoch `began` could not be established. On another port than the one
    /// that is checked, this is remembered as the last error and no more: a home without a service on port 80 is not
    /// down.
    pub(super) fn failed(&self, default_port: u16, began: Epoch, reason: &str) {
        // Behind a `{label}` target each name has a home of its own.
        if !self.is_checked_on(default_port) || self.labels().is_some() {
            self.condition().failed(reason);
            return;
        }
        self.apply(|condition| condition.report(Evidence::Traffic(began), Err(reason)));
        self.suspicion.notify_one();
    }

    /// Sets the port that its health is about, where the configuration gives none.
    pub(super) fn check_on(&self, default_port: u16) {
        self.checked_port.store(default_port, Relaxed);
    }

    fn is_checked_on(&self, default_port: u16) -> bool {
        let checked = self.checked_port.load(Relaxed);
        checked == default_port || checked == 0 || self.id.to.is_one_place()
    }

    /// A check ended.
    pub fn checked(&self, outcome: Result<Duration, &str>) {
        if let Ok(rtt) = outcome {
            self.rtt.measured(rtt);
            self.succeeds();
        }
        self.apply(|condition| condition.report(Evidence::Check, outcome.map(|_| ())));
    }

    /// Ends the time out of an unchecked backend.
    pub fn retry(&self) {
        self.apply(Condition::retry);
    }

    /// The wait until the next check, see [`Health::next`].
    pub fn next_check(&self, spread: f64) -> Option<Duration> {
        self.condition().health().next(spread)
    }

    /// Ends when a client's connection told something that a check should see for itself, since the last call.
    pub async fn suspected(&self) {
        self.suspicion.notified().await;
    }

    /// Ends at the first change of state after this call, even if it is awaited later only.
    pub fn changed(&self) -> Notified<'_> {
        self.changes.notified()
    }

    /// Sets or clears (`None`) what keeps it down apart from its health.
    pub fn obstacle(&self, obstacle: Obstacle, reason: Option<&str>) {
        let mut cleared = false;
        self.apply(|condition| {
            cleared = reason.is_none() && condition.is_set(obstacle);
            condition.set(obstacle, reason)
        });
        if cleared {
            // Checks failed meanwhile, or were not made; the next one should not be a whole interval away.
            self.suspicion.notify_one();
        }
    }

    /// No new connections from now on; live ones go on.
    pub fn drain(&self) {
        self.apply(Condition::drain);
    }

    /// Back in, whatever was known against its health.
    pub fn ready(&self) {
        self.apply(Condition::ready);
        self.suspicion.notify_one();
    }

    /// Everything at once, for display.
    pub fn status(&self) -> BackendStatus {
        let condition = self.condition();
        BackendStatus {
            id: self.id.clone(),
            addresses: self.location.endpoints(),
            state: self.state(),
            since: condition.since.wall(),
            reason: match self.weight() {
                0 => Some("its weight is 0".into()),
                _ => condition.reason.clone(),
            },
            last_error: condition.last_error.clone(),
            last_success: match self.succeeded.load(Relaxed) {
                0 => None,
                at => Some(SystemTime::UNIX_EPOCH + Duration::from_millis(at)),
            },
            weight: self.weight(),
            backup: self.is_backup(),
            connections: self.connections(),
            connections_limit: self.places.limit(),
            connections_total: self.tally.total(),
            bytes_up: self.tally.bytes_up(),
            bytes_down: self.tally.bytes_down(),
            rtt: self.rtt(),
        }
    }

    /// The round trip, smoothed; `None` before the first connection.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt.get()
    }

    /// Idle connections kept ready to it.
    pub(super) fn warm(&self) -> Warm {
        match self.warm.load(Relaxed) {
            WARM_AUTO => Warm::Auto,
            count => Warm::Count(count),
        }
    }

    pub(super) fn set_warm(&self, warm: Warm) {
        let warm = match warm {
            Warm::Auto => WARM_AUTO,
            Warm::Count(count) => count.min(WARM_AUTO - 1),
        };
        self.warm.store(warm, Relaxed);
    }

    /// A client's connection uses one that was made before; that says nothing new about it.
    pub(super) fn reused(&self) {
        self.tally.began();
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Its share in units of 1/256 of a weight: smaller for a while after it came up again.
    pub(super) fn effective_weight(&self) -> u64 {
        let weight = u64::from(self.weight());
        match self.recovered.load(Relaxed) {
            0 => weight * balance::FULL,
            recovered => {
                let share = balance::slow_start(Duration::from_millis(uptime().saturating_sub(recovered)));
                if share == balance::FULL {
                    self.recovered.store(0, Relaxed);
                }
                weight * share
            }
        }
    }

    /// Lets `event` act on the condition, and makes what comes of it known.
    fn apply(&self, event: impl FnOnce(&mut Condition) -> Option<Turn>) {
        let mut condition = self.condition();
        let turn = event(&mut condition);
        self.unsteady.store(!condition.health().is_steady(), Relaxed);
        self.epoch.store(condition.health().epoch().0, Relaxed);
        let Some(Turn { state, reason, recovered }) = turn else { return };
        if recovered {
            self.recovered.store(uptime().max(1), Relaxed);
        }
        self.state.store(state);
        let is_down = state == BackendState::Down;
        // Still under the lock, so that the log has the changes in their order.
        let (pool, backend) = (&*self.id.pool, &self.id);
        let (state, reason) = (state.as_str(), &*reason);
        if is_down {
            tracing::warn!(pool, %backend, state, reason, "backend changed");
        } else {
            tracing::info!(pool, %backend, state, reason, "backend changed");
        }
        self.changes.notify_waiters();
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        // Every field is valid by itself, so a panic elsewhere leaves nothing half done that matters.
        lock(&self.condition)
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("id", &self.id).field("state", &self.state()).finish_non_exhaustive()
    }
}

/// A live connection to a backend; counted until it is dropped.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
}

impl Lease {
    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Adds bytes carried: `up` from the client, `down` to it.
    pub fn carried(&self, up: u64, down: u64) {
        self.backend.tally.carried(up, down);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.tally.left();
    }
}

/// Milliseconds since the first call in this process.
fn uptime() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    u64::try_from(Instant::now().saturating_duration_since(start).as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
