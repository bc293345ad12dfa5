//! The daemon: ties configuration, runtime state, listeners, workers and the control API together.
//!
//! Every change of what connections use goes through here, one at a time: it is checked, put on disk if it
//! must last, and then swapped in as a whole.

#![forbid(unsafe_code)]

mod arguments;
mod blocks;
mod build;
mod clock;
mod devices;
mod doctor;
mod ebb;
mod flows;
mod following;
mod listening;
mod observed;
mod operate;
mod prepare;
mod probe;
mod segments;
mod service;
mod severed;
mod sockets;
mod state_writer;
mod status;
mod tiers;
mod troubles;
mod vital;
mod worker;

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
pub use arguments::Arguments;
pub use prepare::{Options, Prepared, prepare};
pub use service::run;

use self::{
    blocks::Shielding,
    build::{Built, Kept, build},
    ebb::Ebb,
    following::Following,
    segments::Segments,
    sockets::{Demand, Sockets},
    state_writer::StateWriter,
    troubles::{Part, Troubles},
    worker::Workers,
};
use crate::{
    accounts::{Accounts, Admission},
    config::{
        ConfigError, Settings,
        state::{self, Opened, State, StateError, StateStore},
    },
    connection::{Edge, HelloMemory, Registry, Sessions},
    control,
    datapath::Tiers,
    kernel::{Finding, Kernel, Objects, PinsBusy, UnreadFlows, give_back_memory},
    listener::BindError,
    moment::Moment,
    observe::{access_log::AccessLog, timings::Timings},
    pool::BackendState,
    spec::Tier,
};

/// Descriptors that are reserved for other uses than connections: listeners, epoll, logs, the control API,
/// health checks, pipes.
const RESERVED_DESCRIPTORS: u64 = 256;
/// Descriptors that a connection holds: its two sockets.
const DESCRIPTORS_A_CONNECTION: u64 = 2;
/// The estimated memory of a connection, in bytes: two idle kernel sockets, the task, and as much again for
/// buffers now and then.
const MEMORY_A_CONNECTION: u64 = 16 << 10;
/// One source may have one in so many connections ...
const SHARE_OF_A_SOURCE: usize = 8;
/// ... or so many, where there are few.
const LEAST_SHARE: usize = 128;

/// Why the daemon cannot start, or a reload changes nothing.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The runtime state on disk cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The control socket cannot be opened.
    #[error(transparent)]
    Control(#[from] control::BindError),
    /// Another daemon has the pins.
    #[error(transparent)]
    Pins(#[from] PinsBusy),
    /// A tier that the operator insists on is not to be had.
    #[error(
        "datapath = \"{}\" cannot be had on this machine: {reason}; `edgectl doctor` says more, and \"auto\" always works",
        tier.name()
    )]
    Tier {
        /// Which.
        tier: Tier,
        /// Why not.
        reason: String,
    },
    /// The system refuses something else.
    #[error("{0}: {1}")]
    System(&'static str, std::io::Error),
}

/// The running daemon.
#[derive(Debug)]
pub struct Daemon {
    config: PathBuf,
    started: Moment,
    edge: Arc<Edge>,
    workers: Workers,
    /// Serialises changes, and holds the state that they change.
    steering: tokio::sync::Mutex<Steering>,
    shielding: Shielding,
    segments: Segments,
    troubles: Arc<Troubles>,
    /// The blocks that were on disk when the daemon started.
    loaded_blocks: Vec<state::Block>,
    /// Where tiers come from that are asked for later.
    objects: Objects,
    /// Features that the kernel lacks, as of the daemon's start.
    findings: Vec<Finding>,
    /// Flows of versions whose layout this one cannot read.
    unread: Vec<UnreadFlows>,
    /// Settings that can be shown without waiting for a change in progress.
    shown: Mutex<Shown>,
}

/// State that only one change at a time may touch.
#[derive(Debug)]
struct Steering {
    settings: Settings,
    store: StateWriter,
    state: State,
    kept: Kept,
    sockets: Sockets,
    following: Following,
}

