//! The shield as the operator steers it: blocks, lists, the limit of new connections.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use ipnet::IpNet;
use tokio::{
    sync::watch,
    task::{AbortHandle, spawn_blocking},
};

use super::{ControlState, Daemon, devices, following::Following, operate::not_saved, vital};
use crate::{
    config::{
        Settings,
        state::{self, State, StateError},
    },
    connection::Edge,
    control::{
        Refusal, RefusalKind,
        api::{self, AddBlock, Block, RemoveBlock, Timestamp},
    },
    kernel::{Hook, Kernel, KernelError, Prefix},
    lock::lock,
    shield::{Blocked, BlockedSources, Guard, Shield, ShieldError, Vital, cut, forbid_sweeping, tend},
};

/// The shield, and the task that keeps its lists current.
#[derive(Debug)]
pub(super) struct Shielding {
    shield: Arc<Mutex<Shield>>,
    /// Blocks on disk that are not in force since this start, and why.
    held: Mutex<Vec<(IpNet, String)>>,
    pub(super) network_changed: Option<watch::Receiver<()>>,
    tending: Mutex<Option<AbortHandle>>,
}

impl Shielding {
    /// Takes the shield's program with the blocks that an earlier daemon left in it. [`Self::restore`] must follow.
    pub(super) fn new(kernel: &mut Kernel, following: &Following) -> Self {
        let taken = kernel.shield.take().map(Shield::new).transpose().unwrap_or_else(|error| {
            let error = error.words();
            tracing::warn!(error, "the shield cannot be used: blocked sources are refused at accept alone");
            None
        });
        Self {
            shield: Arc::new(Mutex::new(taken.unwrap_or_else(Shield::at_accept))),
            held: Mutex::default(),
            network_changed: following.network_changed(),
            tending: Mutex::default(),
        }
    }

    /// Puts the operator's stored blocks in force, except those that were not forced and would now cut off an address
    /// that must stay reachable. To be called before connections are accepted.
    pub(super) fn restore(&self, blocks: &[state::Block], vital: &[Vital]) {
        let now = SystemTime::now();
        let blocks = blocks.iter().filter(|block| !block.has_ended(now));
        let (held, blocks): (Vec<_>, Vec<_>) = blocks
            .map(|block| (block, hindrance(block, vital)))
            .partition(|(_, hindrance)| hindrance.is_some());
        let held: Vec<_> =
            held.into_iter().filter_map(|(block, hindrance)| Some((block.cidr, hindrance?))).collect();
        for (cidr, hindrance) in &held {
            tracing::error!(%cidr, "a block is not in force: {hindrance} (`edgectl block add {cidr} --force`, or `block remove`)");
        }
        *self.held() = held;
        let blocks: Vec<_> = blocks.into_iter().map(|(block, _)| (block.cidr, block.until)).collect();
        for (cidr, error) in self.shield().restore(&blocks) {
            tracing::error!(%cidr, %error, "a block is not as it was");
        }
    }

    /// The blocked sources, for the accept loops.
    pub(super) fn sources(&self) -> Arc<BlockedSources> {
        Arc::clone(self.shield().sources())
    }

    /// Follows the lists and the limit of these settings from now on.
    pub(super) fn follow(&self, settings: &Settings, edge: &Arc<Edge>) {
        let ports = settings.listeners.iter().flat_map(|listener| listener.bind.iter().map(SocketAddr::port));
        match self.shield().set_syn_rate(settings.shield.syn_rate, ports) {
            Ok(true) => {}
            Ok(false) => tracing::warn!("shield.syn_rate has no effect: `edgectl doctor` says why"),
            Err(error) => tracing::error!(%error, "shield.syn_rate has no effect"),
        }
        let (seen, known, edge) = (Arc::clone(edge), settings.clone(), Arc::clone(edge));
        let task = tokio::spawn(tend(
            Arc::clone(&self.shield),
            settings.shield.lists.clone(),
            move || vital::find(&known, &seen.running.load_full()),
            move || {
                let cut = edge.stop_blocked();
                if cut > 0 {
                    tracing::info!(connections = cut, "ended connections of sources that lists name");
                }
            },
        ));
        let mut tending = lock(&self.tending);
        if let Some(old) = tending.replace(task.abort_handle()) {
            old.abort();
        }
    }

