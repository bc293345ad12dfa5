//! The hosts of a route: one or a list. Each host becomes a route of its own, with its own counters; all lead to the
//! same pool.

use std::collections::{HashMap, hash_map::Entry};

use toml::de::DeValue;

use super::{
    document::Section,
    problem::Refusal,
    value::{Value, quoted},
};
use crate::spec::{Conditions, HostNameError, HostPattern};

/// A host of a route.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) pattern: HostPattern,
    /// Where it stands in a list of hosts; `None` if it is not in a list.
    pub(super) place: Option<Place>,
}

/// A place in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// In bytes.
    at: usize,
    /// From 1.
    line: usize,
}

impl Host {
    /// For every client, named or not.
    pub(super) fn any() -> Vec<Self> {
        vec![Self { pattern: HostPattern::Any, place: None }]
    }
}

/// `host`: a name or a list of names. `.example.com` stands for two hosts.
pub(super) fn hosts(value: &Value<'_>) -> Option<Vec<Host>> {
    const EXPECTED: &str = r#"a host such as "cloud.example.com", "*.example.com" or "*""#;
    let DeValue::Array(_) = value.get() else {
        let patterns = patterns(value, EXPECTED)?;
        return Some(patterns.into_iter().map(|pattern| Host { pattern, place: None }).collect());
    };
    let lists = value.items(EXPECTED, |item| {
        let place = Some(Place { at: item.at(), line: item.line() });
        let host = |pattern| Host { pattern, place };
        Some(patterns(item, EXPECTED)?.into_iter().map(host).collect::<Vec<_>>())
    })?;
    match lists.concat() {
        hosts if hosts.is_empty() => value.expected("at least one host"),
        hosts => Some(hosts),
    }
}

fn patterns(value: &Value<'_>, expected: &str) -> Option<Vec<HostPattern>> {
    value.text_as(expected, |text| {
        HostPattern::several(text).map_err(|error| {
            let wrong = Refusal::new(format!("expected {expected}, got {}: {error}", quoted(text)));
            match error {
                HostNameError::Character(b'*') => {
                    wrong.hint("`*` stands alone, or first as in \"*.example.com\"")
                }
                HostNameError::Character(_) => {
                    wrong.hint("write the name alone, without scheme, port and path")
                }
                HostNameError::IpLiteral => {
                    wrong.hint("a client that asks for an address has no name: \"*\" matches it")
                }
                _ => wrong,
            }
        })
    })
}

/// The conditions of all routes so far, and where each first stood.
#[derive(Debug, Default)]
pub(super) struct Seen(HashMap<Conditions, Origin>);

#[derive(Debug)]
struct Origin {
    /// The line of the `[[route]]`: it tells a route from the others.
    route: usize,
    /// The line of the host.
    line: usize,
}

impl Seen {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether no earlier route has these conditions. If one has, reports an error at the second.
    pub(super) fn is_new(
        &mut self,
        table: &Section<'_>,
        conditions: &Conditions,
        place: Option<Place>,
    ) -> bool {
        let route = table.line();
        let known = match self.0.entry(conditions.clone()) {
            Entry::Vacant(free) => {
                free.insert(Origin { route, line: place.map_or(route, |place| place.line) });
                return true;
            }
            Entry::Occupied(known) => known,
        };
        let host = &conditions.host;
        let refusal = match known.get() {
            first if first.route == route && place.is_some() => {
                let twice = Refusal::new(format!("`host`: {host} is in this list twice"));
                match host {
                    HostPattern::Exact(name) | HostPattern::Below(name) => twice
                        .hint(format!("leave one out; \".{name}\" is short for \"{name}\" and \"*.{name}\"")),
                    HostPattern::Any => twice.hint("leave one out"),
                }
            }
            first => Refusal::new(format!(
                "a second route for {host} with the same conditions; the first is on line {}",
                first.line
            ))
            .hint("remove one, or give them different `listener`, `protocol`, `alpn` or `from`"),
        };
        match place {
            Some(place) => table.refuse_at(place.at, refusal),
            None => table.refuse(refusal).unwrap_or_default(),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;

    #[test]
    fn a_list_is_a_route_for_each_host_and_a_dot_in_front_is_two() {
        let text = "[[route]]\nhost = [\".a.test\", \"b.test\", \"*\"]\nto = \"100.64.0.2\"\nfrom = [\"10.0.0.0/8\"]\n\
                    [[route]]\nhost = \".c.test\"\nto = \"100.64.0.3\"\n";
        let settings = Settings::parse("test", text).unwrap();
        let hosts: Vec<_> = settings.routes.iter().map(|route| route.conditions.host.to_string()).collect();
        assert_eq!(hosts, ["a.test", "*.a.test", "b.test", "*", "c.test", "*.c.test"]);
        assert!(settings.routes[..4].iter().all(|route| {
            route.to == settings.routes[0].to && route.conditions.from == settings.routes[0].conditions.from
        }));
    }

    #[test]
    fn a_long_list_is_read_in_linear_time() {
        let names: Vec<_> = (0..50_000).map(|number| format!("\"h{number}.test\"")).collect();
        let text = format!("[[route]]\nhost = [{}]\nto = \"100.64.0.2\"\n", names.join(",\n"));
        assert_eq!(Settings::parse("test", &text).unwrap().routes.len(), 50_000);
    }
}
