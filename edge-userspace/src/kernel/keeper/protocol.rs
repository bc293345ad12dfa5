//! The requests that the daemon may send to the keeper, and the answers. Everything is typed and bounded: an
//! attacker who controls the daemon can request nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::kernel::{Ends, Hook, IpsecPolicies, KernelError};

/// The longest name of a device (`IFNAMSIZ`, without the zero).
const NAME_BYTES: usize = 15;
/// Devices that the shield may be asked to watch.
const MOST_DEVICES: usize = 256;
/// Connections in one request about connection tracking. They fit in a message.
pub(crate) const MOST_CONNECTIONS: usize = 64;

/// The name of a network device that exists or may exist: it is safe as one component of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct DeviceName(String);

impl DeviceName {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DeviceName {
    type Error = &'static str;

    /// By the kernel's rule (`dev_valid_name`).
    fn try_from(name: String) -> Result<Self, Self::Error> {
        let is_bad = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
        if name.is_empty()
            || name.len() > NAME_BYTES
            || name == "."
            || name == ".."
            || name.bytes().any(is_bad)
        {
            return Err("not the name of a network device");
        }
        Ok(Self(name))
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.0
    }
}

/// Indexes of devices, not too many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u32>", into = "Vec<u32>")]
pub(crate) struct Indexes(Vec<u32>);

impl Indexes {
    pub(crate) fn of(indexes: impl Iterator<Item = u32>) -> Self {
        Self(indexes.take(MOST_DEVICES).collect())
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.0.contains(&index)
    }
}

impl TryFrom<Vec<u32>> for Indexes {
    type Error = &'static str;

    fn try_from(indexes: Vec<u32>) -> Result<Self, Self::Error> {
        if indexes.len() > MOST_DEVICES { Err("too many devices") } else { Ok(Self(indexes)) }
    }
}

impl From<Indexes> for Vec<u32> {
    fn from(indexes: Indexes) -> Self {
        indexes.0
    }
}

/// Connections of this machine, not too many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Ends>", into = "Vec<Ends>")]
pub(crate) struct Connections(Vec<Ends>);

impl Connections {
    pub(crate) fn as_slice(&self) -> &[Ends] {
        &self.0
    }
}

impl TryFrom<Vec<Ends>> for Connections {
    type Error = &'static str;

    fn try_from(connections: Vec<Ends>) -> Result<Self, Self::Error> {
        if connections.len() > MOST_CONNECTIONS { Err("too many connections") } else { Ok(Self(connections)) }
    }
}

impl From<Connections> for Vec<Ends> {
    fn from(connections: Connections) -> Self {
        connections.0
    }
}

/// A task for the keeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) enum Request {
    /// Notes the handshakes of sockets of the daemon's cgroup from now on. Answer: [`Reply::Done`].
    WatchHandshakes,
    /// Lets links and filters of an earlier daemon run the programs. Answer: [`Reply::Flows`].
    AdoptFlows,
    /// Attaches the flow programs to the device with this index. Answer: [`Reply::Flows`].
    AttachFlows {
        /// The index.
        index: u32,
    },
    /// Forgets devices that are gone. Answer: [`Reply::Flows`].
    ForgetGone,
    /// Removes the programs and filters of an older layout whose flows have ended. Answer: [`Reply::Done`].
    DetachOlder {
        /// The layout.
        layout: String,
    },
    /// Removes the pins of an older layout. Answer: [`Reply::Done`].
    UnpinOlder {
        /// The layout.
        layout: String,
    },
    /// Lets the shield take the place of those of other layouts. Answer: [`Reply::Shield`].
    SucceedShield,
    /// Attaches the shield to what it watches. Answer: [`Reply::Shield`].
    AttachShield,
    /// Takes the shield off every device. Answer: [`Reply::Shield`].
    DetachShield,
    /// Changes the devices that the shield watches. Answer: [`Reply::Shield`].
    WatchShield {
        /// All of them.
        devices: Indexes,
    },
    /// Loads the sockmap programs. Answer: [`Reply::Done`] with the descriptors of their maps.
    LoadSockmap,
    /// Deletes the entries of these connections in connection tracking. Answer: [`Reply::Done`].
    ForgetTracks {
        /// The connections.
        connections: Connections,
    },
    /// Disables conntrack's window checks for these connections. Answer: [`Reply::Done`].
    LoosenTracks {
        /// The connections.
        connections: Connections,
    },
    /// Makes the firewall accept the next packets of a connection as established. Answer: [`Reply::Done`].
    AdmitTrack {
        /// The connection.
        connection: Ends,
    },
    /// The IPsec policies of this machine. Answer: [`Reply::Policies`].
    Policies,
    /// The WireGuard peers of a device, without any secret. Answer: [`Reply::Peers`].
    Peers {
        /// The device.
        device: DeviceName,
    },
}

/// The result of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It was done.
    Done,
    /// The devices that packets of flows are carried on, by index.
    Flows(BTreeMap<u32, String>),
    /// Where the shield drops packets, or why it does not, by the index of the device.
    Shield(BTreeMap<u32, Result<Hook, String>>),
    /// Which packets IPsec is for.
    Policies(IpsecPolicies),
    /// Peers as `tunnel` writes them.
    Peers(String),
}

/// Why it was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// In words, for the operator.
    pub(crate) words: String,
    /// Whether for want of rights.
    pub(crate) is_denied: bool,
}

impl From<KernelError> for Refused {
    fn from(error: KernelError) -> Self {
        Self { words: error.words(), is_denied: error.is_denied() }
    }
}

/// An answer.
pub(crate) type Answer = Result<Reply, Refused>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_is_refused_before_anything_is_done() {
        for name in ["eth0", "eth0.10", "wg-home", "a23456789012345"] {
            let request = Request::Peers { device: DeviceName::try_from(name.to_owned()).unwrap() };
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        }
        for name in ["", ".", "..", "a/b", "../x", "a b", "a\\u0000", "a234567890123456", "eth0:1"] {
            let text = format!(r#"{{"Peers":{{"device":"{name}"}}}}"#);
            assert!(serde_json::from_str::<Request>(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        let many = vec!["1"; MOST_DEVICES + 1].join(",");
        for text in [
            "",
            "null",
            r#""Run""#,
            r#"{"AttachFlows":{"index":-1}}"#,
            r#"{"AttachFlows":{"index":4294967296}}"#,
            r#"{"AttachFlows":{"index":1,"object":"/tmp/x"}}"#,
            r#"{"LoadSockmap":{"path":"/tmp/x"}}"#,
            &format!(r#"{{"WatchShield":{{"devices":[{many}]}}}}"#),
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }
}
