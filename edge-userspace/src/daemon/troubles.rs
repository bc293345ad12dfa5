//! Parts of the configuration that are not in effect and may recover without a change. Status, doctor,
//! `/healthz` and the service manager read them here. Each is logged once when it begins and once when it
//! ends.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
};

use super::worker::Binding;
use crate::lock::lock;

/// Why clients do not reach an address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It cannot be bound, for this reason.
    Closed(String),
    /// It is listened on, and this machine does not have it.
    Away,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(reason) => f.write_str(reason),
            Self::Away => f.write_str("no device of this machine has this address"),
        }
    }
}

/// Parts other than listeners that may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// `daemon.admin`
    Admin,
    /// `daemon.admin_token_file`
    AdminToken,
    /// `daemon.control`
    Control,
    /// `daemon.state_dir`
    State,
}

impl Part {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::AdminToken => "admin_token_file",
            Self::Control => "control",
            Self::State => "state",
        }
    }
}

/// Everything that is missing now.
#[derive(Debug, Default)]
pub(super) struct Troubles(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    listeners: BTreeMap<(Arc<str>, SocketAddr), Trouble>,
    parts: BTreeMap<Part, String>,
    /// The last text for the service manager.
    told: Option<String>,
}

impl Troubles {
    /// The troubles of all listeners as they are now.
    pub(super) fn note_listeners(&self, found: impl IntoIterator<Item = (Binding, Trouble)>) {
        let mut known = self.known();
        let found: BTreeMap<_, _> = found
            .into_iter()
            .map(|(Binding { listener, address }, trouble)| ((listener, address), trouble))
            .collect();
        for ((listener, address), trouble) in &found {
            if known.listeners.get(&(Arc::clone(listener), *address)) == Some(trouble) {
                continue;
            }
            match trouble {
                Trouble::Closed(reason) => {
                    tracing::error!(listener = &**listener, "{reason}; edged tries again by itself");
                }
                Trouble::Away => tracing::warn!(
                    listener = &**listener,
                    "{trouble}: {address}; clients are accepted as soon as it appears"
                ),
            }
        }
        for (listener, address) in known.listeners.keys().filter(|binding| !found.contains_key(binding)) {
            tracing::info!(listener = &**listener, %address, "clients are accepted now");
        }
        known.listeners = found;
    }

    /// The present fault of a part; `None` if there is none.
    pub(super) fn note(&self, part: Part, trouble: Option<String>) {
        let mut known = self.known();
        match trouble {
            Some(trouble) if known.parts.get(&part) == Some(&trouble) => {}
            Some(trouble) => {
                tracing::error!("{}: {trouble}", part.name());
                known.parts.insert(part, trouble);
            }
            None => {
                if known.parts.remove(&part).is_some() {
                    tracing::info!("{}: in order now", part.name());
                }
            }
        }
    }

    /// The troubles of one listener.
    pub(super) fn of(&self, listener: &str) -> Vec<(SocketAddr, Trouble)> {
        let known = self.known();
        let own = known.listeners.iter().filter(|((name, _), _)| **name == *listener);
        own.map(|((_, address), trouble)| (*address, trouble.clone())).collect()
    }

    /// The fault of a part.
    pub(super) fn part(&self, part: Part) -> Option<String> {
        self.known().parts.get(&part).cloned()
    }

    /// Each trouble in a line.
    pub(super) fn lines(&self) -> Vec<String> {
        let known = self.known();
        let listeners = known.listeners.iter().map(|((name, address), trouble)| match trouble {
            Trouble::Closed(reason) => format!("listener {name}: {reason}"),
            Trouble::Away => format!("listener {name}: {address}: {trouble}"),
        });
        let parts = known.parts.iter().map(|(part, trouble)| format!("{}: {trouble}", part.name()));
        listeners.chain(parts).collect()
    }

    /// The line for the service manager (`STATUS=` in `sd_notify(3)`) with these counts, if it has changed.
    pub(super) fn news(&self, counts: &str) -> Option<String> {
        let serving = match &*self.lines() {
            [] => "serving".to_owned(),
            [one] => format!("serving, but {one}"),
            [first, others @ ..] => {
                format!("serving, but {first} (`edgectl status` shows {} more)", others.len())
            }
        };
        let line = format!("{serving}; {counts}");
        let mut known = self.known();
        let is_new = known.told.as_ref() != Some(&line);
        known.told = Some(line.clone());
        is_new.then_some(line)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(address: &str) -> Binding {
        Binding { listener: "https".into(), address: address.parse().unwrap() }
    }

    #[test]
    fn a_trouble_is_known_until_it_has_passed() {
        let troubles = Troubles::default();
        let closed = Trouble::Closed("[::]:443 is in use by nginx (process 7)".into());
        troubles.note_listeners([(binding("[::]:443"), closed), (binding("10.0.0.1:443"), Trouble::Away)]);
        troubles.note(Part::Admin, Some("in use".into()));
        assert_eq!(
            troubles.lines(),
            [
                "listener https: 10.0.0.1:443: no device of this machine has this address",
                "listener https: [::]:443 is in use by nginx (process 7)",
                "admin: in use"
            ]
        );
        assert_eq!(troubles.of("http"), []);
        let line = troubles.news("2 routes").unwrap();
        assert!(
            line.starts_with("serving, but listener https: 10.0.0.1:443: ")
                && line.ends_with("2 more); 2 routes"),
            "{line}"
        );
        assert_eq!(troubles.news("2 routes"), None);
        assert!(troubles.news("3 routes").is_some());
        troubles.note_listeners([(binding("10.0.0.1:443"), Trouble::Away)]);
        troubles.note(Part::Admin, None);
        assert_eq!(troubles.of("https"), [("10.0.0.1:443".parse().unwrap(), Trouble::Away)]);
        assert_eq!((troubles.part(Part::Admin), troubles.lines().len()), (None, 1));
    }
}
