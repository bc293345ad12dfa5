//! Flows in tables of other layouts. The programs that an earlier daemon attached continue to carry them,
//! behind this version's own. Nothing is ever added to such a table, and an empty one is removed.
//!
//! A layout that this version can read appears as if it were its own: entries, reports and counters are
//! translated on the way out, keys on the way in. Flows of an unreadable layout are only counted.

mod table;
mod v2;

use std::{
    collections::HashMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use aya::maps::MapData;
use edge_common::flow::{Flow, FlowKey, FlowReason, Pending};
use tokio::sync::Notify;
use tracing::{info, warn};

use self::table::{Readable, Table};
use super::{
    FlowEvents, FlowPair, FlowTable, KernelError, batch,
    flow::remove_filters_at,
    flow_events::FLOW_EVENTS,
    flow_table::FLOWS,
    keeper::{Request, keeper},
    load::map,
    pin::{OtherLayout, removed},
    pin_name,
};
use crate::lock::lock;

/// A table of flows in an older layout that this version can read.
pub struct OlderFlows {
    /// The layout's name, as the directory of its pins has it.
    layout: String,
    directory: PathBuf,
    table: Box<dyn Readable>,
    ring: Mutex<Option<MapData>>,
    /// Its labels are copied: what each is called in the table of this version.
    labels: Arc<HashMap<u32, u32>>,
    /// Flows at the last walk.
    live: AtomicU64,
    emptied: Notify,
}

/// Flows in a layout that this version cannot read.
#[derive(Clone, Debug)]
pub struct UnreadFlows {
    /// The layout's name, as the directory of its pins has it.
    pub layout: String,
    table: Option<Arc<MapData>>,
}

impl OlderFlows {
    /// The table of another layout; `None` where this version knows no such layout.
    fn open(other: &OtherLayout) -> Result<Option<Self>, KernelError> {
        let directory = other.directory.join(super::flow::OBJECT);
        let table: Box<dyn Readable> = match &*other.name {
            v2::V2::NAME => Box::new(Table::<v2::V2>::open(&directory)?),
            _ => return Ok(None),
        };
        Ok(Some(Self {
            layout: other.name.clone(),
            // Opened now: later there is no right to.
            ring: Mutex::new(MapData::from_pin(directory.join(FLOW_EVENTS)).ok()),
            directory,
            table,
            labels: Arc::default(),
            // Not empty before it was looked over.
            live: AtomicU64::new(1),
            emptied: Notify::new(),
        }))
    }

    /// Copies the descriptions of its flows to this version's table, where they stay as long as the flows
    /// live.
    pub fn copy_labels(&mut self, to: &mut FlowTable) {
        let mut labels = HashMap::new();
        for (key, text) in self.table.labels() {
            match to.common_label(&text) {
                Ok(own) => drop(labels.insert(key, own)),
                Err(error) => warn!(%error, "what is known of some flows is lost"),
            }
        }
        self.labels = Arc::new(labels);
    }

    /// The layout's name.
    pub fn layout(&self) -> &str {
        &self.layout
    }

    /// Flows at the last walk.
    pub fn live(&self) -> u64 {
        self.live.load(Relaxed)
    }

    /// Visits every entry, translated.
    pub fn each_entry(&self, mut visit: impl FnMut(FlowKey, Flow)) -> Result<(), KernelError> {
        let mut entries = 0_u64;
        self.table.each_entry(&mut |key, flow| {
            entries += 1;
            visit(key, self.translated(flow));
        })?;
        self.live.store(entries.div_ceil(2), Relaxed);
        Ok(())
    }

    fn translated(&self, flow: Flow) -> Flow {
        Flow { label: self.labels.get(&flow.label).copied().unwrap_or(0), ..flow }
    }

    /// Both directions of a flow; see [`FlowTable::pair`].
    pub fn pair(&self, up_key: &FlowKey) -> Result<Option<FlowPair>, KernelError> {
        let Some(up) = self.table.get(up_key)? else { return Ok(None) };
        let Some(down) = self.table.get(&up.reverse_key())? else { return Ok(None) };
        Ok(Some(FlowPair::settled(*up_key, self.translated(up), self.translated(down))))
    }

    /// Removes both directions of a flow; what is gone already is not an error.
    pub fn remove(&self, up_key: &FlowKey, down_key: &FlowKey) -> Result<(), KernelError> {
        self.table.remove(up_key)?;
        self.table.remove(down_key)
    }

    /// Removes directions whose other one is missing; see [`FlowTable::remove_halves`].
    pub fn remove_halves(&self) -> Result<usize, KernelError> {
        let mut halves = Vec::new();
        self.table.each_entry(&mut |key, flow| {
            if matches!(self.table.get(&flow.reverse_key()), Ok(None)) {
                halves.push(key);
            }
        })?;
        halves.iter().try_for_each(|key| self.table.remove(key))?;
        Ok(halves.len())
    }

    /// Hand-overs that were begun and not finished; the flow itself may not be there.
    pub fn unfinished(&self) -> Vec<(u64, Pending)> {
        self.table.unfinished()
    }

    /// Notes that a hand-over is finished.
    pub fn finish(&self, id: u64) -> Result<(), KernelError> {
        self.table.finish(id)
    }

    /// Packets that met this fate.
    pub fn count(&self, reason: FlowReason) -> u64 {
        self.table.count(reason)
    }

    /// The reports of its programs; to be taken once.
    pub fn events(&self) -> Result<FlowEvents, KernelError> {
        let ring = lock(&self.ring).take();
        let ring = ring.ok_or(KernelError::Incomplete { object: super::flow::OBJECT, part: FLOW_EVENTS })?;
        self.table.events(ring, Arc::clone(&self.labels))
    }

    /// Says that it is empty, where the last walk found nothing and no hand-over is under way.
    pub fn look_whether_empty(&self) {
        if self.live() == 0 && self.table.unfinished().is_empty() {
            self.emptied.notify_one();
        }
    }

    /// Waits until it is empty.
    pub async fn emptied(&self) {
        self.emptied.notified().await;
    }

    /// Where its programs and maps are pinned.
    pub(super) fn pins(&self) -> OlderPins {
        OlderPins {
            layout: self.layout.clone(),
            directory: self.directory.clone(),
            priority: self.table.priority(),
        }
    }

    /// Detaches its programs from all devices. Their reports so far can still be read.
    pub fn detach(&self) -> Result<(), KernelError> {
        match keeper() {
            Some(keeper) => keeper.ask(&Request::DetachOlder { layout: self.layout.clone() }).map(drop),
            None => self.pins().detach(),
        }
    }

    /// Removes its maps: the last that is left of it.
    pub fn unpin(&self) -> Result<(), KernelError> {
        match keeper() {
            Some(keeper) => keeper.ask(&Request::UnpinOlder { layout: self.layout.clone() }).map(drop),
            None => self.pins().unpin(),
        }
    }
}

/// The pins of an older layout, for the process that may remove them.
#[derive(Clone, Debug)]
pub(super) struct OlderPins {
    pub(super) layout: String,
    directory: PathBuf,
    priority: u16,
}

impl OlderPins {
    pub(super) fn detach(&self) -> Result<(), KernelError> {
        let error = |source| KernelError::File { call: "reading", path: self.directory.clone(), source };
        for pin_name::Found { path, .. } in pin_name::links(&self.directory, None).map_err(error)? {
            removed(&path, fs::remove_file(&path))?;
        }
        remove_filters_at(self.priority).map(drop)
    }

    pub(super) fn unpin(&self) -> Result<(), KernelError> {
        removed(&self.directory, fs::remove_dir_all(&self.directory))?;
        if let Some(parent) = self.directory.parent() {
            // Unless the shield's are still there.
            let _ = fs::remove_dir(parent);
        }
        info!(layout = self.layout, "the last flow of an earlier version has ended, its programs are gone");
        Ok(())
    }
}

impl fmt::Debug for OlderFlows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OlderFlows")
            .field("layout", &self.layout)
            .field("live", &self.live)
            .finish_non_exhaustive()
    }
}

