//! All tables with flows: this layout's, and those of older layouts that earlier versions used. These get no
//! new flows, and become empty in time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use edge_common::flow::{Flow, FlowKey, FlowReason, Pending};

use super::FlowTier;
use crate::{
    kernel::{FlowPair, FlowTable, KernelError, OlderFlows},
    lock::lock,
};

/// The tables of older layouts that flows are left in.
#[derive(Debug, Default)]
pub struct Older {
    tables: Mutex<Vec<Arc<OlderFlows>>>,
    /// Packets that those counted which are gone, so that no counter falls.
    settled: Mutex<HashMap<FlowReason, u64>>,
}

impl Older {
    pub(super) fn new(tables: Vec<OlderFlows>, own: &mut FlowTable) -> Self {
        let tables = tables.into_iter().map(|mut table| {
            table.copy_labels(own);
            Arc::new(table)
        });
        Self { tables: Mutex::new(tables.collect()), settled: Mutex::default() }
    }

    /// Those there are.
    pub fn tables(&self) -> Vec<Arc<OlderFlows>> {
        lock(&self.tables).clone()
    }

    /// The flow with this number, and the table that it is in.
    pub(super) fn find(
        &self,
        up_key: &FlowKey,
        id: u64,
    ) -> Result<Option<(Arc<OlderFlows>, FlowPair)>, KernelError> {
        for table in self.tables() {
            if let Some(pair) = table.pair(up_key)?.filter(|pair| pair.up.id == id) {
                return Ok(Some((table, pair)));
            }
        }
        Ok(None)
    }

    /// Packets that met this fate in an older layout, also in one that is gone.
    pub(super) fn count(&self, reason: FlowReason) -> u64 {
        let settled = lock(&self.settled).get(&reason).copied().unwrap_or(0);
        self.tables().iter().fold(settled, |sum, table| sum + table.count(reason))
    }

    /// Takes an empty table out of the kernel, once everything that its programs reported is read.
    pub fn remove(&self, table: &Arc<OlderFlows>) -> Result<(), KernelError> {
        table.unpin()?;
        let mut settled = lock(&self.settled);
        for reason in FlowReason::ALL {
            *settled.entry(reason).or_default() += table.count(reason);
        }
        lock(&self.tables).retain(|known| !Arc::ptr_eq(known, table));
        Ok(())
    }
}

impl FlowTier {
    /// Visits every entry of every table, in no order; blocks nobody who needs [`Self::table`]. An entry that
    /// is added or removed meanwhile may be missed.
    pub fn each_entry(&self, mut visit: impl FnMut(FlowKey, Flow)) -> Result<(), KernelError> {
        self.walk.each_entry(&mut visit)?;
        self.older.tables().iter().try_for_each(|table| table.each_entry(&mut visit))
    }

    /// The keys of all labels.
    pub fn labels(&self) -> Result<Vec<u32>, KernelError> {
        self.walk.labels()
    }

    /// Flows of older layouts.
    pub fn older(&self) -> &Older {
        &self.older
    }

    /// Both directions of the flow with this number, whichever table it is in.
    pub fn pair(&self, up_key: &FlowKey, id: u64) -> Result<Option<FlowPair>, KernelError> {
        let pair = self.table().pair(up_key)?.filter(|pair| pair.up.id == id);
        Ok(match pair {
            Some(pair) => Some(pair),
            None => self.older.find(up_key, id)?.map(|(_, pair)| pair),
        })
    }

    /// Removes directions without their counterpart, which a daemon leaves that dies while it installs or
    /// removes a flow.
    pub fn remove_halves(&self) -> Result<usize, KernelError> {
        let own = self.table().remove_halves()?;
        self.older.tables().iter().try_fold(own, |sum, table| Ok(sum + table.remove_halves()?))
    }

    /// Hand-overs that were begun and not finished, of all tables.
    pub fn unfinished(&self) -> Vec<(u64, Pending)> {
        let mut unfinished = self.table().unfinished();
        unfinished.extend(self.older.tables().iter().flat_map(|table| table.unfinished()));
        unfinished
    }

    /// Notes that a hand-over is finished, whichever table has it.
    pub fn finish(&self, id: u64) -> Result<(), KernelError> {
        self.table().finish(id)?;
        self.older.tables().iter().try_for_each(|table| table.finish(id))
    }
}
