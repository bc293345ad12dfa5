//! The differences between two configurations: the answer to "what would a reload change?".

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::settings::Settings;
use crate::spec::{Conditions, ListenerSpec, PoolSpec, RouteSpec};

/// Differences between the settings that run and those of the file. Everything is named as the file names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// `[[listener]]`, by name.
    pub listeners: ChangedItems,
    /// `[[pool]]`, by name.
    pub pools: ChangedItems,
    /// `[[route]]`, by host and the other conditions; a route with several hosts is one for each.
    pub routes: ChangedItems,
    /// Keys of the other sections, such as `limits.idle_timeout`.
    pub settings: Vec<String>,
}

/// Differences between two lists of items that have names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedItems {
    /// Only the file has them.
    pub added: Vec<String>,
    /// Only the running configuration has them.
    pub removed: Vec<String>,
    /// Both have them, with different keys.
    pub changed: Vec<ChangedItem>,
}

/// An item that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedItem {
    /// Its name.
    pub name: String,
    /// The keys that differ.
    pub keys: Vec<String>,
}

/// A key and whether two items have the same value there.
type Key<T> = (&'static str, fn(&T, &T) -> bool);

impl Settings {
    /// The changes from these settings to `new`.
    pub fn changes(&self, new: &Self) -> Changes {
        Changes {
            listeners: compare(
                &self.listeners,
                &new.listeners,
                |listener| listener.name.to_string(),
                LISTENER,
            ),
            pools: compare(&self.pools, &new.pools, |pool| pool.name.to_string(), POOL),
            routes: compare(&self.routes, &new.routes, |route| route_name(&route.conditions), ROUTE),
            settings: differing(self, new, SETTINGS),
        }
    }
}

impl Changes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A route's conditions in one line: `*.example.com listener=http from=192.0.2.0/24`.
pub fn route_name(conditions: &Conditions) -> String {
    fn list<T: ToString>(name: &mut String, key: &str, values: &[T]) {
        if !values.is_empty() {
            let values: Vec<_> = values.iter().map(ToString::to_string).collect();
            name.extend([" ", key, "=", &values.join(",")]);
        }
    }
    let mut name = conditions.host.to_string();
    list(&mut name, "listener", &conditions.listeners);
    list(&mut name, "protocol", &conditions.protocols);
    list(&mut name, "alpn", &conditions.alpn);
    list(&mut name, "from", &conditions.from);
    name
}

fn compare<T>(old: &[T], new: &[T], name: impl Fn(&T) -> String, keys: &[Key<T>]) -> ChangedItems {
    let (old_items, new_items) = (index(old, &name), index(new, &name));
    let mut changes = ChangedItems::default();
    for (name, item) in &new_items {
        match old_items.get(name) {
            None => changes.added.push(name.clone()),
            Some(before) => {
                let keys = differing(*before, *item, keys);
                if !keys.is_empty() {
                    changes.changed.push(ChangedItem { name: name.clone(), keys });
                }
            }
        }
    }
    changes.removed = old_items.into_keys().filter(|name| !new_items.contains_key(name)).collect();
    changes
}

fn index<T>(items: &[T], name: impl Fn(&T) -> String) -> BTreeMap<String, &T> {
    // Of two routes with the same conditions only the first is ever met.
    items.iter().rev().map(|item| (name(item), item)).collect()
}

fn differing<T>(old: &T, new: &T, keys: &[Key<T>]) -> Vec<String> {
    keys.iter().filter(|(_, same)| !same(old, new)).map(|(key, _)| (*key).to_owned()).collect()
}

const LISTENER: &[Key<ListenerSpec>] = &[
    ("bind", |a, b| a.bind == b.bind),
    ("protocol", |a, b| a.protocol == b.protocol),
    ("protocols", |a, b| a.protocols == b.protocols),
    ("silence_timeout", |a, b| a.silence_timeout == b.silence_timeout),
    ("hello_timeout", |a, b| a.hello_timeout == b.hello_timeout),
    ("idle_timeout", |a, b| a.idle_timeout == b.idle_timeout),
    ("accept_proxy", |a, b| a.accept_proxy == b.accept_proxy),
    ("allow", |a, b| a.access.allow == b.access.allow),
    ("deny", |a, b| a.access.deny == b.access.deny),
    ("to", |a, b| a.to == b.to),
    ("connect_timeout", |a, b| a.connect_timeout == b.connect_timeout),
];

const POOL: &[Key<PoolSpec>] = &[
    ("balance", |a, b| a.balance == b.balance),
    ("proxy_protocol", |a, b| a.proxy_protocol == b.proxy_protocol),
    ("proxy_tlvs", |a, b| a.proxy_tlvs == b.proxy_tlvs),
    ("proxy_align", |a, b| a.proxy_align == b.proxy_align),
    ("connect_timeout", |a, b| a.connect_timeout == b.connect_timeout),
    ("warm", |a, b| a.warm == b.warm),
    ("connections", |a, b| a.connections == b.connections),
    ("health", |a, b| a.health == b.health),
    ("backend", |a, b| a.backends == b.backends),
];

const ROUTE: &[Key<RouteSpec>] = &[
    ("to", |a, b| a.to == b.to),
    ("allow", |a, b| a.access.allow == b.access.allow),
    ("deny", |a, b| a.access.deny == b.access.deny),
    ("redirect", |a, b| a.redirect == b.redirect),
    ("connections", |a, b| a.connections == b.connections && a.shares_limit_with == b.shares_limit_with),
    ("proxy_protocol", |a, b| a.proxy_protocol == b.proxy_protocol),
    ("proxy_tlvs", |a, b| a.proxy_tlvs == b.proxy_tlvs),
    ("datapath", |a, b| a.datapath == b.datapath),
    ("idle_timeout", |a, b| a.idle_timeout == b.idle_timeout),
    ("connect_timeout", |a, b| a.connect_timeout == b.connect_timeout),
];

const SETTINGS: &[Key<Settings>] = &[
    ("daemon.datapath", |a, b| a.daemon.datapath == b.daemon.datapath),
    ("daemon.state_dir", |a, b| a.daemon.state_dir == b.daemon.state_dir),
    ("daemon.control", |a, b| a.daemon.control == b.daemon.control),
    ("daemon.admin", |a, b| a.daemon.admin == b.daemon.admin),
    ("daemon.admin_hosts", |a, b| a.daemon.admin_hosts == b.daemon.admin_hosts),
    ("daemon.access_log", |a, b| a.daemon.access_log == b.daemon.access_log),
    ("daemon.access_log_empty", |a, b| a.daemon.access_log_empty == b.daemon.access_log_empty),
    ("daemon.access_log_clients", |a, b| a.daemon.access_log_clients == b.daemon.access_log_clients),
    ("daemon.drain_timeout", |a, b| a.daemon.drain_timeout == b.daemon.drain_timeout),
    ("limits.hello_timeout", |a, b| a.limits.hello_timeout == b.limits.hello_timeout),
    ("limits.hello_bytes", |a, b| a.limits.hello_bytes == b.limits.hello_bytes),
    ("limits.hello_memory", |a, b| a.limits.hello_memory == b.limits.hello_memory),
    ("limits.connections", |a, b| a.limits.connections == b.limits.connections),
    ("limits.connections_per_source", |a, b| {
        a.limits.connections_per_source == b.limits.connections_per_source
    }),
    ("limits.connection_rate_per_source", |a, b| {
        a.limits.connection_rate_per_source == b.limits.connection_rate_per_source
    }),
    ("limits.idle_timeout", |a, b| a.limits.idle_timeout == b.limits.idle_timeout),
    ("resolver", |a, b| a.resolver == b.resolver),
    ("flow", |a, b| a.flow == b.flow),
    ("tunnel", |a, b| a.tunnel == b.tunnel),
    ("shield.lists", |a, b| a.shield.lists == b.shield.lists),
    ("shield.syn_rate", |a, b| a.shield.syn_rate == b.shield.syn_rate),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        Settings::parse("edge.toml", text).unwrap()
    }

    const BEFORE: &str = "
        [limits]
        connections = 10
        [[listener]]
        name = \"https\"
        bind = [\"[::]:443\"]
        [[listener]]
        name = \"old\"
        bind = [\"[::]:8443\"]
        [[pool]]
        name = \"caddy\"
        [[pool.backend]]
        to = \"192.0.2.1:443\"
        [[route]]
        host = \".example.com\"
        to = \"caddy\"
        [[route]]
        host = \"gone.example\"
        to = \"caddy\"
    ";

    #[test]
    fn the_same_file_changes_nothing() {
        assert!(settings(BEFORE).changes(&settings(BEFORE)).is_empty());
    }

    #[test]
    fn what_is_added_removed_and_changed_is_named_with_its_keys() {
        let after = BEFORE
            .replace("connections = 10", "connections = 11\nidle_timeout = \"2h\"")
            .replace("name = \"old\"", "name = \"new\"")
            .replace("[::]:443", "[::]:444")
            .replace("192.0.2.1", "192.0.2.2")
            .replace("gone.example\"", "gone.example\"\nfrom = [\"192.0.2.0/24\"]\n")
            .replace("host = \".example.com\"", "host = \".example.com\"\ndeny = [\"192.0.2.0/24\"]");
        let found = settings(BEFORE).changes(&settings(&after));
        let item = |name: &str, key: &str| ChangedItem { name: name.to_owned(), keys: vec![key.to_owned()] };
        let expected = ChangedItems {
            added: vec!["new".to_owned()],
            removed: vec!["old".to_owned()],
            changed: vec![item("https", "bind")],
        };
        assert_eq!(found.listeners, expected);
        assert_eq!(found.pools.changed, [item("caddy", "backend")]);
        assert_eq!(found.routes.added, ["gone.example from=192.0.2.0/24"]);
        assert_eq!(found.routes.removed, ["gone.example"]);
        assert_eq!(found.routes.changed, [item("*.example.com", "deny"), item("example.com", "deny")]);
        assert_eq!(found.settings, ["limits.connections", "limits.idle_timeout"]);
    }
}
