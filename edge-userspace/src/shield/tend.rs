//! The task that keeps the shield current: lists that change, blocks that end.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::MissedTickBehavior};
use tracing::{error, info, warn};

use super::{Lists, Shield, Vital};
use crate::lock::lock;

/// How often lists are looked at. One that changes takes effect after at most two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Loads the lists, reloads them when they change, and removes expired blocks. Runs until it is dropped; a
/// changed configuration starts another one.
///
/// `spare` returns what no list may cut off, each time lists are loaded, on a thread that may wait. `loaded` is called
/// when lists block new sources.
pub async fn tend(
    shield: Arc<Mutex<Shield>>,
    lists: Vec<PathBuf>,
    spare: impl Fn() -> Vec<Vital> + Send + Sync + 'static,
    loaded: impl Fn() + Send,
) {
    let mut lists = Lists::new(lists);
    let spare = Arc::new(spare);
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_first = true;
    loop {
        ticks.tick().await;
        let (shared, spare) = (shield.clone(), Arc::clone(&spare));
        // Files and a hundred thousand system calls: not for a thread that has clients to serve.
        let round = spawn_blocking(move || {
            // Without lists what an earlier configuration listed has to go, once.
            let added = (lists.look() || is_first) && load(&shared, &lists, &*spare);
            if let Err(error) = lock(&shared).expire() {
                error!("cannot take out blocks that are over: {error}");
            }
            (lists, added)
        });
        match round.await {
            Ok((returned, added)) => {
                lists = returned;
                if added {
                    loaded();
                }
            }
            // The runtime is shutting down.
            Err(_) => return,
        }
        is_first = false;
    }
}

/// Whether there is anybody that lists did not name before.
fn load(shield: &Mutex<Shield>, lists: &Lists, spare: &impl Fn() -> Vec<Vital>) -> bool {
    // Looking them up asks the kernel and the keeper for every tunnel.
    let spare = if lists.prefixes().next().is_some() { spare() } else { Vec::new() };
    let loaded = lock(shield).load_prefixes(lists.prefixes(), &spare, !lists.are_complete());
    match loaded {
        Ok(loaded) => {
            if loaded.added + loaded.removed > 0 {
                info!(added = loaded.added, removed = loaded.removed, "the lists are in force");
            }
            for (net, why) in &loaded.spared {
                warn!("a list names {net}, which is left out: {why}");
            }
            if loaded.left_out > 0 {
                warn!("the lists are too long: {} prefixes are left out", loaded.left_out);
            }
            loaded.added > 0
        }
        Err(error) => {
            error!("the lists are not in force: {error}");
            false
        }
    }
}
