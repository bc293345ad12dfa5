//! The shield as the operator steers it: blocks, lists, the limit of new connections.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tokio::{sync::watch, task::AbortHandle};

use super::{Daemon, operate::not_saved};
use crate::{
    config::{Settings, state},
    control::{
        Refusal, RefusalKind,
        api::{AddBlock, Block, RemoveBlock, Timestamp},
    },
    datapath::StopReason,
    kernel::{Kernel, KernelError},
    shield::{Blocked, Shield, ShieldError, tend},
    tunnel::Tunnels,
};

/// The shield, where the kernel has one, and the task that keeps it current.
#[derive(Debug)]
pub(super) struct Shielding {
    shield: Option<Arc<Mutex<Shield>>>,
    tunnels: Option<watch::Receiver<Arc<Tunnels>>>,
    tending: Mutex<Option<AbortHandle>>,
}

impl Shielding {
    /// Takes the shield's program, and puts the operator's blocks of before in force.
    pub(super) fn new(
        kernel: &mut Kernel,
        blocks: &[state::Block],
        tunnels: Option<watch::Receiver<Arc<Tunnels>>>,
    ) -> Self {
        let shield = kernel.shield.take().and_then(|program| {
            Shield::new(program).inspect_err(|error| tracing::warn!(%error, "the shield cannot be used")).ok()
        });
        let shielding = Self {
            shield: shield.map(|shield| Arc::new(Mutex::new(shield))),
            tunnels,
            tending: Mutex::default(),
        };
        let now = SystemTime::now();
        for block in blocks.iter().filter(|block| !block.has_ended(now)) {
            match shielding.shield().map(|mut shield| shield.block(block.cidr, block.until, &[])) {
                Some(Ok(())) => {}
                Some(Err(error)) => tracing::error!(cidr = %block.cidr, %error, "a block is not in force"),
                None => tracing::error!(cidr = %block.cidr, "a block is not in force: no shield"),
            }
        }
        shielding
    }

    /// Follows the lists and the limit of these settings from now on.
    pub(super) fn follow(&self, settings: &Settings) {
        let Some(shared) = &self.shield else {
            if !settings.shield.lists.is_empty() || settings.shield.syn_rate > 0 {
                tracing::warn!("[shield] has no effect: `edgectl doctor` says why");
            }
            return;
        };
        let ports = settings.listeners.iter().flat_map(|listener| listener.bind.iter().map(SocketAddr::port));
        if let Some(mut shield) = self.shield()
            && let Err(error) = shield.set_syn_rate(settings.shield.syn_rate, ports)
        {
            tracing::error!(%error, "shield.syn_rate has no effect");
        }
        let tunnels = self.tunnels.clone();
        let task = tokio::spawn(tend(Arc::clone(shared), settings.shield.lists.clone(), move || {
            peers(tunnels.as_ref())
        }));
        let mut tending = self.tending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = tending.replace(task.abort_handle()) {
            old.abort();
        }
    }

    /// Packets dropped since the maps were made.
    pub(super) fn dropped(&self) -> u64 {
        let counters = self.shield().and_then(|shield| shield.counters().ok());
        counters.map_or(0, |counters| counters.blocked + counters.limited)
    }

    pub(super) fn shield(&self) -> Option<MutexGuard<'_, Shield>> {
        // A panic between two changes of the shield leaves each of them whole.
        Some(self.shield.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn in_use(&self) -> Result<MutexGuard<'_, Shield>, Refusal> {
        self.shield().ok_or_else(|| {
            Refusal::new(
                RefusalKind::Unsupported,
                "no_shield",
                "XDP is not to be had here, so nothing can be blocked",
            )
            .hint("`edgectl doctor` says why; `deny` of a listener refuses sources in user space")
        })
    }
}

/// Where the tunnels' other ends are: a block must not cut the way home.
fn peers(tunnels: Option<&watch::Receiver<Arc<Tunnels>>>) -> Vec<IpAddr> {
    let Some(tunnels) = tunnels else { return Vec::new() };
    let known = tunnels.borrow();
    let endpoints = known.peers.values().flatten().filter_map(|peer| peer.endpoint);
    endpoints.map(|endpoint| endpoint.ip().to_canonical()).collect()
}

