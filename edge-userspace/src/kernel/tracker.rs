//! The daemon's access to connection tracking: through the keeper, which has the rights for it, or directly
//! if there is no keeper.

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    Conntrack, Ends, Fill, KernelError,
    keeper::{Keeper, Request, keeper},
};

/// How long the answer to whether anything is tracked at all counts.
const EVERY: Duration = Duration::from_secs(1);

/// Changes to conntrack entries. See [`Conntrack`] for their meaning.
#[derive(Debug)]
pub enum Tracker {
    /// By a socket of its own.
    Own(Conntrack),
    /// Through the keeper.
    ByKeeper(ByKeeper),
}

/// The keeper, which need not be asked where nothing is tracked.
#[derive(Debug)]
pub struct ByKeeper {
    keeper: &'static Keeper,
    /// Whether the module was loaded, and when that was looked at.
    is_loaded: Option<(bool, Instant)>,
}

impl Tracker {
    /// Opens what there is, in the network namespace of this thread.
    pub fn open() -> io::Result<Self> {
        match keeper() {
            Some(keeper) => Ok(Self::ByKeeper(ByKeeper { keeper, is_loaded: None })),
            None => Conntrack::open().map(Self::Own),
        }
    }

    /// Deletes the entries of these connections.
    pub fn forget(&mut self, connections: &[Ends]) -> io::Result<()> {
        match self {
            Self::Own(own) => own.forget(connections).map(drop),
            Self::ByKeeper(keeper) => keeper.ask(|keeper| keeper.track(connections, false)),
        }
    }

    /// Has the tracker believe these connections whatever their windows.
    pub fn loosen(&mut self, connections: &[Ends]) -> io::Result<()> {
        match self {
            Self::Own(own) => own.loosen(connections),
            Self::ByKeeper(keeper) => keeper.ask(|keeper| keeper.track(connections, true)),
        }
    }

    /// Has the firewall take the next packets of a connection for established ones.
    pub fn admit(&mut self, ends: &Ends) -> io::Result<()> {
        match self {
            Self::Own(own) => own.admit(ends),
            Self::ByKeeper(keeper) => {
                keeper.ask(|keeper| keeper.ask(&Request::AdmitTrack { connection: *ends }).map(drop))
            }
        }
    }
}

impl ByKeeper {
    fn ask(&mut self, ask: impl FnOnce(&Keeper) -> Result<(), KernelError>) -> io::Result<()> {
        let now = Instant::now();
        let fresh = self.is_loaded.filter(|(_, then)| now.duration_since(*then) < EVERY);
        let (is_loaded, _) = *self.is_loaded.insert(fresh.unwrap_or_else(|| (Fill::now().is_some(), now)));
        if !is_loaded {
            return Ok(());
        }
        ask(self.keeper).map_err(|error| {
            let kind = if error.is_denied() { io::ErrorKind::PermissionDenied } else { io::ErrorKind::Other };
            io::Error::new(kind, error.words())
        })
    }
}
