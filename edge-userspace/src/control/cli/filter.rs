//! Narrows a list: filters that edgectl applies itself, and the daemon's filters for daemons that do not know them.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Answer, Failure, Output, Table,
    arguments::{BackendFilterArgs, RouteFilterArgs},
    style,
};
use crate::{
    control::api::{Backend, BackendState, Route, RouteSource, asks_for},
    spec::{HostPattern, Target},
};

/// Shows the items of a list that are wanted, at most `limit`: as the daemon wrote each, or as a table.
pub(super) fn show<T: DeserializeOwned>(
    output: Output,
    answer: &Answer,
    wanted: impl Fn(&T) -> bool,
    limit: Option<usize>,
    table: impl FnOnce(&[T]) -> Table,
) -> Result<(), Failure> {
    let all: Vec<Value> = answer.read()?;
    let count = all.len();
    let mut items = Vec::new();
    for value in all {
        let item: T = answer.item(&value)?;
        if wanted(&item) {
            items.push((value, item));
        }
    }
    items.truncate(limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX));
    if items.len() == count && output.json {
        return Ok(style::write(answer.json())?);
    }
    let (values, items): (Vec<Value>, Vec<T>) = items.into_iter().unzip();
    if output.json {
        let text = serde_json::to_string(&values).map_err(std::io::Error::other)?;
        return Ok(style::write_lines([text])?);
    }
    Ok(style::write_lines(table(&items).lines(output.colours, output.width))?)
}

impl RouteFilterArgs {
    pub(super) fn takes(&self, route: &Route) -> bool {
        let to = |wanted: &str| match &route.to {
            Target::Many(many) => many.iter().any(|one| is_place(&one.to_string(), wanted)),
            one => is_place(&one.to_string(), wanted),
        };
        self.host.as_ref().is_none_or(|host| serves(&route.host, host))
            && self
                .listener
                .as_ref()
                .is_none_or(|listener| route.listener.is_empty() || route.listener.contains(listener))
            && self.backend.as_deref().is_none_or(to)
            && self.source.is_none_or(|source| RouteSource::from(source) == route.source)
    }
}

impl BackendFilterArgs {
    pub(super) fn takes(&self, backend: &Backend) -> bool {
        let place = |wanted: &str| {
            is_place(&backend.to.to_string(), wanted)
                || backend.address.as_deref().is_some_and(|address| is_place(address, wanted))
        };
        self.backend.as_deref().is_none_or(place)
            && self.pool.as_ref().is_none_or(|pool| *pool == backend.pool)
            && self.state.is_none_or(|state| BackendState::from(state) == backend.state)
            && self.device.as_ref().is_none_or(|device| backend.device.as_ref() == Some(device))
    }
}

/// Whether a route is the one for a pattern, or may get clients that ask for a name.
fn serves(route: &HostPattern, wanted: &HostPattern) -> bool {
    match wanted {
        HostPattern::Exact(name) => asks_for(route, Some(name)),
        HostPattern::Below(_) | HostPattern::Any => route == wanted,
    }
}

/// Whether a place is the one that was written, with or without its port.
fn is_place(place: &str, wanted: &str) -> bool {
    let without_port = place.rsplit_once(':').map(|(host, _)| host);
    place == wanted
        || without_port == Some(wanted)
        || without_port.and_then(|host| host.strip_prefix('[')?.strip_suffix(']')) == Some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_found_with_and_without_its_port() {
        for (place, wanted) in [
            ("100.64.0.2:443", "100.64.0.2"),
            ("100.64.0.2:443", "100.64.0.2:443"),
            ("[fd7a::2]:443", "fd7a::2"),
            ("[fd7a::2]:443", "[fd7a::2]"),
            ("caddy", "caddy"),
        ] {
            assert!(is_place(place, wanted), "{place} {wanted}");
        }
        assert!(!is_place("100.64.0.2:443", "100.64.0") && !is_place("fd7a::2", "2"));
    }

    #[test]
    fn a_name_finds_the_routes_that_may_get_it_and_a_pattern_itself() {
        let pattern = |text: &str| text.parse::<HostPattern>().unwrap();
        for route in ["a.example.com", "*.example.com", "*"] {
            assert!(serves(&pattern(route), &pattern("a.example.com")), "{route}");
        }
        assert!(!serves(&pattern("a.example.com"), &pattern("*.example.com")));
        assert!(serves(&pattern("*.example.com"), &pattern("*.example.com")));
        assert!(!serves(&pattern("b.example.com"), &pattern("a.example.com")));
    }
}
