//! Why the shield refuses a change.

use std::sync::Arc;

use edge_common::shield::MAX_BLOCKS;
use ipnet::IpNet;
use thiserror::Error;

use super::{
    ledger::Full,
    spare::{Vital, one},
};
use crate::kernel::KernelError;

/// Why a block was not made or not lifted.
#[derive(Debug, Error)]
pub enum ShieldError {
    /// It would cut off an address that must be reached.
    #[error("{net} holds {}: {}", one(&vital.net), vital.what)]
    Cuts {
        /// The prefix.
        net: IpNet,
        /// The content of the map.
        vital: Vital,
    },
    /// It holds more than anybody has.
    #[error("{0} is wide: more than any one network has")]
    Sweeping(IpNet),
    /// An IPv6 prefix so short that it holds all of IPv4 as well.
    #[error("{0} is too wide: it would hold IPv4 too; all of the IPv6 internet is 2000::/3")]
    TooWide(IpNet),
    /// The operator did not block it.
    #[error("{0} is not blocked")]
    NotBlocked(IpNet),
    /// Only a list names it.
    #[error("{net} is blocked by {list} alone: take it out there")]
    Listed {
        /// The prefix.
        net: IpNet,
        /// The list.
        list: Arc<str>,
    },
    /// There is no room.
    #[error("{MAX_BLOCKS} prefixes are blocked, which is all there is room for")]
    Full(#[from] Full),
    /// The kernel refused.
    #[error("{}", .0.words())]
    Kernel(#[from] KernelError),
}