    /// Attaches to new devices, and detaches from those that are gone. Dumps all devices, and resets the
    /// drivers' queues where it attaches.
    pub(super) fn look(&self, edge: &Edge) {
        look(&self.shield, edge);
    }

    /// The same, on another thread.
    pub(super) async fn look_aside(&self, edge: &Arc<Edge>) {
        let (shield, edge) = (Arc::clone(&self.shield), Arc::clone(edge));
        // Fails only when the runtime ends.
        let _ = spawn_blocking(move || look(&shield, &edge)).await;
    }

    /// How blocked sources are kept out, device by device.
    pub(super) fn guards(&self) -> Vec<Guard> {
        self.shield().guards()
    }

    /// Packets dropped since the maps were made.
    pub(super) fn dropped(&self) -> u64 {
        self.shield().counters().map_or(0, |counters| counters.blocked + counters.limited)
    }

    /// Blocks on disk that are not in force, and why.
    pub(super) fn held(&self) -> MutexGuard<'_, Vec<(IpNet, String)>> {
        lock(&self.held)
    }

    pub(super) fn shield(&self) -> MutexGuard<'_, Shield> {
        lock(&self.shield)
    }
}

fn look(shield: &Mutex<Shield>, edge: &Edge) {
    match devices::sorted(edge) {
        Ok(devices) => lock(shield).watch(devices),
        Err(error) => {
            tracing::warn!(
                error = error.words(),
                "devices that come are not shielded, blocks hold at accept"
            );
        }
    }
}

/// Saves a state, or restores the one on disk: the last step of a save may fail after the new text is already
/// there.
async fn save(control_state: &ControlState, new: &State) -> Result<(), StateError> {
    let saved = control_state.store.save(new).await;
    if saved.is_err() {
        // Where that fails as well, the first error says what is wrong.
        let _ = control_state.store.save(&control_state.state).await;
    }
    saved
}

/// A change of the operator's setting for a prefix: in force and on disk, or neither.
///
/// It is put in force first, so that a setting that the kernel refuses is never on disk. If the daemon dies
/// in between, the next one follows the disk ([`Shield::restore`]).
async fn lasting<T>(
    shield: &Mutex<Shield>,
    cidr: IpNet,
    change: impl FnOnce(&mut Shield) -> Result<T, ShieldError>,
    save: impl Future<Output = Result<(), StateError>>,
) -> Result<T, Refusal> {
    let (before, changed) = {
        let mut shield = lock(shield);
        (shield.before(cidr), change(&mut shield).map_err(|error| refused(&error))?)
    };
    if let Err(error) = save.await {
        if let Err(stuck) = lock(shield).go_back(before) {
            tracing::error!(%cidr, error = %stuck, "a change that is not on disk cannot be taken back");
        }
        return Err(not_saved(&error));
    }
    Ok(changed)
}

/// Why a block of before is not put in force again.
fn hindrance(block: &state::Block, vital: &[Vital]) -> Option<String> {
    if block.forced {
        return None;
    }
    let vital = cut(&block.cidr, vital)?;
    Some(ShieldError::Cuts { net: block.cidr, vital: vital.clone() }.to_string())
}

/// A prefix as it is listed: one of mapped addresses is one of IPv4.
fn plain(net: IpNet) -> IpNet {
    Prefix::from(net).into()
}

impl Daemon {
    pub(super) fn listed_blocks(&self) -> Result<Vec<Block>, Refusal> {
        let blocked = self.shielding.shield().blocked().map_err(|error| kernel_refused(&error))?;
        Ok(blocked.iter().map(shown).collect())
    }

