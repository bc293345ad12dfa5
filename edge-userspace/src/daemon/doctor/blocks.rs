//! Blocks that cut off what must stay reachable: made by force, or made before home moved there.

use super::super::Daemon;
use crate::{
    control::api::{Check, CheckStatus},
    shield::{Blocked, Vital, cut},
};

impl Daemon {
    pub(super) async fn blocks_that_cut(&self) -> Vec<Check> {
        let held: Vec<_> = self.shielding.held().clone();
        let blocked = self.shielding.shield().blocked().unwrap_or_default();
        let mut checks: Vec<Check> = held
            .iter()
            .map(|(cidr, why)| {
                Check::new(format!("block {cidr}"), CheckStatus::Warn, format!("is not in force: {why}"))
                    .remedy(format!("`edgectl block remove {cidr}`, or `edgectl block add {cidr} --force`"))
            })
            .collect();
        if !blocked.is_empty() {
            let settings = self.shown().settings.clone();
            let vital = self.vital(&settings).await;
            let forced = self.control_state.lock().await.state.blocks.clone();
            let is_forced = |net| forced.iter().any(|block| block.cidr == net && block.forced);
            checks
                .extend(blocked.iter().filter_map(|blocked| check(blocked, is_forced(blocked.net), &vital)));
        }
        checks
    }
}

fn check(blocked: &Blocked, is_forced: bool, vital: &[Vital]) -> Option<Check> {
    let net = blocked.net;
    let vital = cut(&net, vital)?;
    let remedy = match &blocked.list {
        Some(list) => format!("take {net} out of {list}"),
        None => format!("`edgectl block remove {net}`, unless that is what you want"),
    };
    let message = format!("cuts off {}: {}", vital.net.addr(), vital.what);
    let status = if is_forced { CheckStatus::Warn } else { CheckStatus::Fail };
    Some(Check::new(format!("block {net}"), status, message).remedy(remedy))
}