impl Daemon {
    pub(super) fn listed_blocks(&self) -> Result<Vec<Block>, Refusal> {
        let blocked = self.shielding.in_use()?.blocked().map_err(|error| kernel_refused(&error))?;
        Ok(blocked.iter().map(shown).collect())
    }

    pub(super) async fn block(&self, wanted: AddBlock) -> Result<Block, Refusal> {
        let mut steering = self.steering.lock().await;
        let until = wanted.duration.map(|duration| SystemTime::now() + duration);
        let spare = if wanted.force {
            Vec::new()
        } else {
            let mut spare = peers(self.shielding.tunnels.as_ref());
            spare.extend(&wanted.protect);
            spare
        };
        self.shielding.in_use()?.block(wanted.cidr, until, &spare).map_err(|error| refused(&error))?;
        let mut state = steering.state.clone();
        state.blocks.retain(|block| block.cidr != wanted.cidr && !block.has_ended(SystemTime::now()));
        state.blocks.push(state::Block { cidr: wanted.cidr, until });
        if let Err(error) = steering.store.save(&state).await {
            // As it was before; a list that names the prefix too goes on blocking it.
            let _ = self.shielding.in_use()?.unblock(wanted.cidr);
            return Err(not_saved(&error));
        }
        steering.state = state;
        let is_meant = |addresses: [SocketAddr; 2]| {
            addresses.iter().any(|address| wanted.cidr.contains(&address.ip().to_canonical()))
        };
        let cut = self.edge.stop(
            StopReason::Blocked,
            |connection| is_meant([connection.peer, connection.client()]),
            |flow| is_meant([flow.peer(), flow.client]),
        );
        tracing::info!(cidr = %wanted.cidr, connections = cut, "blocked");
        self.find_block(wanted.cidr)
    }

    pub(super) async fn unblock(&self, wanted: RemoveBlock) -> Result<Block, Refusal> {
        let mut steering = self.steering.lock().await;
        let was = self.find_block(wanted.cidr)?;
        let mut state = steering.state.clone();
        state.blocks.retain(|block| block.cidr != wanted.cidr);
        steering.store.save(&state).await.map_err(|error| not_saved(&error))?;
        steering.state = state;
        if let Some(list) = self.shielding.in_use()?.unblock(wanted.cidr).map_err(|error| refused(&error))? {
            tracing::warn!(cidr = %wanted.cidr, list = &*list, "goes on being blocked by a list");
        }
        Ok(was)
    }

    fn find_block(&self, cidr: ipnet::IpNet) -> Result<Block, Refusal> {
        let blocked = self.shielding.in_use()?.blocked().map_err(|error| kernel_refused(&error))?;
        blocked.iter().find(|blocked| blocked.net == cidr).map(shown).ok_or_else(|| {
            Refusal::new(RefusalKind::NotFound, "not_blocked", format!("{cidr} is not blocked"))
                .hint("`edgectl block list` shows what is, as it was written")
        })
    }
}

fn shown(blocked: &Blocked) -> Block {
    Block {
        cidr: blocked.net,
        until: blocked.until.map(Timestamp),
        packets: blocked.packets,
        source: blocked.list.clone().unwrap_or_else(|| "runtime".into()),
    }
}

fn refused(error: &ShieldError) -> Refusal {
    let (kind, code) = match error {
        ShieldError::Cuts { .. } => (RefusalKind::Conflict, "would_cut_off"),
        ShieldError::TooWide(_) => (RefusalKind::Invalid, "too_wide"),
        ShieldError::NotBlocked(_) => (RefusalKind::NotFound, "not_blocked"),
        ShieldError::Listed { .. } => (RefusalKind::Conflict, "blocked_by_list"),
        ShieldError::Full(_) => (RefusalKind::Conflict, "full"),
        ShieldError::Kernel(error) => return kernel_refused(error),
    };
    let refusal = Refusal::new(kind, code, error.to_string());
    match error {
        ShieldError::Cuts { .. } => refusal.hint("`--force` blocks it all the same"),
        _ => refusal,
    }
}

fn kernel_refused(error: &KernelError) -> Refusal {
    Refusal::new(RefusalKind::Unsupported, "kernel_refused", error.words())
        .hint("`edgectl doctor` looks at what the kernel can do")
}
