//! Walks of the flow maps. A walk needs the descriptors of the maps and nothing else, so that nobody who hands a
//! connection over ever waits for one.

use std::os::fd::{AsFd, OwnedFd};

use edge_common::flow::{Flow, FlowKey, Label};

use super::{KernelError, batch};

/// All flows and all labels of a table, to be looked over at any time and by any number of threads.
#[derive(Debug)]
pub struct FlowWalk {
    flows: OwnedFd,
    labels: OwnedFd,
}

impl FlowWalk {
    /// Of these maps, which must be of this layout's types.
    pub(super) const fn new(flows: OwnedFd, labels: OwnedFd) -> Self {
        Self { flows, labels }
    }

    /// Visits every entry, in no order. One that comes or goes meanwhile may be missed.
    pub fn each_entry(&self, visit: impl FnMut(FlowKey, Flow)) -> Result<(), KernelError> {
        batch::each(self.flows.as_fd(), visit)
            .map_err(|source| KernelError::Call { call: "reading the flows", source })
    }

    /// The keys of all labels.
    pub fn labels(&self) -> Result<Vec<u32>, KernelError> {
        let mut keys = Vec::new();
        batch::each(self.labels.as_fd(), |key, _: Label| keys.push(key))
            .map_err(|source| KernelError::Call { call: "reading the labels of flows", source })?;
        Ok(keys)
    }

    /// Another handle of the same maps.
    pub fn try_clone(&self) -> Result<Self, KernelError> {
        let again = |descriptor: &OwnedFd| {
            let call = "duplicating a map's descriptor";
            descriptor.try_clone().map_err(|source| KernelError::Call { call, source })
        };
        Ok(Self { flows: again(&self.flows)?, labels: again(&self.labels)? })
    }
}
