//! Keeps the programs in the kernel on the right devices: devices appear later than the daemon, are renamed,
//! get their addresses, and are deleted and recreated.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::time::{sleep, timeout};

use super::Daemon;
use crate::{
    connection::Edge,
    kernel::{KernelError, RouteLookup, interfaces},
    shield::Devices,
};

/// The interval between two looks without kernel events: which devices lead home also depends on names that
/// are resolved.
const EVERY: Duration = Duration::from_secs(10);

impl Daemon {
    /// Follows the devices, for as long as the daemon lives.
    pub(super) async fn follow_devices(&self) {
        let mut network_changed = self.shielding.network_changed.clone();
        loop {
            self.shielding.look_aside(&self.edge).await;
            if let Some(flows) = &self.edge.flows
                && let Err(error) = flows.tier().program().forget_gone()
            {
                tracing::warn!(error = error.words(), "devices of flows are not followed");
            }
            match &mut network_changed {
                Some(changes) => {
                    // Nobody is left to say anything: the time alone counts.
                    if matches!(timeout(EVERY, changes.changed()).await, Ok(Err(_))) {
                        network_changed = None;
                    }
                }
                None => sleep(EVERY).await,
            }
        }
    }
}

/// The devices of this machine, as the shield sees them.
pub(super) fn sorted(edge: &Edge) -> Result<Devices, KernelError> {
    let all = interfaces()?;
    let mut routes = RouteLookup::open()
        .map_err(|source| KernelError::Call { call: "opening a netlink socket", source })?;
    let mut home = BTreeSet::new();
    let mut asked: BTreeSet<IpAddr> = BTreeSet::new();
    for backend in edge.running.load().backends() {
        if let Some(device) = backend.device() {
            home.extend(all.iter().filter(|found| *found.name == **device).map(|found| found.index));
            continue;
        }
        for address in backend.addresses(0) {
            let address = address.ip().to_canonical();
            if asked.insert(address) {
                // One that no route leads to has no device.
                home.extend(routes.device(address));
            }
        }
    }
    Ok(Devices::sort(all, &home))
}
