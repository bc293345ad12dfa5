//! Writes the runtime state to disk on a thread that may block, so that a slow disk delays only the answer to
//! that call. Health checks and the watchdog share the control runtime.

use std::sync::{Arc, Mutex};

use super::troubles::{Part, Troubles};
use crate::{
    config::state::{State, StateError, StateStore},
    lock::lock,
};

/// Writes the state.
#[derive(Debug)]
pub(super) struct StateWriter {
    store: Arc<Mutex<StateStore>>,
    troubles: Arc<Troubles>,
}

impl StateWriter {
    pub(super) fn new(store: StateStore, troubles: Arc<Troubles>) -> Self {
        Self { store: Arc::new(Mutex::new(store)), troubles }
    }

    /// [`StateStore::save`] off the runtime: when this returns, the state is on disk.
    ///
    /// The caller holds the lock of all changes meanwhile, so saves happen one after the other.
    pub(super) async fn save(&self, state: &State) -> Result<(), StateError> {
        let (store, state) = (Arc::clone(&self.store), state.clone());
        let save = move || lock(&store).save(&state);
        let saved = match tokio::task::spawn_blocking(save).await {
            Ok(saved) => saved,
            Err(error) => Err(StateError::Interrupted(error.into())),
        };
        self.troubles.note(Part::State, saved.as_ref().err().map(ToString::to_string));
        saved
    }
}