/// The daemon as `status` shows it.
#[derive(Debug)]
struct Shown {
    settings: Settings,
    loaded: Moment,
    last_reload: Option<Reload>,
    draining: bool,
}

/// How the last reload went.
#[derive(Clone, Debug)]
struct Reload {
    time: Moment,
    error: Option<String>,
}

/// The result of a reload.
#[derive(Debug)]
struct Applied {
    listeners: usize,
    pools: usize,
    routes: usize,
    warnings: Vec<String>,
    /// The runtime state was changed with it, and is not on disk yet.
    is_state_new: bool,
}

impl Daemon {
    /// Binds the listeners and starts to accept. `inherited` are sockets that the service manager bound.
    ///
    /// Runs within the control runtime: health checks and name resolution are its tasks.
    pub fn start(
        config: &Path,
        settings: Settings,
        inherited: Vec<TcpListener>,
        workers: usize,
        mut kernel: Kernel,
    ) -> Result<Arc<Self>, DaemonError> {
        let troubles = Arc::new(Troubles::default());
        let Opened { mut store, mut state, recovery, obstacle } =
            StateStore::open(&settings.daemon.state_dir)?;
        troubles.note(Part::State, obstacle.map(|obstacle| obstacle.to_string()));
        if drop_repeated(&settings, &mut state)
            && let Err(error) = store.save(&state)
        {
            troubles.note(Part::State, Some(error.to_string()));
        }
        if let Some(recovery) = recovery {
            tracing::error!("{recovery}");
        }
        let access_log = AccessLog::open(&settings.daemon.access_log)
            .map_err(|error| DaemonError::System("cannot open daemon.access_log", error))?;
        let accounts = Arc::new(Accounts::new(access_log, fastrand::u64(..)));
        let tiers = Tiers::default();
        let (flows, reports) = flows::take(&mut kernel, &tiers, &accounts, &settings.flow).unzip();
        tiers::provide(&tiers, &kernel.objects, &settings, &state.routes)?;
        let mut following = Following::new(&settings.resolver, settings.tunnel);
        // Before anybody is accepted.
        let mut kept = Kept::default();
        let built = build(&settings, &state.routes, &mut kept);
        let vital = vital::find_for(&state.blocks, &settings, &built.running);
        let shielding = Shielding::new(&mut kernel, &state.blocks, &vital, &following);
        let edge = Arc::new(Edge {
            running: ArcSwap::from_pointee(built.running),
            registry: Registry::default(),
            admission: Arc::new(Admission::new(connection_limit(settings.limits.connections))),
            hello_memory: Arc::new(HelloMemory::new(settings.limits.hello_memory)),
            accounts,
            timings: Timings::default(),
            sessions: Sessions::default(),
            tiers,
            flows,
            blocked: shielding.sources(),
        });
        if let (Some(flows), Some(reports)) = (&edge.flows, reports) {
            let is_limited = edge.running.load().connections_per_source != 0;
            flows::adopt(flows, reports, is_limited.then_some(&edge.admission), |passport| {
                kept.places_of(passport)
            });
        }
        let mut sockets = Sockets::new(inherited);
        let prepared = sockets.prepare(&settings.listeners, workers, Demand::Some)?;
        let workers = Workers::start(workers, &edge)
            .map_err(|error| DaemonError::System("cannot start a worker", error))?;
        sockets.commit(prepared, &workers);
        troubles.note_listeners(sockets.troubles());
        following.set(built.checks, &settings.resolver, settings.tunnel);
        shielding.look(&edge);
        shielding.follow(&settings, &edge);
        let segments = Segments::new(following.stirred());
        for warning in &built.warnings {
            tracing::warn!("{warning}");
        }
        drain(&kept, &state);
        Ok(Arc::new(Self {
            config: config.to_owned(),
            started: Moment::now(),
            edge,
            workers,
            shielding,
            segments,
            troubles: Arc::clone(&troubles),
            loaded_blocks: state.blocks.clone(),
            findings: kernel.findings,
            unread: kernel.unread,
            objects: kernel.objects,
            shown: Mutex::new(Shown {
                settings: settings.clone(),
                loaded: Moment::now(),
                last_reload: None,
                draining: false,
            }),
            steering: tokio::sync::Mutex::new(Steering {
                settings,
                store: StateWriter::new(store, troubles),
                state,
                kept,
                sockets,
                following,
            }),
        }))
    }

