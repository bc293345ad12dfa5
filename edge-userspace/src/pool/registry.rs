//! Every backend by its identity, so that counters and state survive a reload.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use super::{attempts::Pool, backend::Backend, identity::BackendId};
use crate::{
    lock::lock,
    places::{KnownPlaces, Places},
    spec::{BackendSpec, PoolSpec},
};

/// The backends of all pools. One that no pool and no connection holds any more is forgotten.
#[derive(Debug, Default)]
pub struct Backends {
    known: Mutex<HashMap<BackendId, Weak<Backend>>>,
    places: KnownPlaces,
}

impl Backends {
    /// A pool according to `spec`, over the known backends and new ones for the rest.
    ///
    /// Known backends take the new weight, role and health check at once, so call this only once the whole
    /// configuration is known to be valid.
    pub fn pool(&self, spec: &PoolSpec) -> Pool {
        let mut known = lock(&self.known);
        let alone = spec.backends.len() == 1;
        let backend = |wanted: &BackendSpec| {
            let id = BackendId {
                pool: Arc::clone(&spec.name),
                to: wanted.to.clone(),
                device: wanted.device.clone(),
            };
            if let Some(kept) = known.get(&id).and_then(Weak::upgrade) {
                kept.reconfigure(wanted, spec.health, alone);
                return kept;
            }
            let places = self.places.of(id.key());
            let fresh = Arc::new(Backend::new(id.clone(), wanted, places, spec.health, alone));
            known.insert(id, Arc::downgrade(&fresh));
            fresh
        };
        let backends: Box<[_]> = spec.backends.iter().map(backend).collect();
        for backend in &backends {
            backend.set_warm(spec.warm);
            backend.places().set_limit(spec.connections);
        }
        Pool::new(spec, backends)
    }

    /// The places at the backend with this [`BackendId::key`].
    pub fn places(&self, key: u64) -> Arc<Places> {
        self.places.of(key)
    }

    /// Every backend in use.
    pub fn all(&self) -> Vec<Arc<Backend>> {
        let mut known = lock(&self.known);
        known.retain(|_, backend| backend.strong_count() > 0);
        self.places.forget_unused();
        known.values().filter_map(Weak::upgrade).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pool::BackendState, spec::BackendSpec};

    #[test]
    fn what_stays_the_same_backend_keeps_its_counters_and_state() {
        let backends = Backends::default();
        let by = |to: &str, device: Option<&str>, weight| BackendSpec {
            device: device.map(Arc::from),
            weight,
            ..BackendSpec::new(to.parse().unwrap())
        };
        let spec =
            PoolSpec::new("home", vec![by("10.0.0.1", Some("wg0"), 1), by("10.0.0.1", Some("wg1"), 1)]);
        let before = backends.pool(&spec);
        let lease = before.backends()[0].lease();
        before.backends()[1].drain();
        let spec = PoolSpec::new("home", vec![by("10.0.0.1", Some("wg1"), 5), by("10.0.0.1", None, 1)]);
        let after = backends.pool(&spec);
        assert!(Arc::ptr_eq(&before.backends()[1], &after.backends()[0]));
        assert_eq!(after.backends()[0].state(), BackendState::Drained);
        assert_eq!(after.backends()[0].weight(), 5);
        assert_eq!(after.backends()[1].connections(), 0, "another device is another backend");
        drop(before);
        assert_eq!(backends.all().len(), 3, "a live connection holds its backend");
        drop(lease);
        assert_eq!(backends.all().len(), 2);
        let other = backends.pool(&PoolSpec { name: "other".into(), ..spec });
        assert!(!Arc::ptr_eq(&other.backends()[0], &after.backends()[0]));
    }
}