impl From<OlderFlows> for UnreadFlows {
    fn from(flows: OlderFlows) -> Self {
        Self::new(&flows.layout, flows.directory.parent().unwrap_or(&flows.directory))
    }
}

impl UnreadFlows {
    fn new(layout: &str, directory: &Path) -> Self {
        // Opened now: later there is no right to.
        let table = MapData::from_pin(directory.join(super::flow::OBJECT).join(FLOWS)).ok();
        Self { layout: layout.into(), table: table.map(Arc::new) }
    }

    /// How many flows there are, where its table can at least be counted.
    pub fn count(&self) -> Option<u64> {
        batch::count(self.table.as_deref()?).ok().map(|entries| entries.div_ceil(2))
    }
}

/// All that is left of flows in other layouts.
pub(super) fn find(others: &[OtherLayout]) -> (Vec<OlderFlows>, Vec<UnreadFlows>) {
    let (mut older, mut unread) = (Vec::new(), Vec::new());
    for other in others.iter().filter(|other| other.directory.join(super::flow::OBJECT).is_dir()) {
        match OlderFlows::open(other) {
            Ok(Some(flows)) => older.push(flows),
            outcome => {
                if let Err(error) = outcome {
                    warn!(layout = other.name, "{}", error.words());
                }
                unread.push(UnreadFlows::new(&other.name, &other.directory));
            }
        }
    }
    (older, unread)
}

/// Wraps what went wrong with the map of the flows.
fn flows_failed(call: &'static str) -> impl FnOnce(aya::maps::MapError) -> KernelError {
    map(call, FLOWS)
}
