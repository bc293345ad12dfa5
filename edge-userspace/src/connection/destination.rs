//! Where connections of a route, or of a tcp listener, lead.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::CloseReason;
use crate::{
    hash::fnv1a,
    places::Places,
    pool::Pool,
    spec::{Choice, ClientProtocol, Conditions, HostName, HostPattern, ProxyProtocol, RouteSpec, Target},
    tally::Tally,
};

/// The origin of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The configuration file.
    File,
    /// The operator, while the daemon ran.
    Runtime,
}

/// The target of a selected route.
#[derive(Debug)]
pub struct Destination {
    /// The host of the route; the name of a tcp listener.
    pub label: Arc<str>,
    /// The route as it was said; `None` for a tcp listener.
    pub route: Option<RouteSpec>,
    /// The origin of the route.
    pub source: Source,
    /// The backends.
    pub pool: Arc<Pool>,
    /// The header they are sent.
    pub proxy_protocol: ProxyProtocol,
    /// The fastest datapath tier allowed.
    pub datapath: Choice,
    /// Identifies a destination across reloads and restarts: [`identity_of`].
    pub identity: u64,
    /// A connection without a byte either way for this long is closed, nothing is never; `None` is what the listener
    /// says.
    pub idle_timeout: Option<Duration>,
    /// Its traffic; kept across reloads.
    pub counters: Arc<Tally>,
    /// The places of its connections; kept across reloads.
    pub places: Arc<Places>,
}

impl Destination {
    /// Whether there are clients that it refuses.
    pub fn is_guarded(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.to == Target::Refuse || !route.access.is_open())
    }

    /// Why a client from here is refused although the route is for it; `None` where it may pass.
    pub fn refuses(&self, source: IpAddr) -> Option<CloseReason> {
        match self.route.as_ref()? {
            RouteSpec { to: Target::Refuse, .. } => Some(CloseReason::Refused),
            route => (!route.access.admits(source)).then_some(CloseReason::DeniedByRoute),
        }
    }

    /// The part of the client's name that the `*` of the route's host matched.
    pub fn label<'h>(&self, host: Option<&'h HostName>) -> Option<&'h str> {
        let HostPattern::Below(suffix) = &self.route.as_ref()?.conditions.host else { return None };
        host?.as_str().strip_suffix(suffix.as_str())?.strip_suffix('.')
    }

    /// Whether clients that speak this are sent to https, except for ACME challenges.
    pub fn redirects(&self, protocol: Option<ClientProtocol>) -> bool {
        self.route.as_ref().zip(protocol).is_some_and(|(route, protocol)| route.redirects(protocol))
    }
}

/// The identity of a route's destination by its conditions, of a tcp listener's by its name.
pub fn identity_of(route: Option<&RouteSpec>, listener: &str) -> u64 {
    match route {
        Some(route) => identity_of_conditions(&route.conditions),
        None => fnv1a(&format!("listener {listener}")),
    }
}

/// The identity of a route's destination.
pub fn identity_of_conditions(conditions: &Conditions) -> u64 {
    // Nothing in it fails to serialise.
    fnv1a(&serde_json::to_string(conditions).unwrap_or_default())
}
