//! `edgectl reload --dry-run`: reads the file and says what a reload would change. Changes nothing.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::{Daemon, DaemonError, apply::needs_restart};
use crate::{
    config::{ChangedItems, Changes, Settings, route_name},
    connection,
    control::api::{ConcernedConnections, ReloadPlan},
    spec::{Access, RouteSpec, Target},
};

impl Daemon {
    /// Compares the file with what runs.
    pub(super) async fn plan(&self) -> Result<ReloadPlan, DaemonError> {
        let new = self.read_file().await?;
        let control_state = self.control_state.lock().await;
        let old = &control_state.settings;
        let changes = old.changes(&new);
        let concerned = Concerned::by(&changes, old, &new, &control_state.state.routes);
        let mut warnings = new.warnings(&control_state.state.routes);
        warnings.extend(needs_restart(old, &new));
        Ok(ReloadPlan { connections: self.count(&concerned), changes, warnings })
    }

    fn count(&self, concerned: &Concerned) -> ConcernedConnections {
        let mut count = ConcernedConnections::default();
        let mut add = |listener: &str, route: Option<u64>, client: IpAddr| match concerned
            .fate(listener, route, client)
        {
            Fate::Ended => count.ended += 1,
            Fate::Kept => count.kept += 1,
            Fate::Unconcerned => {}
        };
        for connection in self.edge.registry.list() {
            let route = connection.upstream().map(|upstream| upstream.destination.identity);
            add(&connection.listener, route, connection.client().ip());
        }
        let flows = self.edge.flows.as_ref().map(|flows| flows.list());
        match flows.transpose() {
            Ok(flows) => {
                for flow in flows.iter().flatten() {
                    add(&flow.passport.listener, Some(flow.passport.destination), flow.client.ip());
                }
            }
            Err(error) => tracing::warn!(error = error.words(), "the flows cannot be listed"),
        }
        count
    }
}

/// The fate of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Ended,
    Kept,
    Unconcerned,
}

/// Whom a route refuses.
struct Guard {
    refuses_all: bool,
    access: Access,
}

/// The parts of two configurations that decide about live connections.
struct Concerned {
    listeners: HashMap<String, Access>,
    /// The routes that refuse some or all.
    routes: HashMap<u64, Guard>,
    differing_listeners: HashSet<String>,
    differing_routes: HashSet<u64>,
}

impl Concerned {
    fn by(changes: &Changes, old: &Settings, new: &Settings, runtime: &[RouteSpec]) -> Self {
        let identity = |route: &RouteSpec| connection::identity_of(Some(route), "");
        let differing = names(&changes.routes);
        let differing = |route: &&RouteSpec| differing.contains(route_name(&route.conditions).as_str());
        // A route that was added at run time wins over one of the file.
        let guard = |route: &RouteSpec| {
            let guard = Guard { refuses_all: route.to == Target::Refuse, access: route.access.clone() };
            (identity(route), guard)
        };
        let routes = new.routes.iter().chain(runtime).map(guard);
        Self {
            listeners: (new.listeners.iter())
                .map(|listener| (listener.name.to_string(), listener.access.clone()))
                .collect(),
            routes: routes.collect(),
            differing_listeners: names(&changes.listeners).into_iter().map(str::to_owned).collect(),
            differing_routes: old.routes.iter().filter(differing).map(identity).collect(),
        }
    }

    fn fate(&self, listener: &str, route: Option<u64>, client: IpAddr) -> Fate {
        let by_listener = self.listeners.get(listener).is_some_and(|access| !access.admits(client));
        let guard = route.and_then(|route| self.routes.get(&route));
        let by_route = guard.is_some_and(|guard| guard.refuses_all || !guard.access.admits(client));
        if by_listener || by_route {
            Fate::Ended
        } else if self.differing_listeners.contains(listener)
            || route.is_some_and(|route| self.differing_routes.contains(&route))
        {
            Fate::Kept
        } else {
            Fate::Unconcerned
        }
    }
}

/// The lines that are removed or changed.
fn names(items: &ChangedItems) -> HashSet<&str> {
    items.removed.iter().map(String::as_str).chain(items.changed.iter().map(|item| &*item.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_ended_where_the_new_file_refuses_its_client() {
        let settings = |text: &str| Settings::parse("edge.toml", text).unwrap();
        let old = settings(
            "[[route]]\nhost = \"a.test\"\nto = \"192.0.2.1\"\n[[route]]\nhost = \"b.test\"\nto = \"192.0.2.1\"\n",
        );
        let new =
            settings("[[route]]\nhost = \"a.test\"\nto = \"192.0.2.2\"\ndeny = [\"198.51.100.0/24\"]\n");
        let concerned = Concerned::by(&old.changes(&new), &old, &new, &[]);
        let [a, b] = [0, 1].map(|nth| Some(connection::identity_of(Some(&old.routes[nth]), "")));
        let [denied, other]: [IpAddr; 2] = ["198.51.100.7", "203.0.113.7"].map(|text| text.parse().unwrap());
        assert_eq!(concerned.fate("https", a, denied), Fate::Ended);
        assert_eq!(concerned.fate("https", a, other), Fate::Kept);
        assert_eq!(
            concerned.fate("https", b, denied),
            Fate::Kept,
            "its route is gone, its client is not refused"
        );
        assert_eq!(concerned.fate("https", None, denied), Fate::Unconcerned);
        assert_eq!(concerned.fate("https", Some(7), other), Fate::Unconcerned);

        let refused = settings("[[route]]\nhost = \"a.test\"\nto = \"refuse\"\n");
        let concerned = Concerned::by(&old.changes(&refused), &old, &refused, &[]);
        assert_eq!(concerned.fate("https", a, other), Fate::Ended);
    }
}
