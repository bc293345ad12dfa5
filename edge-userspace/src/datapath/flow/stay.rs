//! Why a connection stays on its sockets, in words for the log and in names for the counters.

use std::io;

use thiserror::Error;

use super::agreement::Mismatch;
use crate::kernel::{InstallError, KernelError};

/// Why a connection stays on its sockets.
#[derive(Debug, Error)]
pub enum Stay {
    /// Its legs differ.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// No place for it.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The device cannot be used.
    #[error("{}", .0.words())]
    Kernel(#[from] KernelError),
    /// Its local port is outside the range for flows: none was free, or it was connected in advance.
    #[error("its port is not one of those kept for flows")]
    Port,
    /// Packets of a side come by one device and go by another.
    #[error("one of its sides is reached by another device than its packets come by")]
    Asymmetric,
    /// On the wire it has other addresses or sequence numbers than at its sockets.
    #[error("NAT or SYNPROXY on this machine changes its packets")]
    Translated,
    /// A policy routing rule that matches ports, marks or users leads its packets along another path than a
    /// flow's.
    #[error("policy routing leads its packets another way than those of a flow")]
    PolicyRoute,
    /// The kernel encrypts its packets, and would not those of a flow.
    #[error("an IPsec policy is for its packets")]
    Ipsec,
    /// A side has not shown how its packets look on the wire.
    #[error("a side was silent when it was asked")]
    Unconfirmed,
    /// The keeper did not do in time what a hand-over takes.
    #[error("the privileged process of edged did not ready devices and firewall for it in time")]
    NotReady,
    /// Flows of several networks to this backend failed recently, and hardly any works.
    #[error("flows to its backend have failed, it is left alone for a while")]
    Distrusted,
    /// A flow of this source, or several of its network, to this backend have.
    #[error("a flow of its source to its backend has failed, they are left alone for a while")]
    DistrustedSource,
    /// Losses towards its client are better repaired from here.
    #[error("its client's line loses packets, and home is far")]
    Lossy,
    /// It streams, and the whole path is much longer than its sender believes.
    #[error("it streams, and the path is much longer than its sender's part of it")]
    Stretched,
    /// Its source has as many flows as it may have.
    #[error("its source has as many flows as it may have")]
    Quota,
    /// A question to the kernel failed.
    #[error("asking the kernel: {0}")]
    Io(io::Error),
}

impl From<io::Error> for Stay {
    /// The addresses of a socket whose peer has reset it cannot be queried.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotConnected { Mismatch::Closing.into() } else { Self::Io(error) }
    }
}

impl Stay {
    /// Whether it may be different later.
    pub const fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Install(InstallError::Full)
                | Self::Distrusted
                | Self::DistrustedSource
                | Self::Lossy
                | Self::Stretched
                | Self::Quota
                | Self::Unconfirmed
                | Self::NotReady
        )
    }

    /// Whether the reason lies in the path of the packets, which may change or was judged by an unusual
    /// packet: such a connection is looked at again at growing intervals.
    pub const fn is_about_the_way(&self) -> bool {
        matches!(self, Self::Asymmetric | Self::Translated | Self::PolicyRoute | Self::Ipsec)
    }

    /// Its name in counters.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Mismatch(Mismatch::Unseen) => "handshake_not_seen",
            Self::Mismatch(Mismatch::Closing) => "closing",
            Self::Mismatch(Mismatch::Timestamps) => "timestamps_differ",
            Self::Mismatch(Mismatch::Ecn) => "ecn_differs",
            Self::Mismatch(Mismatch::PathMtu) => "path_mtu",
            Self::Install(InstallError::Taken) => "addresses_taken",
            Self::Install(InstallError::Full) => "table_full",
            Self::Install(InstallError::Kernel(_)) | Self::Io(_) => "kernel",
            Self::Kernel(_) => "device",
            Self::Port => "port",
            Self::Asymmetric => "asymmetric_route",
            Self::Translated => "translated",
            Self::PolicyRoute => "policy_route",
            Self::Ipsec => "ipsec",
            Self::Unconfirmed => "unconfirmed",
            Self::NotReady => "not_ready",
            Self::Distrusted => "distrusted",
            Self::DistrustedSource => "distrusted_source",
            Self::Lossy => "lossy_client",
            Self::Stretched => "longer_path",
            Self::Quota => "source_quota",
        }
    }
}
