//! Blocks: prefixes whose packets are dropped before the stack, and whose connections are reset at accept.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Timestamp, fields};

/// `GET /v1/blocks`: one blocked prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The prefix.
    pub cidr: IpNet,
    /// When it ends; `null` means never.
    pub until: Option<Timestamp>,
    /// Packets dropped.
    pub packets: u64,
    /// `runtime`, or the list file that names it.
    pub source: Arc<str>,
    /// The mechanism on each device. Only in the answer to `POST`: it is the same for all blocks, and part of
    /// the status.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Guard>,
    /// Live connections that were ended. Only in the answer to `POST`, where there were any.
    #[serde(default, skip_serializing_if = "fields::is_default")]
    pub closed: u64,
}

/// How blocked sources are kept out where their packets come in by one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guard {
    /// The device.
    pub device: Arc<str>,
    /// The mechanism on this device.
    pub by: GuardedBy,
    /// Why their packets are not dropped there; `null` where they are.
    pub reason: Option<String>,
}

/// Mechanisms that keep blocked sources out. The check at accept applies in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardedBy {
    /// Packets are dropped in XDP, before the stack.
    Xdp,
    /// Packets are dropped at the ingress of tc: something else has the XDP hook.
    Tc,
    /// Packets come in, and connections are refused when they are accepted.
    Accept,
}

impl GuardedBy {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
            Self::Accept => "accept",
        }
    }
}

/// `POST /v1/blocks`: a prefix to block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddBlock {
    /// The prefix; an address alone means that address.
    #[serde(deserialize_with = "fields::prefix")]
    pub cidr: IpNet,
    /// For how long, like `"1h"`; none means until it is removed.
    #[serde(default, rename = "for", with = "fields::span")]
    pub duration: Option<Duration>,
    /// Addresses that the caller must not lose, such as the one it is logged in from.
    #[serde(default)]
    pub protect: Vec<IpAddr>,
    /// Block even what would cut the caller or a tunnel peer off.
    #[serde(default, deserialize_with = "fields::flag")]
    pub force: bool,
}

/// `DELETE /v1/blocks`: a prefix to let in again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveBlock {
    /// The prefix, as it was blocked.
    #[serde(deserialize_with = "fields::prefix")]
    pub cidr: IpNet,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_block_is_read_with_its_time() {
        let add: AddBlock = serde_json::from_value(json!({"cidr": "192.0.2.9", "for": "1h 30m"})).unwrap();
        assert_eq!(add.cidr.to_string(), "192.0.2.9/32");
        assert_eq!(add.duration, Some(Duration::from_mins(90)));
        assert_eq!(serde_json::from_value::<AddBlock>(serde_json::to_value(&add).unwrap()).unwrap(), add);
        for bad in [
            json!({"cidr": "x"}),
            json!({"cidr": "::/0", "for": "soon"}),
            json!({"cidr": "::/0", "for": "0s"}),
        ] {
            assert!(serde_json::from_value::<AddBlock>(bad).is_err());
        }
    }
}