    /// Reads the configuration file again and swaps it in. A faulty file changes nothing.
    async fn reload_file(&self) -> Result<Applied, DaemonError> {
        let mut steering = self.steering.lock().await;
        let outcome = match self.read_file().await {
            Ok(settings) => self.apply_settings(&mut steering, settings),
            Err(error) => Err(error),
        };
        if outcome.as_ref().is_ok_and(|applied| applied.is_state_new) {
            // Where it fails, `status` has it; the next save brings it to the disk.
            let _ = steering.store.save(&steering.state).await;
        }
        self.edge.accounts.access_log().reopen();
        let mut shown = self.shown();
        shown.last_reload =
            Some(Reload { time: Moment::now(), error: outcome.as_ref().err().map(ToString::to_string) });
        match &outcome {
            Ok(applied) => {
                shown.settings = steering.settings.clone();
                shown.loaded = Moment::now();
                tracing::info!(
                    listeners = applied.listeners,
                    pools = applied.pools,
                    routes = applied.routes,
                    "configuration reloaded"
                );
            }
            Err(error) => tracing::error!("the configuration is not reloaded, the old one goes on: {error}"),
        }
        outcome
    }

    /// Reads the configuration file, off the runtime: its disk may be slow.
    async fn read_file(&self) -> Result<Settings, DaemonError> {
        let path = self.config.clone();
        let read = tokio::task::spawn_blocking(move || Settings::load(&path)).await;
        Ok(read.map_err(|error| DaemonError::System("cannot read the configuration", error.into()))??)
    }

    fn apply_settings(&self, steering: &mut Steering, settings: Settings) -> Result<Applied, DaemonError> {
        // The steps that can fail come before the first that changes anything.
        tiers::provide(&self.edge.tiers, &self.objects, &settings, &steering.state.routes)?;
        let prepared = steering.sockets.prepare(&settings.listeners, self.workers.count(), Demand::All)?;
        let mut warnings = needs_restart(&steering.settings, &settings);
        warnings.extend(settings.shield.lists.iter().filter(|list| is_closed(list)).map(|list| {
            format!(
                "{} cannot be read: edged sees the directories of lists that were named when it started, as far as its user may; \
                 mend the modes or restart edged",
                list.display()
            )
        }));
        let is_state_new = drop_repeated(&settings, &mut steering.state);
        steering.settings = settings;
        self.edge.admission.set_limit(connection_limit(steering.settings.limits.connections));
        self.edge.hello_memory.set_limit(steering.settings.limits.hello_memory);
        warnings.extend(self.swap(steering));
        steering.sockets.commit(prepared, &self.workers);
        self.note_listeners(&steering.sockets);
        warnings.extend(self.troubles.lines());
        self.shielding.follow(&steering.settings, &self.edge);
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let settings = &steering.settings;
        Ok(Applied {
            listeners: settings.listeners.len(),
            pools: settings.pools.len(),
            routes: settings.routes.len() + steering.state.routes.len(),
            warnings,
            is_state_new,
        })
    }

