//! The daemon as a service: signals, readiness, watchdog, the end.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{sleep, timeout},
};

use super::{Daemon, DaemonError, listening::counted, prepare::Prepared};
use crate::datapath::StopReason;

/// How long connections get to hear that the daemon ends, after the time to drain is over.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs the daemon until it is told to end.
pub async fn run(prepared: Prepared) -> Result<(), DaemonError> {
    // The pins are held until the process ends, however it does.
    let Prepared { config, settings, inherited, admin_token, control, kernel, pins: _pins } = prepared;
    let mut signals =
        Signals::new().map_err(|error| DaemonError::System("cannot listen to signals", error))?;
    let (admin, control_path) = (settings.daemon.admin, settings.daemon.control.clone());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    notify(&[NotifyState::Status("starting: taking over flows, opening listeners")]);
    let daemon = Daemon::start(config, settings, inherited, admin_token, workers, kernel).await?;
    // Before readiness is announced: a client that was promised a larger MSS would stay on its sockets.
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
        let tunnels = daemon.control_state.lock().await.following.tunnels();
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
    daemon.edge.accounts.access_log().flush();
    daemon.edge.accounts.access_log().end_followers();
    let _ = ending.send(true);
    let _ = timeout(LAST_WORDS, control).await;
    Ok(())
}

impl Daemon {
    /// Stops accepting and waits for connections, at most `daemon.drain_timeout`; resets the remaining ones.
    /// Connections that can become flows do so, and outlive the daemon.
    async fn drain(&self) {
        let patience = {
            let mut shown = self.shown();
            shown.draining = true;
            shown.settings.daemon.drain_timeout
        };
        self.workers.close_all();
        let registry = &self.edge.registry;
        tracing::info!(connections = registry.len(), "draining");
        if timeout(patience, self.empty(Instant::now() + patience)).await.is_err() {
            let cut = registry.stop(StopReason::Shutdown, |_| true);
            tracing::warn!(connections = cut, "the time to drain is over: connections are cut");
            let _ = timeout(LAST_WORDS, self.empty(Instant::now())).await;
        }
    }

    /// Waits until no connection is left; the service manager is told how many are, and how long they may stay.
    async fn empty(&self, until: Instant) {
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
                let left = counted(self.edge.registry.len() as u64, "connection");
                let patience = until.saturating_duration_since(Instant::now()).as_secs();
                notify(&[NotifyState::Status(&format!("draining: {left} left, for at most {patience}s"))]);
                called = Some(Instant::now());
            }
            // A slot is released after its connection left the registry; the timeout covers one released in
            // between.
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
