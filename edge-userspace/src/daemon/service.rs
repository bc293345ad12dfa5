//! The daemon as a service: signals, readiness, watchdog, the end.

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};

use super::{Daemon, DaemonError};
use crate::{
    config::Settings,
    control::{BindError, ControlSocket},
    datapath::StopReason,
    kernel::{
        self, Kernel, Objects, Wanted,
        capability::{self, Duty},
    },
};

/// How long connections get to hear that the daemon ends, after the time to drain is over.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// BPF objects to load instead of the embedded ones.
    pub bpf_object: Option<PathBuf>,
    /// The directory of pins, on a BPF filesystem.
    pub pins: PathBuf,
}

/// What the daemon needs rights for once it runs.
const DUTIES: &[Duty] = &[Duty::LowPorts, Duty::Bpf, Duty::Network, Duty::Pipes];

/// Runs the daemon until it is told to end.
///
/// To be called before the process has any other thread, since rights are given up by this one for all that come.
pub async fn run(options: &Options) -> Result<(), DaemonError> {
    let config = &options.config;
    let settings = Settings::load(config)?;
    raise_descriptor_limit();
    let inherited = kernel::inherited_listeners();
    let system = |what| move |error| DaemonError::System(what, error);
    let mut signals = Signals::new().map_err(system("cannot listen to signals"))?;
    // Held until the process ends, however it does.
    let _pins = kernel::lock_pins(&options.pins)?;
    let (admin, control_path) = (settings.daemon.admin, settings.daemon.control.clone());
    let control = match ControlSocket::bind(&control_path) {
        // It serves all the same, and the directory may come.
        Err(error @ BindError::Io { .. }) => Err(error),
        Err(error) => return Err(error.into()),
        Ok(socket) => Ok(socket),
    };
    let kernel = open_kernel(options);
    if let Err(error) = capability::keep_only(DUTIES) {
        tracing::warn!(%error, "runs on with all its rights");
    }
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let daemon = Daemon::start(config, settings, inherited, workers, kernel)?;
    // Before anybody is told that it serves: a client that was promised more would stay on its sockets.
    daemon.announce();
    daemon.workers.answer().await;
    let (ending, ended) = watch::channel(false);
    if let Some(address) = admin {
        daemon.open_admin(address, ended.clone());
    }
    let control = tokio::spawn(Arc::clone(&daemon).serve_control(control, control_path, ended));
    tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.sweep().await }
    });
    tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.keep_announcing().await }
    });
    tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.keep_listening().await }
    });
    tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.follow_clock().await }
    });
    tokio::spawn({
        let daemon = Arc::clone(&daemon);
        async move { daemon.follow_devices().await }
    });
    tokio::spawn({
        let daemon = Arc::clone(&daemon);
        let tunnels = daemon.steering.lock().await.following.tunnels();
        async move { daemon.sever(tunnels).await }
    });
    tokio::spawn(watchdog(Arc::clone(&daemon)));
    notify(&[NotifyState::Ready]);
    daemon.tell_manager();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), workers, "serving");
    while let Told::Reload = signals.next().await {
        notify(&[NotifyState::Reloading, monotonic()]);
        // The outcome is logged and shown by `edgectl status`.
        let _ = daemon.reload_file().await;
        notify(&[NotifyState::Ready]);
    }
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
    tokio::select! {
        () = daemon.drain() => {}
        () = signals.end() => tracing::warn!("told to end twice: connections are cut"),
    }
    daemon.edge.access_log.flush();
    let _ = ending.send(true);
    let _ = timeout(LAST_WORDS, control).await;
    Ok(())
}

/// Loads what the kernel has room for. What it refuses is missing, and said once.
fn open_kernel(options: &Options) -> Kernel {
    let objects = options.bpf_object.clone().map_or_else(Objects::embedded, Objects::replaced_by);
    let kernel = Kernel::open(&Wanted { objects, pins: options.pins.clone(), ..Wanted::default() });
    for finding in &kernel.findings {
        let remedy = finding.remedy.as_deref().unwrap_or("`edgectl doctor` says more");
        tracing::warn!("{}: {} ({remedy})", finding.name, finding.message);
    }
    kernel
}

impl Daemon {
    /// Stops accepting and waits for connections, at most `daemon.drain_timeout`; those that are left are cut. What can go
    /// on as a flow does, and outlives the daemon.
    async fn drain(&self) {
        let patience = {
            let mut shown = self.shown();
            shown.draining = true;
            shown.settings.daemon.drain_timeout
        };
        self.workers.close_all();
        let registry = &self.edge.registry;
        tracing::info!(connections = registry.len(), "draining");
        if timeout(patience, self.empty()).await.is_err() {
            let cut = registry.stop(StopReason::Shutdown, |_| true);
            tracing::warn!(connections = cut, "the time to drain is over: connections are cut");
            let _ = timeout(LAST_WORDS, self.empty()).await;
        }
    }

    /// Waits until no connection is left.
    async fn empty(&self) {
        /// Between two attempts to hand over what was not quiet enough.
        const EVERY: Duration = Duration::from_secs(1);
        let mut called: Option<Instant> = None;
        loop {
            let freed = self.edge.admission.freed();
            if self.edge.registry.is_empty() {
                return;
            }
            if called.is_none_or(|last| last.elapsed() >= EVERY) {
                self.edge.registry.last_call();
                called = Some(Instant::now());
            }
            // A slot is freed after its connection left the registry; the timeout covers one freed in between.
            let _ = timeout(Duration::from_millis(100), freed).await;
        }
    }
}

pub(super) async fn told_to_end(mut ended: watch::Receiver<bool>) {
    let _ = ended.wait_for(|ended| *ended).await;
}

enum Told {
    Reload,
    End,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.hangup.recv() => Told::Reload,
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
        }
    }

    async fn end(&mut self) {
        while let Told::Reload = self.next().await {}
    }
}

/// Pats the service manager's watchdog, but only while every worker answers.
async fn watchdog(daemon: Arc<Daemon>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        let started = Instant::now();
        if timeout(limit / 2, daemon.workers.answer()).await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("a worker does not answer");
        }
        sleep((limit / 2).saturating_sub(started.elapsed())).await;
    }
}

fn monotonic() -> NotifyState<'static> {
    NotifyState::monotonic_usec_now().unwrap_or(NotifyState::Status("reloading"))
}

pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Takes all descriptors that the hard limit allows: a proxy needs two a connection, and poll(2), for which the
/// soft limit is kept low, is not used here.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