    /// Builds the running state anew from settings and runtime state, and swaps it in.
    fn swap(&self, steering: &mut Steering) -> Vec<String> {
        // Counters move to the new state with what was carried so far.
        self.edge.settle();
        let Built { running, checks, warnings } =
            build(&steering.settings, &steering.state.routes, &mut steering.kept);
        self.edge.running.store(Arc::new(running));
        steering.following.set(checks, &steering.settings.resolver, steering.settings.tunnel);
        self.segments.outdated();
        drain(&steering.kept, &steering.state);
        let denied = self.edge.stop_denied();
        if denied > 0 {
            tracing::info!(connections = denied, "ended connections that `allow` and `deny` refuse now");
        }
        warnings
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends idle connections, keeps the counters current and gives back memory, for as long as the daemon lives.
    async fn sweep(&self) {
        /// How often counters are brought up to date, and how exact `idle_timeout` is at most.
        const EVERY: Duration = Duration::from_secs(1);
        const AT_LEAST: Duration = Duration::from_millis(50);
        let mut ebb = Ebb::default();
        loop {
            let idle = self.edge.running.load().idle_timeout;
            tokio::time::sleep(idle.map_or(EVERY, |idle| (idle / 8).clamp(AT_LEAST, EVERY))).await;
            let edge = Arc::clone(&self.edge);
            // Off the control runtime: with very many flows a look takes long.
            if tokio::task::spawn_blocking(move || edge.sweep(idle)).await.is_err() {
                tracing::error!("a look over all connections failed; the next one follows");
            }
            let (first_bytes, _) = self.edge.hello_memory.usage();
            if ebb.is_low(self.edge.admission.live(), first_bytes, Instant::now()) {
                // Not on this thread, which has clocks to keep.
                tokio::task::spawn_blocking(give_back_memory);
            }
        }
    }
}

/// Drops runtime routes that the file now has as well; returns whether there were any.
fn drop_repeated(settings: &Settings, state: &mut State) -> bool {
    let repeated = state.routes.extract_if(.., |route| settings.routes.contains(route));
    let mut any = false;
    for route in repeated {
        any = true;
        tracing::info!(
            host = %route.conditions.host, to = %route.to,
            "a route that was added at run time is in the configuration file now: the one of the file stays"
        );
    }
    any
}

/// Drains the backends that the operator drained earlier: backends that are new to this process do not know
/// it.
fn drain(kept: &Kept, state: &State) {
    for backend in kept.backends.all() {
        let drained = state.drained.iter().any(|drained| operate::means(drained, backend.id()));
        if drained && backend.state() != BackendState::Drained {
            backend.drain();
        }
    }
}

/// Whether a file is there and must not be read.
fn is_closed(path: &Path) -> bool {
    std::fs::File::open(path).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
}

/// Changed settings that a reload cannot apply.
fn needs_restart(old: &Settings, new: &Settings) -> Vec<String> {
    let ports = ("flow.ports", old.flow.ports != new.flow.ports);
    let (old, new) = (&old.daemon, &new.daemon);
    let changed = [
        ports,
        ("daemon.state_dir", old.state_dir != new.state_dir),
        ("daemon.control", old.control != new.control),
        ("daemon.admin", old.admin != new.admin),
        ("daemon.access_log", old.access_log != new.access_log),
    ];
    let named = changed.into_iter().filter(|(_, changed)| *changed);
    named.map(|(key, _)| format!("{key} changed: it takes effect when edged is restarted")).collect()
}

/// How many connections there may be: as configured, or what descriptors and memory allow.
fn connection_limit(configured: usize) -> usize {
    if configured != 0 {
        return configured;
    }
    let descriptors =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let reserved = RESERVED_DESCRIPTORS.min(descriptors / 4);
    let system = rustix::system::sysinfo();
    let memory = u64::from(system.mem_unit).saturating_mul(system.totalram as u64) / MEMORY_A_CONNECTION;
    let limit = ((descriptors - reserved) / DESCRIPTORS_A_CONNECTION).min(memory);
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// How many of `connections` one source may have by default: enough for the many customers behind a
/// provider's NAT, and few enough that a few sources cannot have them all.
fn share_of_a_source(connections: usize) -> usize {
    (connections / SHARE_OF_A_SOURCE).max(LEAST_SHARE)
}
