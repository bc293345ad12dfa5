//! The filters of lists on the command line.

use std::{sync::Arc, time::Duration};

use clap::{Args, ValueEnum};
use clap_complete::ArgValueCandidates;
use ipnet::IpNet;

use super::{super::live, span};
use crate::{
    control::api::{BackendState, ConnectionFilter, RouteSource, parse_prefix},
    spec::{HostPattern, Tier},
};

#[derive(Debug, Args)]
pub(in super::super) struct RouteFilterArgs {
    /// Only routes that a client who asks for this name may get, or with this pattern
    #[arg(long, value_name = "HOST")]
    pub(in super::super) host: Option<HostPattern>,
    /// Only routes for this listener
    #[arg(long, value_name = "L", add = ArgValueCandidates::new(live::listeners))]
    pub(in super::super) listener: Option<Arc<str>>,
    /// Only routes that lead to this pool or address
    #[arg(long, value_name = "TO", add = ArgValueCandidates::new(live::targets))]
    pub(in super::super) backend: Option<String>,
    /// Only routes of the file, or those added at run time
    #[arg(long, value_name = "SOURCE")]
    pub(in super::super) source: Option<RouteSourceArg>,
    /// At most this many
    #[arg(long, value_name = "N")]
    pub(in super::super) limit: Option<usize>,
}

/// [`RouteSource`] on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in super::super) enum RouteSourceArg {
    File,
    Runtime,
}

impl From<RouteSourceArg> for RouteSource {
    fn from(arg: RouteSourceArg) -> Self {
        match arg {
            RouteSourceArg::File => Self::File,
            RouteSourceArg::Runtime => Self::Runtime,
        }
    }
}

#[derive(Debug, Args)]
pub(in super::super) struct BackendFilterArgs {
    /// Only this backend, with or without its port, as it is written or by its address
    #[arg(long, value_name = "TO", add = ArgValueCandidates::new(live::backends))]
    pub(in super::super) backend: Option<String>,
    /// Only of this pool
    #[arg(long, value_name = "P", add = ArgValueCandidates::new(live::pools))]
    pub(in super::super) pool: Option<Arc<str>>,
    /// Only in this state
    #[arg(long, value_name = "STATE")]
    pub(in super::super) state: Option<BackendStateArg>,
    /// Only through this tunnel
    #[arg(long, value_name = "DEVICE")]
    pub(in super::super) device: Option<Arc<str>>,
    /// At most this many
    #[arg(long, value_name = "N")]
    pub(in super::super) limit: Option<usize>,
}

/// [`BackendState`] on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in super::super) enum BackendStateArg {
    Up,
    Unchecked,
    Down,
    Drained,
}

impl From<BackendStateArg> for BackendState {
    fn from(arg: BackendStateArg) -> Self {
        match arg {
            BackendStateArg::Up => Self::Up,
            BackendStateArg::Unchecked => Self::Unchecked,
            BackendStateArg::Down => Self::Down,
            BackendStateArg::Drained => Self::Drained,
        }
    }
}

/// Which connections are meant.
#[derive(Debug, Args)]
#[group(id = "conditions", multiple = true)]
pub(in super::super) struct ConnectionFilterArgs {
    /// Only of clients in this prefix
    #[arg(long, value_name = "CIDR", value_parser = parse_prefix)]
    client: Option<IpNet>,
    /// Only of clients that asked for this name, or for one that the pattern matches
    #[arg(long, value_name = "HOST", add = ArgValueCandidates::new(live::hosts_asked_for))]
    host: Option<HostPattern>,
    /// Only of this listener
    #[arg(long, value_name = "L", add = ArgValueCandidates::new(live::listeners))]
    listener: Option<Arc<str>>,
    /// Only to this backend: its address, with or without the port
    #[arg(long, value_name = "ADDRESS")]
    backend: Option<Arc<str>>,
    /// Only those that this datapath tier carries
    #[arg(long, value_name = "TIER", visible_alias = "datapath")]
    tier: Option<TierArg>,
    /// Only those accepted at least this long ago, like `10m`
    #[arg(long, value_name = "DURATION", value_parser = span)]
    older: Option<Duration>,
}

impl ConnectionFilterArgs {
    pub(in super::super) fn with_limit(self, limit: usize) -> ConnectionFilter {
        ConnectionFilter {
            client: self.client,
            host: self.host,
            listener: self.listener,
            backend: self.backend,
            datapath: self.tier.map(Into::into),
            older: self.older,
            limit,
        }
    }
}

/// [`Tier`] on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(in super::super) enum TierArg {
    Copy,
    Splice,
    Sockmap,
    Flow,
}

impl From<TierArg> for Tier {
    fn from(arg: TierArg) -> Self {
        match arg {
            TierArg::Copy => Self::Copy,
            TierArg::Splice => Self::Splice,
            TierArg::Sockmap => Self::Sockmap,
            TierArg::Flow => Self::Flow,
        }
    }
}
