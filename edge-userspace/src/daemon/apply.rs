//! Puts settings in force: at the start, at a reload, and when the operator changes routes at run time. `prepare` takes
//! every step that can fail and changes nothing; `commit` cannot fail.

use std::{path::Path, sync::Arc};

use super::{
    Daemon, DaemonError, Reload, Steering,
    build::{Built, Kept, build},
    flows::Reports,
    limits::connection_limit,
    operate,
    sockets::{Demand, Prepared},
    tiers,
};
use crate::{
    config::{Settings, state::State},
    moment::Moment,
    pool::BackendState,
    spec::RouteSpec,
};

/// When settings come into force.
pub(super) enum Occasion {
    /// At the start. The reports about the flows of an earlier daemon, if this machine can carry flows.
    Start(Option<Box<Reports>>),
    /// While connections are served.
    Reload,
}

/// Settings that are in force.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) listeners: usize,
    pub(super) pools: usize,
    pub(super) routes: usize,
    pub(super) warnings: Vec<String>,
}

impl Daemon {
    /// Reads the configuration file again and puts it in force. A faulty file changes nothing.
    pub(super) async fn reload_file(&self) -> Result<Applied, DaemonError> {
        let mut steering = self.steering.lock().await;
        let outcome = match self.read_file().await {
            Ok(settings) => self.reload_settings(&mut steering, settings).await,
            Err(error) => Err(error),
        };
        self.edge.accounts.access_log().reopen();
        self.shown().last_reload =
            Some(Reload { time: Moment::now(), error: outcome.as_ref().err().map(ToString::to_string) });
        match &outcome {
            Ok(Applied { listeners, pools, routes, .. }) => {
                tracing::info!(listeners, pools, routes, "configuration reloaded");
            }
            Err(error) => tracing::error!("the configuration was not reloaded, the old one stays: {error}"),
        }
        outcome
    }

    /// Reads the configuration file, off the runtime: its disk may be slow.
    async fn read_file(&self) -> Result<Settings, DaemonError> {
        let path = self.config.clone();
        let read = tokio::task::spawn_blocking(move || Settings::load(&path)).await;
        Ok(read.map_err(|error| DaemonError::System("cannot read the configuration", error.into()))??)
    }

    async fn reload_settings(
        &self,
        steering: &mut Steering,
        settings: Settings,
    ) -> Result<Applied, DaemonError> {
        let mut warnings = needs_restart(&steering.settings, &settings);
        let mut applied = self.apply(steering, settings, Occasion::Reload).await?;
        warnings.extend(self.troubles.lines());
        warn(&warnings);
        applied.warnings.extend(warnings);
        Ok(applied)
    }

    /// Puts settings in force, or changes nothing.
    pub(super) async fn apply(
        &self,
        steering: &mut Steering,
        settings: Settings,
        occasion: Occasion,
    ) -> Result<Applied, DaemonError> {
        let prepared = self.prepare(steering, &settings, &occasion)?;
        Ok(self.commit(steering, settings, prepared, occasion).await)
    }

    /// Takes every step that can fail. Connections do not notice any of them.
    fn prepare(
        &self,
        steering: &mut Steering,
        settings: &Settings,
        occasion: &Occasion,
    ) -> Result<Prepared, DaemonError> {
        self.provide_tiers(settings, &steering.state.routes)?;
        let demand = match occasion {
            Occasion::Start(_) => Demand::Some,
            Occasion::Reload => Demand::All,
        };
        Ok(steering.sockets.prepare(&settings.listeners, self.workers.count(), demand)?)
    }

    /// Loads the tiers that these settings and runtime routes request, where they are not loaded yet.
    pub(super) fn provide_tiers(
        &self,
        settings: &Settings,
        runtime: &[RouteSpec],
    ) -> Result<(), DaemonError> {
        tiers::provide(&self.edge.tiers, &self.objects, settings, runtime)
    }

    /// Swaps the running state, and accepts on the prepared sockets afterwards.
    async fn commit(
        &self,
        steering: &mut Steering,
        settings: Settings,
        prepared: Prepared,
        occasion: Occasion,
    ) -> Applied {
        let is_state_new = drop_repeated(&settings, &mut steering.state);
        steering.settings = settings;
        self.edge.admission.set_limit(connection_limit(steering.settings.limits.connections));
        self.edge.hello_memory.set_limit(steering.settings.limits.hello_memory);
        self.edge.accounts.access_log().show_clients(steering.settings.daemon.access_log_clients);
        if let Occasion::Reload = occasion {
            self.edge.settle();
        }
        let warnings = self.swap(steering);
        if let Occasion::Start(reports) = occasion {
            self.take_over(steering, reports).await;
        }
        self.end_denied();
        steering.sockets.commit(prepared, &self.workers);
        self.note_listeners(&steering.sockets);
        self.shielding.follow(&steering.settings, &self.edge);
        {
            let mut shown = self.shown();
            shown.settings = steering.settings.clone();
            shown.loaded = Moment::now();
        }
        if is_state_new {
            // If it fails, `status` shows it; the next save writes the state as well.
            let _ = steering.store.save(&steering.state).await;
        }
        Applied {
            listeners: steering.settings.listeners.len(),
            pools: steering.settings.pools.len(),
            routes: steering.settings.routes.len() + steering.state.routes.len(),
            warnings,
        }
    }

    /// Changes the runtime state, which is on disk already, while connections are served.
    pub(super) fn change(&self, steering: &mut Steering, state: State) {
        steering.state = state;
        self.edge.settle();
        self.swap(steering);
        self.end_denied();
    }

    /// Builds the running state from settings and runtime state, and swaps it in. Counters of live connections must have
    /// been settled.
    fn swap(&self, steering: &mut Steering) -> Vec<String> {
        let Built { running, checks, warnings } =
            build(&steering.settings, &steering.state.routes, &mut steering.kept);
        self.edge.running.store(Arc::new(running));
        steering.following.set(checks, &steering.settings.resolver, steering.settings.tunnel);
        self.segments.outdated();
        drain(&steering.kept, &steering.state);
        warn(&warnings);
        warnings
    }

    /// Ends connections that `allow` and `deny` refuse by now.
    fn end_denied(&self) {
        let denied = self.edge.stop_denied();
        if denied > 0 {
            tracing::info!(connections = denied, "ended connections that `allow` and `deny` refuse now");
        }
    }
}

fn warn(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{warning}");
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
            "dropped a route that was added at run time: the configuration file now has the same route"
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

/// Settings that a reload cannot apply: those that changed, and lists that edged could only open when it started.
fn needs_restart(old: &Settings, new: &Settings) -> Vec<String> {
    let lists = new.shield.lists.iter().filter(|list| is_closed(list)).map(|list| {
        format!(
            "{} cannot be read: edged sees the directories of lists that were named when it started, as far as its user may; \
             mend the modes or restart edged",
            list.display()
        )
    });
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
    let changed = named.map(|(key, _)| format!("{key} changed: it takes effect when edged is restarted"));
    changed.chain(lists).collect()
}