    pub(super) async fn block(&self, mut wanted: AddBlock) -> Result<Block, Refusal> {
        wanted.cidr = plain(wanted.cidr);
        let mut control_state = self.control_state.lock().await;
        let until = wanted.duration.map(|duration| SystemTime::now() + duration);
        let mut spare = Vec::new();
        if !wanted.force {
            forbid_sweeping(wanted.cidr).map_err(|error| refused(&error))?;
            let called = wanted.protect.iter();
            spare.extend(called.map(|address| Vital::at(*address, "it is where you come from")));
            spare.extend(self.vital(&control_state.settings).await);
        }
        // A device may have come this moment, and its event not yet.
        self.shielding.look_aside(&self.edge).await;
        let mut state = control_state.state.clone();
        state.blocks.retain(|block| block.cidr != wanted.cidr && !block.has_ended(SystemTime::now()));
        state.blocks.push(state::Block { cidr: wanted.cidr, until, forced: wanted.force });
        lasting(
            &self.shielding.shield,
            wanted.cidr,
            |shield| shield.block(wanted.cidr, until, &spare),
            save(&control_state, &state),
        )
        .await?;
        control_state.state = state;
        self.shielding.held().retain(|(held, _)| *held != wanted.cidr);
        let cut = self.edge.stop_blocked();
        tracing::info!(cidr = %wanted.cidr, connections = cut, "blocked");
        Ok(Block { devices: guards(&self.shielding), closed: cut as u64, ..self.find_block(wanted.cidr)? })
    }

    pub(super) async fn unblock(&self, mut wanted: RemoveBlock) -> Result<Block, Refusal> {
        wanted.cidr = plain(wanted.cidr);
        let mut control_state = self.control_state.lock().await;
        let mut state = control_state.state.clone();
        state.blocks.retain(|block| block.cidr != wanted.cidr);
        if let Some(held) = self.held_block(wanted.cidr, &control_state.state) {
            save(&control_state, &state).await.map_err(|error| not_saved(&error))?;
            control_state.state = state;
            self.shielding.held().retain(|(held, _)| *held != wanted.cidr);
            return Ok(held);
        }
        let was = self.find_block(wanted.cidr)?;
        let list = lasting(
            &self.shielding.shield,
            wanted.cidr,
            |shield| shield.unblock(wanted.cidr),
            save(&control_state, &state),
        )
        .await?;
        control_state.state = state;
        if let Some(list) = list {
            tracing::warn!(cidr = %wanted.cidr, list = &*list, "goes on being blocked by a list");
        }
        Ok(was)
    }

    /// The addresses that must stay reachable now.
    pub(super) async fn vital(&self, settings: &Settings) -> Vec<Vital> {
        let (settings, edge) = (settings.clone(), Arc::clone(&self.edge));
        // Fails only when the runtime ends.
        spawn_blocking(move || vital::find(&settings, &edge.running.load_full())).await.unwrap_or_default()
    }

    /// A block that is on disk and not in force.
    fn held_block(&self, cidr: IpNet, state: &State) -> Option<Block> {
        self.shielding.held().iter().find(|(held, _)| *held == cidr)?;
        let until = state.blocks.iter().find(|block| block.cidr == cidr)?.until.map(Timestamp);
        Some(Block { cidr, until, packets: 0, source: "runtime".into(), devices: Vec::new(), closed: 0 })
    }

    fn find_block(&self, cidr: IpNet) -> Result<Block, Refusal> {
        let blocked = self.shielding.shield().blocked().map_err(|error| kernel_refused(&error))?;
        blocked.iter().find(|blocked| blocked.net == cidr).map(shown).ok_or_else(|| {
            Refusal::new(RefusalKind::NotFound, "not_blocked", format!("{cidr} is not blocked"))
                .hint("`edgectl block list` shows what is, as it was written")
        })
    }
}

/// How blocked sources are kept out, as the control API has it.
pub(super) fn guards(shielding: &Shielding) -> Vec<api::Guard> {
    let shown = |guard: Guard| api::Guard {
        device: guard.device,
        by: match guard.hook {
            Some(Hook::Xdp) => api::GuardedBy::Xdp,
            Some(Hook::Tc) => api::GuardedBy::Tc,
            None => api::GuardedBy::Accept,
        },
        reason: (!guard.reason.is_empty()).then_some(guard.reason),
    };
    shielding.guards().into_iter().map(shown).collect()
}

