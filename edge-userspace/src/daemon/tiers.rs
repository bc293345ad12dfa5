//! Tiers that routes request by name: loaded with the first such route, so that nobody pays for an unused
//! one.

use crate::{
    config::Settings,
    datapath::Tiers,
    kernel::{DEFAULT_CREDIT, Objects, Sockmap},
    spec::{Choice, RouteSpec, Tier},
};

use super::DaemonError;

/// Loads the tiers that the settings and the runtime routes request and that are not loaded yet.
///
/// Runs within the control runtime, which serves the loaded tiers.
pub(super) fn provide(
    tiers: &Tiers,
    objects: &Objects,
    settings: &Settings,
    runtime: &[RouteSpec],
) -> Result<(), DaemonError> {
    let routes = settings.routes.iter().chain(runtime).map(|route| route.datapath);
    let asked: Vec<_> = routes.chain([settings.daemon.datapath]).collect();
    if asked.contains(&Choice::Flow) && tiers.flow().is_none() {
        let reason = "its programs are not loaded, the log says why".into();
        return Err(DaemonError::Tier { tier: Tier::Flow, reason });
    }
    if tiers.sockmap().is_some() || !asked.contains(&Choice::Sockmap) {
        return Ok(());
    }
    let sockmap = Sockmap::load(objects, DEFAULT_CREDIT)
        .map_err(|error| DaemonError::Tier { tier: Tier::Sockmap, reason: error.words() })?;
    tokio::spawn({
        let sockmap = sockmap.clone();
        async move {
            if let Err(error) = sockmap.deliver().await {
                tracing::error!(%error, "connections in the sockmap tier are no longer looked after");
            }
        }
    });
    tiers.add_sockmap(sockmap);
    Ok(())
}
