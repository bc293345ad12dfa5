//! Puts settings in force: at the start, at a reload, and when the operator changes routes at run time. `prepare` takes
//! every step that can fail and changes nothing; `commit` cannot fail.

use std::{path::Path, sync::Arc};

use super::{
    ControlState, Daemon, DaemonError, Reload,
    build::{Built, Retained, build},
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
        let mut control_state = self.control_state.lock().await;
        let outcome = match self.read_file().await {
            Ok(settings) => self.reload_settings(&mut control_state, settings).await,
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
    pub(super) async fn read_file(&self) -> Result<Settings, DaemonError> {
        let path = self.config.clone();
        let read = tokio::task::spawn_blocking(move || Settings::load(&path)).await;
        Ok(read.map_err(|error| DaemonError::System("cannot read the configuration", error.into()))??)
    }

    async fn reload_settings(
        &self,
        control_state: &mut ControlState,
        settings: Settings,
    ) -> Result<Applied, DaemonError> {
        let mut warnings = needs_restart(&control_state.settings, &settings);
        let mut applied = self.apply(control_state, settings, Occasion::Reload).await?;
        warnings.extend(self.troubles.lines());
        warn(&warnings);
        applied.warnings.extend(warnings);
        Ok(applied)
    }

    /// Puts settings in force, or changes nothing.
    pub(super) async fn apply(
        &self,
        control_state: &mut ControlState,
        settings: Settings,
        occasion: Occasion,
    ) -> Result<Applied, DaemonError> {
        let prepared = self.prepare(control_state, &settings, &occasion)?;
        Ok(self.commit(control_state, settings, prepared, occasion).await)
    }

    /// Takes every step that can fail. Connections do not notice any of them.
    fn prepare(
        &self,
        control_state: &mut ControlState,
        settings: &Settings,
        occasion: &Occasion,
    ) -> Result<Prepared, DaemonError> {
        self.provide_tiers(settings, &control_state.state.routes)?;
        let demand = match occasion {
            Occasion::Start(_) => Demand::Some,
            Occasion::Reload => Demand::All,
        };
        Ok(control_state.sockets.prepare(&settings.listeners, self.workers.count(), demand)?)
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
        control_state: &mut ControlState,
        settings: Settings,
        prepared: Prepared,
        occasion: Occasion,
    ) -> Applied {
        let is_state_new = drop_repeated(&settings, &mut control_state.state);
        control_state.settings = settings;
        self.edge.admission.set_limit(connection_limit(control_state.settings.limits.connections));
        self.edge.hello_memory.set_limit(control_state.settings.limits.hello_memory);
        self.edge.accounts.access_log().show_clients(control_state.settings.daemon.access_log_clients);
        if let Occasion::Reload = occasion {
            self.edge.settle();
        }
        let warnings = self.swap(control_state);
        if let Occasion::Start(reports) = occasion {
            self.take_over(control_state, reports).await;
        }
        self.end_denied();
        control_state.sockets.commit(prepared, &self.workers);
        self.note_listeners(&control_state.sockets);
        self.shielding.follow(&control_state.settings, &self.edge);
        {
            let mut shown = self.shown();
            shown.settings = control_state.settings.clone();
            shown.loaded = Moment::now();
        }
        if is_state_new {
            // If it fails, `status` shows it; the next save writes the state as well.
            let _ = control_state.store.save(&control_state.state).await;
        }
        Applied {
            listeners: control_state.settings.listeners.len(),
            pools: control_state.settings.pools.len(),
            routes: control_state.settings.routes.len() + control_state.state.routes.len(),
            warnings,
        }
    }

    /// Changes the runtime state, which is on disk already, while connections are served.
    pub(super) fn change(&self, control_state: &mut ControlState, state: State) {
        control_state.state = state;
        self.edge.settle();
        self.swap(control_state);
        self.end_denied();
    }

    /// Builds the running state from settings and runtime state, and swaps it in. Counters of live connections must have
    /// been settled.
    fn swap(&self, control_state: &mut ControlState) -> Vec<String> {
        let Built { running, checks, warnings } =
            build(&control_state.settings, &control_state.state.routes, &mut control_state.retained);
        self.edge.running.store(Arc::new(running));
        control_state.following.set(checks, &control_state.settings.resolver, control_state.settings.tunnel);
        self.segments.outdated();
        drain(&control_state.retained, &control_state.state);
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
fn drain(retained: &Retained, state: &State) {
    for backend in retained.backends.all() {
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
pub(super) fn needs_restart(old: &Settings, new: &Settings) -> Vec<String> {
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
        ("daemon.admin_token_file", old.admin_token_file != new.admin_token_file),
        ("daemon.access_log", old.access_log != new.access_log),
    ];
    let named = changed.into_iter().filter(|(_, changed)| *changed);
    let changed = named.map(|(key, _)| format!("{key} changed: it takes effect when edged is restarted"));
    changed.chain(lists).collect()
}
