//! The start: a daemon that serves nobody yet, then the first settings as at a reload.

use std::{
    net::TcpListener,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;

use super::{
    ControlState, Daemon, DaemonError, Shown,
    apply::Occasion,
    blocks::Shielding,
    build::Retained,
    flows::{self, Reports},
    following::Following,
    segments::Segments,
    sockets::Sockets,
    state_writer::StateWriter,
    trace::Tracing,
    troubles::{Part, Troubles},
    worker::Workers,
};
use crate::{
    accounts::{Accounts, Admission},
    config::{
        Settings,
        state::{Opened, StateStore},
    },
    connection::{Edge, HelloMemory, Registry, Running, Sessions},
    control::admin::{Token, TokenError},
    datapath::Tiers,
    kernel::Kernel,
    moment::Moment,
    observe::{access_log::AccessLog, timings::Timings},
};

impl Daemon {
    /// Binds the listeners and starts to accept. `inherited` are sockets that the service manager bound.
    ///
    /// Runs within the control runtime: health checks and name resolution are its tasks.
    pub(super) async fn start(
        config: PathBuf,
        settings: Settings,
        inherited: Vec<TcpListener>,
        admin_token: Option<Result<Token, TokenError>>,
        workers: usize,
        kernel: Kernel,
    ) -> Result<Arc<Self>, DaemonError> {
        let (mut daemon, reports) = Self::new(config, &settings, inherited, workers, kernel)?;
        match admin_token.transpose() {
            Ok(token) => daemon.admin_token = token.map(Arc::new),
            Err(error) => daemon.troubles.note(Part::AdminToken, Some(error.to_string())),
        }
        let mut control_state = daemon.control_state.lock().await;
        daemon.apply(&mut control_state, settings, Occasion::Start(reports.map(Box::new))).await?;
        drop(control_state);
        Ok(Arc::new(daemon))
    }

    /// A daemon that has no listener yet, and the reports about the flows of an earlier one. Of the settings it uses those
    /// that only a restart changes.
    fn new(
        config: PathBuf,
        settings: &Settings,
        inherited: Vec<TcpListener>,
        workers: usize,
        mut kernel: Kernel,
    ) -> Result<(Self, Option<Reports>), DaemonError> {
        let troubles = Arc::new(Troubles::default());
        let Opened { store, state, recovery, obstacle } = StateStore::open(&settings.daemon.state_dir)?;
        troubles.note(Part::State, obstacle.map(|obstacle| obstacle.to_string()));
        if let Some(recovery) = recovery {
            tracing::error!("{recovery}");
        }
        let access_log = AccessLog::open(&settings.daemon.access_log)
            .map_err(|error| DaemonError::System("cannot open daemon.access_log", error))?;
        let accounts = Arc::new(Accounts::new(access_log, fastrand::u64(..)));
        let tiers = Tiers::default();
        let (flows, reports) = flows::take(&mut kernel, &tiers, &accounts, &settings.flow).unzip();
        let following = Following::new(&settings.resolver, settings.tunnel);
        let shielding = Shielding::new(&mut kernel, &following);
        let edge = Arc::new(Edge {
            running: ArcSwap::from_pointee(Running::default()),
            registry: Registry::default(),
            admission: Arc::new(Admission::new(0)),
            hello_memory: Arc::new(HelloMemory::new(0)),
            accounts,
            timings: Timings::default(),
            sessions: Sessions::default(),
            tiers,
            flows,
            blocked: shielding.sources(),
        });
        let workers = Workers::start(workers, &edge)
            .map_err(|error| DaemonError::System("cannot start a worker", error))?;
        let daemon = Self {
            config,
            started: Moment::now(),
            edge,
            workers,
            shielding,
            segments: Segments::new(following.network_changed()),
            tunnels: following.tunnels(),
            troubles: Arc::clone(&troubles),
            admin_token: None,
            loaded_blocks: state.blocks.clone(),
            tracing: kernel.tracer.map(Tracing::start),
            findings: kernel.findings,
            unread: kernel.unread,
            objects: kernel.objects,
            shown: Mutex::new(Shown {
                settings: settings.clone(),
                loaded: Moment::now(),
                last_reload: None,
                draining: false,
            }),
            control_state: tokio::sync::Mutex::new(ControlState {
                settings: settings.clone(),
                store: StateWriter::new(store, troubles),
                state,
                retained: Retained::default(),
                sockets: Sockets::new(inherited),
                following,
            }),
        };
        Ok((daemon, reports))
    }

    /// Takes over what an earlier daemon left, before connections are accepted: its flows, and the blocks on disk.
    pub(super) async fn take_over(&self, control_state: &ControlState, reports: Option<Box<Reports>>) {
        let edge = &self.edge;
        if let (Some(flows), Some(reports)) = (&edge.flows, reports) {
            let is_limited = edge.running.load().connections_per_source != 0;
            flows::adopt(flows, *reports, is_limited.then_some(&edge.admission), |passport| {
                control_state.retained.places_of(passport)
            });
        }
        let blocks = &control_state.state.blocks;
        let vital = if blocks.is_empty() { Vec::new() } else { self.vital(&control_state.settings).await };
        self.shielding.restore(blocks, &vital);
        self.shielding.look(edge);
    }
}