fn shown(blocked: &Blocked) -> Block {
    Block {
        cidr: blocked.net,
        until: blocked.until.map(Timestamp),
        packets: blocked.packets,
        source: blocked.list.clone().unwrap_or_else(|| "runtime".into()),
        devices: Vec::new(),
        closed: 0,
    }
}

fn refused(error: &ShieldError) -> Refusal {
    let (kind, code) = match error {
        ShieldError::Cuts { .. } => (RefusalKind::Conflict, "would_cut_off"),
        ShieldError::Sweeping(_) => (RefusalKind::Conflict, "wide_prefix"),
        ShieldError::TooWide(_) => (RefusalKind::Invalid, "too_wide"),
        ShieldError::NotBlocked(_) => (RefusalKind::NotFound, "not_blocked"),
        ShieldError::Listed { .. } => (RefusalKind::Conflict, "blocked_by_list"),
        ShieldError::Full(_) => (RefusalKind::Conflict, "full"),
        ShieldError::Kernel(error) => return kernel_refused(error),
    };
    let refusal = Refusal::new(kind, code, error.to_string());
    match error {
        ShieldError::Cuts { .. } | ShieldError::Sweeping(_) => refusal.hint(
            "block a narrower prefix, or block it all the same by `edgectl block add --force` (`\"force\": true`)",
        ),
        _ => refusal,
    }
}

fn kernel_refused(error: &KernelError) -> Refusal {
    Refusal::new(RefusalKind::Unsupported, "kernel_refused", error.words())
        .hint("`edgectl doctor` looks at what the kernel can do")
}

#[cfg(test)]
mod tests {
    use std::{
        future::{Ready, ready},
        io,
        time::Duration,
    };

    use super::*;

    type Saved = Ready<Result<(), StateError>>;

    /// A disk that takes nothing.
    fn full() -> Saved {
        let (path, source) = ("/full/state.toml".into(), io::ErrorKind::StorageFull.into());
        ready(Err(StateError::Io { action: "write", path, source }))
    }

    fn good() -> Saved {
        ready(Ok(()))
    }

    /// The ends of blocks in the shield's ledger, and whether this address is refused at accept.
    fn blocked(shield: &Mutex<Shield>, net: IpNet) -> (Vec<Option<SystemTime>>, bool) {
        let shield = lock(shield);
        let known = shield.blocked().unwrap().into_iter().map(|block| block.until);
        (known.collect(), shield.sources().hold(net.addr()))
    }

    #[tokio::test]
    async fn what_cannot_be_saved_changes_nothing() {
        let shield = Mutex::new(Shield::at_accept());
        let net: IpNet = "192.0.2.1/32".parse().unwrap();
        let soon = SystemTime::now() + Duration::from_mins(1);
        let block = |until| move |shield: &mut Shield| shield.block(net, until, &[]);
        let refusal = lasting(&shield, net, block(None), full()).await.unwrap_err();
        assert!(refusal.message.contains("nothing was changed"), "{refusal:?}");
        assert_eq!(blocked(&shield, net), (vec![], false), "not added");

        lasting(&shield, net, block(None), good()).await.unwrap();
        lasting(&shield, net, block(Some(soon)), full()).await.unwrap_err();
        assert_eq!(blocked(&shield, net), (vec![None], true), "blocked for ever as before");

        lasting(&shield, net, |shield| shield.unblock(net), full()).await.unwrap_err();
        assert_eq!(blocked(&shield, net), (vec![None], true), "not removed");
        lasting(&shield, net, |shield| shield.unblock(net), good()).await.unwrap();
        assert_eq!(blocked(&shield, net), (vec![], false));
    }

    #[tokio::test]
    async fn what_is_refused_is_not_saved() {
        let shield = Mutex::new(Shield::at_accept());
        let net: IpNet = "192.0.2.1/32".parse().unwrap();
        let save = async { unreachable!("it is not in force") };
        lasting(&shield, net, |shield| shield.unblock(net), save).await.unwrap_err();
        let save = async { unreachable!("it is not in force") };
        let spare = [Vital::at(net.addr(), "it is home")];
        lasting(&shield, net, |shield| shield.block(net, None, &spare), save).await.unwrap_err();
    }
}
