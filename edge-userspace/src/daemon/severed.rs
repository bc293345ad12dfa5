//! Ends the connections of a device that is gone. Their sockets are bound to that very device, or a flow
//! sends packets to it; a later device of the same name is a different one to them. Their clients should
//! learn of it now and reconnect, and not when TCP gives up after a quarter of an hour.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;

use super::Daemon;
use crate::{datapath::StopReason, tunnel::Tunnels};

/// The kernel's number of each device.
type Devices = BTreeMap<Arc<str>, u32>;

impl Daemon {
    /// Ends what is severed, for as long as the daemon lives.
    pub(super) async fn sever(&self, tunnels: Option<watch::Receiver<Arc<Tunnels>>>) {
        let Some(mut tunnels) = tunnels else { return };
        let mut before = Devices::new();
        loop {
            let seen = Arc::clone(&tunnels.borrow_and_update());
            let now: Devices =
                seen.devices.iter().map(|(name, device)| (Arc::clone(name), device.index)).collect();
            // The first look, which is an empty one before there was any.
            if before.is_empty() && !now.is_empty() {
                self.sever_adopted(&now);
            }
            for (device, index) in gone(&before, &now) {
                let severed = self.edge.stop(
                    StopReason::TunnelGone,
                    |connection| {
                        connection
                            .upstream()
                            .is_some_and(|upstream| upstream.lease.backend().device() == Some(device))
                    },
                    // Packets of a flow are sent to the device by its number, tied to it or not.
                    |flow| flow.device() == index,
                );
                if severed > 0 {
                    tracing::warn!(device = &**device, connections = severed, "ended with their device");
                }
            }
            before = now;
            if tunnels.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends flows of an earlier daemon whose device went while nobody watched.
    fn sever_adopted(&self, devices: &Devices) {
        let severed = self.edge.stop(
            StopReason::TunnelGone,
            |_| false,
            |flow| devices.values().all(|index| *index != flow.device()),
        );
        if severed > 0 {
            tracing::warn!(connections = severed, "flows of an earlier daemon ended: their device is gone");
        }
    }
}

/// Devices that are gone, or are others of the same name.
fn gone<'a>(before: &'a Devices, now: &'a Devices) -> impl Iterator<Item = (&'a Arc<str>, u32)> {
    before.iter().filter(|(name, index)| now.get(*name) != Some(index)).map(|(name, index)| (name, *index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_the_same_name_is_another() {
        let devices =
            |all: &[(&str, u32)]| all.iter().map(|(name, index)| ((*name).into(), *index)).collect();
        let before: Devices = devices(&[("wg0", 3), ("wg1", 4), ("wg2", 5)]);
        let now: Devices = devices(&[("wg0", 3), ("wg1", 9), ("new", 10)]);
        let found: Vec<_> = gone(&before, &now).map(|(name, index)| (&**name, index)).collect();
        assert_eq!(found, [("wg1", 4), ("wg2", 5)]);
    }
}
