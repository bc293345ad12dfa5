//! The keeper's work before a hand-over: it attaches the programs to both devices, reads the IPsec policies,
//! and disables conntrack's window checks for both legs. From the hand-over on, conntrack sees only some of
//! their packets. A firewall that drops invalid packets would otherwise drop the sockets' retransmissions and
//! their acknowledgements.
//!
//! The control runtime sends requests for many connections at once. Workers wait for the answer and carry on
//! their sockets meanwhile: a slow keeper delays hand-overs but no byte.

use std::{sync::Mutex, time::Duration};

use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

use super::{stay::Stay, survey::Survey, tier::FlowTier};
use crate::lock::lock;

/// How long a worker waits. The keeper usually takes less than a millisecond.
const PATIENCE: Duration = Duration::from_secs(3);
/// The most connections that may wait. Further ones are retried later.
const MOST: usize = 1 << 14;
/// Connections a turn: they fit into one request to the keeper.
const BATCH: usize = 32;

/// A connection that is to be handed over.
#[derive(Debug)]
struct Waiting {
    survey: Survey,
    answer: oneshot::Sender<Result<(), Stay>>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Readying {
    asked: Mutex<Vec<Waiting>>,
    added: Notify,
}

impl Readying {
    fn ask(&self, survey: Survey) -> Option<oneshot::Receiver<Result<(), Stay>>> {
        let mut asked = lock(&self.asked);
        if asked.len() >= MOST {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        asked.push(Waiting { survey, answer });
        self.added.notify_one();
        Some(answered)
    }

    /// Those that wait still, in their order.
    fn next(&self) -> Vec<Waiting> {
        let mut asked = lock(&self.asked);
        // Requests whose connection has given up are dropped.
        asked.retain(|asked| !asked.answer.is_closed());
        let some = asked.len().min(BATCH);
        asked.drain(..some).collect()
    }
}

impl FlowTier {
    /// Prepares everything for the hand-over of this connection, or returns why it stays on its sockets.
    pub(super) async fn readied(&self, survey: Survey) -> Result<(), Stay> {
        let answered = self.readying().ask(survey).ok_or(Stay::NotReady)?;
        match timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(Stay::NotReady),
        }
    }

    /// Prepares connections for their hand-over, for as long as the daemon lives. Waits for the keeper, so
    /// workers must not run it.
    pub async fn ready_connections(&self) {
        let readying = self.readying();
        loop {
            let some = readying.next();
            if some.is_empty() {
                readying.added.notified().await;
                continue;
            }
            let mut ready = Vec::with_capacity(some.len());
            for Waiting { survey, answer } in some {
                match self.attach_for(&survey) {
                    Ok(()) => ready.push((survey, answer)),
                    // A connection that no longer waits needs no answer, here and below.
                    Err(stay) => drop(answer.send(Err(stay))),
                }
            }
            let ends: Vec<_> = ready.iter().flat_map(|(survey, _)| survey.ends()).collect();
            if !ends.is_empty() {
                self.tracks().loosen(&ends);
            }
            for (_, answer) in ready {
                drop(answer.send(Ok(())));
            }
            tokio::task::yield_now().await;
        }
    }
}
