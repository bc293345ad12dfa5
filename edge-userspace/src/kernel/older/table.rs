//! The maps of one older layout, by its types.

use std::{
    collections::HashMap as Translation,
    fmt,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Arc, Mutex},
};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapInfo, MapType, PerCpuArray},
};
use edge_common::flow::{Flow, FlowEvent, FlowKey, FlowReason, LABEL_BYTES, Pending};

use super::flows_failed;
use crate::{
    kernel::{
        FlowEvents, KernelError, batch,
        flow_events::FLOW_EVENTS,
        flow_table::{FLOW_LABELS, FLOW_REASONS, FLOWS, FLOWS_PENDING, found},
        load::{Shape, map},
    },
    lock::lock,
};

/// A layout: its types, and what they are in this version's.
pub(super) trait Layout: Send + Sync + 'static {
    /// The name of the directory of its pins.
    const NAME: &str;
    /// The priority of its filters of clsact.
    const PRIORITY: u16;
    type Key: Pod + Default + Send;
    type Entry: Pod + Default + Send;
    type Pending: Pod + Send;
    type Label: Pod + AsRef<[u8]> + Send + Sync;

    fn key(key: &Self::Key) -> FlowKey;
    /// `None` for what it has no keys for.
    fn own_key(key: &FlowKey) -> Option<Self::Key>;
    fn entry(entry: &Self::Entry) -> Flow;
    fn pending(pending: &Self::Pending) -> Pending;
    /// A report, as its ring buffer has it; `None` for one that is too short.
    fn event(bytes: &[u8]) -> Option<FlowEvent>;
    /// The index of a counter, where it has that one.
    fn reason(reason: FlowReason) -> Option<u32>;
}

/// Operations on the table of any older layout. All types are this version's, except that labels have the
/// table's own keys.
pub(super) trait Readable: Send + Sync {
    fn each_entry(&self, visit: &mut dyn FnMut(FlowKey, Flow)) -> Result<(), KernelError>;
    fn get(&self, key: &FlowKey) -> Result<Option<Flow>, KernelError>;
    /// An entry that is already gone is no error.
    fn remove(&self, key: &FlowKey) -> Result<(), KernelError>;
    fn unfinished(&self) -> Vec<(u64, Pending)>;
    fn finish(&self, id: u64) -> Result<(), KernelError>;
    fn labels(&self) -> Vec<(u32, String)>;
    fn count(&self, reason: FlowReason) -> u64;
    fn events(&self, ring: MapData, labels: Arc<Translation<u32, u32>>) -> Result<FlowEvents, KernelError>;
    fn priority(&self) -> u16;
}

pub(super) struct Table<L: Layout> {
    flows: Mutex<HashMap<MapData, L::Key, L::Entry>>,
    pending: Mutex<HashMap<MapData, u64, L::Pending>>,
    labels: HashMap<MapData, u32, L::Label>,
    reasons: PerCpuArray<MapData, u64>,
    /// The flows once more, for walks.
    descriptor: OwnedFd,
}

impl<L: Layout> Table<L> {
    /// Opens the pins in `directory`; an error where one is missing or of another shape.
    pub(super) fn open(directory: &Path) -> Result<Self, KernelError> {
        let shapes = [
            Shape::of::<L::Key, L::Entry>(FLOWS, MapType::Hash),
            Shape::of::<u64, L::Pending>(FLOWS_PENDING, MapType::Hash),
            Shape::of::<u32, L::Label>(FLOW_LABELS, MapType::Hash),
            Shape::of::<u32, u64>(FLOW_REASONS, MapType::PerCpuArray),
            Shape::ring(FLOW_EVENTS),
        ];
        for shape in shapes {
            let path = directory.join(shape.name());
            let info = MapInfo::from_pin(&path).map_err(map("opening", shape.name()))?;
            if !shape.fits(&info) {
                return Err(KernelError::OtherLayout { path });
            }
        }
        let open = |name| MapData::from_pin(directory.join(name)).map_err(map("opening", name));
        let flows = open(FLOWS)?;
        let call = "duplicating a map's descriptor";
        let descriptor = flows.fd().as_fd().try_clone_to_owned();
        let descriptor = descriptor.map_err(|source| KernelError::Call { call, source })?;
        let hash = |name, data| HashMap::try_from(Map::HashMap(data)).map_err(map("opening", name));
        Ok(Self {
            flows: Mutex::new(HashMap::try_from(Map::HashMap(flows)).map_err(flows_failed("opening"))?),
            pending: Mutex::new(
                HashMap::try_from(Map::HashMap(open(FLOWS_PENDING)?))
                    .map_err(map("opening", FLOWS_PENDING))?,
            ),
            labels: hash(FLOW_LABELS, open(FLOW_LABELS)?)?,
            reasons: PerCpuArray::try_from(Map::PerCpuArray(open(FLOW_REASONS)?))
                .map_err(map("opening", FLOW_REASONS))?,
            descriptor,
        })
    }
}

impl<L: Layout> Readable for Table<L> {
    fn each_entry(&self, visit: &mut dyn FnMut(FlowKey, Flow)) -> Result<(), KernelError> {
        batch::each(self.descriptor.as_fd(), |key: L::Key, entry: L::Entry| {
            visit(L::key(&key), L::entry(&entry));
        })
        .map_err(|source| KernelError::Call { call: "reading the flows", source })
    }

    fn get(&self, key: &FlowKey) -> Result<Option<Flow>, KernelError> {
        let Some(key) = L::own_key(key) else { return Ok(None) };
        let entry = found(lock(&self.flows).get(&key, 0)).map_err(flows_failed("reading"))?;
        Ok(entry.map(|entry| L::entry(&entry)))
    }

    fn remove(&self, key: &FlowKey) -> Result<(), KernelError> {
        let Some(key) = L::own_key(key) else { return Ok(()) };
        found(lock(&self.flows).remove(&key)).map(drop).map_err(flows_failed("removing from"))
    }

    fn unfinished(&self) -> Vec<(u64, Pending)> {
        let pending = lock(&self.pending);
        pending.iter().filter_map(Result::ok).map(|(id, pending)| (id, L::pending(&pending))).collect()
    }

    fn finish(&self, id: u64) -> Result<(), KernelError> {
        found(lock(&self.pending).remove(&id)).map(drop).map_err(map("removing from", FLOWS_PENDING))
    }

    fn labels(&self) -> Vec<(u32, String)> {
        let text = |label: L::Label| {
            let octets = label.as_ref();
            let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
            String::from_utf8_lossy(&octets[..end.min(LABEL_BYTES)]).into_owned()
        };
        self.labels.iter().filter_map(Result::ok).map(|(key, label)| (key, text(label))).collect()
    }

    fn count(&self, reason: FlowReason) -> u64 {
        let Some(index) = L::reason(reason) else { return 0 };
        self.reasons.get(&index, 0).map_or(0, |values| values.iter().sum())
    }

    fn events(&self, ring: MapData, labels: Arc<Translation<u32, u32>>) -> Result<FlowEvents, KernelError> {
        FlowEvents::of(ring, L::event, labels)
    }

    fn priority(&self) -> u16 {
        L::PRIORITY
    }
}

impl<L: Layout> fmt::Debug for Table<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("layout", &L::NAME).finish_non_exhaustive()
    }
}
