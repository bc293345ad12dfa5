//! The daemon: ties configuration, runtime state, listeners, workers and the control API together.
//!
//! Every change of what connections use goes through here, one at a time: it is checked, put on disk if it
//! must last, and then swapped in as a whole.

#![forbid(unsafe_code)]

mod apply;
mod arguments;
mod blocks;
mod build;
mod clock;
mod devices;
mod doctor;
mod ebb;
mod flows;
mod following;
mod limits;
mod listening;
mod observed;
mod operate;
mod plan;
mod prepare;
mod probe;
mod segments;
mod service;
mod severed;
mod sockets;
mod start;
mod state_writer;
mod status;
mod tiers;
mod trace;
mod troubles;
mod vital;
mod worker;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

pub use arguments::Arguments;
pub use prepare::{Options, Prepared, prepare};
pub use service::run;

use self::{
    blocks::Shielding, build::Retained, ebb::Ebb, following::Following, segments::Segments, sockets::Sockets,
    state_writer::StateWriter, trace::Tracing, troubles::Troubles, worker::Workers,
};
use crate::{
    config::{
        ConfigError, Settings,
        state::{self, State, StateError},
    },
    connection::Edge,
    control::{self, admin::Token},
    kernel::{Finding, Objects, PinsBusy, UnreadFlows, give_back_memory},
    listener::BindError,
    lock::lock,
    moment::Moment,
    spec::Tier,
    tunnel::Tunnels,
};

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
    control_state: tokio::sync::Mutex<ControlState>,
    shielding: Shielding,
    segments: Segments,
    /// The tunnels of the backends in use, as they were last looked at.
    tunnels: Option<tokio::sync::watch::Receiver<Arc<Tunnels>>>,
    troubles: Arc<Troubles>,
    /// The token that changes on the admin address need.
    admin_token: Option<Arc<Token>>,
    /// The blocks that were on disk when the daemon started.
    loaded_blocks: Vec<state::Block>,
    /// The reports of the tracing objects, where the daemon was started with them.
    tracing: Option<Tracing>,
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
struct ControlState {
    settings: Settings,
    store: StateWriter,
    state: State,
    retained: Retained,
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

impl Daemon {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        lock(&self.shown)
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
            if let Some(tracing) = &self.tracing {
                tracing.forget_idle();
            }
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
