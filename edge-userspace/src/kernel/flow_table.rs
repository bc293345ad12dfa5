//! The maps of the flow tier as typed handles: both directions of a flow are installed together, read
//! together and removed together. `datapath::flow` decides when to create a flow and with which numbers.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage},
};
use edge_common::flow::{
    Flow, FlowKey, FlowReason, HANDING_OVER, Handshake, LABEL_BYTES, Label, MAY_FINISH, PEER_FIN_ACKED,
    Pending,
};
use thiserror::Error;

use super::{
    KernelError,
    flow_walk::FlowWalk,
    load::{map, take},
};
use crate::hash::fnv1a;

pub(super) const FLOWS: &str = "FLOWS";
pub(super) const FLOWS_PENDING: &str = "FLOWS_PENDING";
pub(super) const FLOW_LABELS: &str = "FLOW_LABELS";
pub(super) const FLOW_REASONS: &str = "FLOW_REASONS";
const HANDSHAKES: &str = "HANDSHAKES";
const FLOW_COMPARING: &str = "FLOW_COMPARING";

/// `BPF_NOEXIST`: an entry that is there already is an error.
const NOEXIST: u64 = 1;
/// `BPF_EXIST`: one that is not there is.
const EXIST: u64 = 2;

/// One in so many labels is reserved for shared ones.
const COMMON_LABELS: u32 = 8;
/// Keys tried for a label before it counts as having no room.
const LABEL_TRIES: u32 = 8;

/// Both directions of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPair {
    /// Where client → backend is found: the client's packets as they arrive.
    pub up_key: FlowKey,
    /// Client → backend.
    pub up: Flow,
    /// Backend → client. Its key is [`Flow::reverse_key`] of [`Self::up`].
    pub down: Flow,
}

impl FlowPair {
    /// Of two entries as they were found, each brought up to what the other one has seen acknowledged.
    pub(super) const fn settled(up_key: FlowKey, up: Flow, down: Flow) -> Self {
        let mut pair = Self { up_key, up, down };
        pair.up.settle(&pair.down);
        pair.down.settle(&pair.up);
        pair
    }

    /// Where backend → client is found.
    pub const fn down_key(&self) -> FlowKey {
        self.up.reverse_key()
    }

    /// Whether both sides have acknowledged the other's FIN.
    pub const fn is_closed(&self) -> bool {
        self.up.has(PEER_FIN_ACKED) && self.down.has(PEER_FIN_ACKED)
    }
}

/// Why a flow could not be installed. Nothing of it is left then.
#[derive(Debug, Error)]
pub enum InstallError {
    /// A flow with these addresses is there already.
    #[error("the addresses belong to a flow that has not expired")]
    Taken,
    /// There is no room for another flow.
    #[error("the flow table is full")]
    Full,
    /// The kernel refused for another reason.
    #[error(transparent)]
    Kernel(#[from] KernelError),
}

/// The flows, what is known of them, and the hand-overs under way.
#[derive(Debug)]
pub struct FlowTable {
    flows: HashMap<MapData, FlowKey, Flow>,
    pending: HashMap<MapData, u64, Pending>,
    labels: HashMap<MapData, u32, Label>,
    /// How many there are.
    label_count: u32,
    /// How many there may be.
    label_limit: u32,
    handshakes: SkStorage<MapData, Handshake>,
    comparing: Comparing,
    walk: FlowWalk,
}

impl FlowTable {
    pub(super) fn take(ebpf: &mut Ebpf, object: &'static str) -> Result<Self, KernelError> {
        let hash = |part| match ebpf.map(part) {
            Some(Map::HashMap(data)) => Ok(data),
            _ => Err(KernelError::Incomplete { object, part }),
        };
        let again = |part| {
            let call = "duplicating a map's descriptor";
            let descriptor = hash(part)?.fd().as_fd().try_clone_to_owned();
            descriptor.map_err(|source| KernelError::Call { call, source })
        };
        let walk = FlowWalk::new(again(FLOWS)?, again(FLOW_LABELS)?);
        // An earlier daemon may have made it of another size.
        let label_limit = hash(FLOW_LABELS)?.info().map_err(map("asking about", FLOW_LABELS))?.max_entries();
        let labels: HashMap<MapData, u32, Label> = take(ebpf, object, FLOW_LABELS)?;
        Ok(Self {
            flows: take(ebpf, object, FLOWS)?,
            pending: take(ebpf, object, FLOWS_PENDING)?,
            label_count: u32::try_from(labels.keys().count()).unwrap_or(u32::MAX),
            label_limit,
            labels,
            handshakes: take(ebpf, object, HANDSHAKES)?,
            comparing: Comparing(take(ebpf, object, FLOW_COMPARING)?),
            walk,
        })
    }

    /// Installs both directions, or neither: first the one that carries nothing until the other is there.
    pub fn install(&mut self, pair: &FlowPair) -> Result<(), InstallError> {
        self.insert(&pair.down_key(), &pair.down)?;
        self.insert(&pair.up_key, &pair.up).inspect_err(|_| {
            // It was inserted a moment ago; if it is gone, all the better.
            let _ = self.flows.remove(&pair.down_key());
        })
    }

    fn insert(&mut self, key: &FlowKey, flow: &Flow) -> Result<(), InstallError> {
        self.flows.insert(key, flow, NOEXIST).map_err(|error| match code(&error) {
            Some(libc::EEXIST) => InstallError::Taken,
            Some(libc::E2BIG | libc::ENOMEM) => InstallError::Full,
            _ => map("writing to", FLOWS)(error).into(),
        })
    }

    /// One direction of a flow.
    pub fn get(&self, key: &FlowKey) -> Result<Option<Flow>, KernelError> {
        found(self.flows.get(key, 0)).map_err(map("reading", FLOWS))
    }

    /// Both directions of the flow whose client → backend entry is at `up_key`.
    pub fn pair(&self, up_key: &FlowKey) -> Result<Option<FlowPair>, KernelError> {
        let Some(up) = self.get(up_key)? else { return Ok(None) };
        Ok(self.get(&up.reverse_key())?.map(|down| FlowPair::settled(*up_key, up, down)))
    }

    /// Removes both directions of a flow; what is gone already is not an error. From then on the stack has its
    /// packets, and answers them with RST.
    pub fn remove(&mut self, up_key: &FlowKey, down_key: &FlowKey) -> Result<(), KernelError> {
        for key in [up_key, down_key] {
            found(self.flows.remove(key)).map_err(map("removing from", FLOWS))?;
        }
        Ok(())
    }

    /// A handle to look all flows over with, which needs no hold on the table.
    pub fn walk(&self) -> Result<FlowWalk, KernelError> {
        self.walk.try_clone()
    }

    /// Removes directions whose other one is missing: what a daemon left that died while it installed or removed.
    pub fn remove_halves(&mut self) -> Result<usize, KernelError> {
        let mut halves = Vec::new();
        self.walk.each_entry(|key, flow| {
            if matches!(self.get(&flow.reverse_key()), Ok(None)) {
                halves.push(key);
            }
        })?;
        for key in &halves {
            found(self.flows.remove(key)).map_err(map("removing from", FLOWS))?;
        }
        Ok(halves.len())
    }

    /// Notes that the hand-over of flow `id` is under way, before it is installed.
    pub fn begin(&mut self, id: u64, pending: &Pending) -> Result<(), InstallError> {
        self.pending.insert(id, pending, NOEXIST).map_err(|error| match code(&error) {
            Some(libc::E2BIG | libc::ENOMEM) => InstallError::Full,
            _ => map("writing to", FLOWS_PENDING)(error).into(),
        })
    }

    /// Changes what is watched for in a hand-over under way.
    pub fn watch(&mut self, id: u64, pending: &Pending) -> Result<(), KernelError> {
        self.pending.insert(id, pending, EXIST).map_err(map("writing to", FLOWS_PENDING))
    }

    /// Notes that it is finished, one way or the other.
    pub fn finish(&mut self, id: u64) -> Result<(), KernelError> {
        found(self.pending.remove(&id)).map(drop).map_err(map("removing from", FLOWS_PENDING))
    }

    /// Hand-overs that were begun and not finished; the flow itself may not be there.
    pub fn unfinished(&self) -> Vec<(u64, Pending)> {
        self.pending.iter().filter_map(Result::ok).collect()
    }

    /// The key of the label with this text, made if there is none. Text that is too long is cut. Some of the room is
    /// kept for [`Self::common_label`].
    pub fn label(&mut self, text: &str) -> Result<u32, InstallError> {
        self.label_below(self.label_limit - self.label_limit / COMMON_LABELS, text)
    }

    /// The same for a text that many connections have in common.
    pub fn common_label(&mut self, text: &str) -> Result<u32, InstallError> {
        self.label_below(self.label_limit, text)
    }

    fn label_below(&mut self, limit: u32, text: &str) -> Result<u32, InstallError> {
        let mut label = Label::default();
        let text = &text[..text.floor_char_boundary(LABEL_BYTES)];
        label.text[..text.len()].copy_from_slice(text.as_bytes());
        let mut key = label_key(text);
        for _ in 0..LABEL_TRIES {
            match found(self.labels.get(&key, 0)).map_err(map("reading", FLOW_LABELS))? {
                Some(there) if there == label => return Ok(key),
                Some(_) => key = key.wrapping_add(1).max(1),
                None if self.label_count >= limit => break,
                None => {
                    self.labels.insert(key, label, NOEXIST).map_err(|error| match code(&error) {
                        Some(libc::E2BIG | libc::ENOMEM) => InstallError::Full,
                        _ => map("writing to", FLOW_LABELS)(error).into(),
                    })?;
                    self.label_count += 1;
                    return Ok(key);
                }
            }
        }
        Err(InstallError::Full)
    }

    /// The text of a label.
    pub fn label_text(&self, key: u32) -> Result<Option<String>, KernelError> {
        let label = found(self.labels.get(&key, 0)).map_err(map("reading", FLOW_LABELS))?;
        Ok(label.map(|label| {
            let end = label.text.iter().position(|octet| *octet == 0).unwrap_or(LABEL_BYTES);
            String::from_utf8_lossy(&label.text[..end]).into_owned()
        }))
    }

    /// Removes a label that no flow has.
    pub fn remove_label(&mut self, key: u32) -> Result<(), KernelError> {
        let removed = found(self.labels.remove(&key)).map_err(map("removing from", FLOW_LABELS))?;
        self.label_count -= u32::from(removed.is_some());
        Ok(())
    }

    /// The record of the socket's handshake; `None` if there is none, because the socket is not in the
    /// watched cgroup.
    pub fn handshake(&self, socket: impl AsFd) -> Result<Option<Handshake>, KernelError> {
        found(self.handshakes.get(&socket.as_fd().as_raw_fd(), 0)).map_err(map("reading", HANDSHAKES))
    }

    /// Asks for changes to the SYN that the socket will send (`NO_TIMESTAMPS` and its kind in
    /// [`edge_common::flow`]). To be called before it connects.
    pub fn shape_syn(&mut self, socket: impl AsFd, wishes: u32) -> Result<(), KernelError> {
        self.note(socket, Handshake { wishes, ..Handshake::default() })
    }

    /// Lets the socket send its FIN although its addresses are a flow's.
    pub fn let_finish(&mut self, socket: impl AsFd) -> Result<(), KernelError> {
        self.wish(socket, MAY_FINISH)
    }

    /// Lets what the socket repeats acknowledge as much as the flow that it becomes.
    pub fn let_hand_over(&mut self, socket: impl AsFd) -> Result<(), KernelError> {
        self.wish(socket, HANDING_OVER)
    }

    /// Has the programs note, from now on or no longer, what the wire shows of sockets ([`Handshake::arrives_by`] and
    /// what follows it), for so many connections.
    pub fn compare(&mut self, connections: u32) -> Result<(), KernelError> {
        self.comparing.0.set(0, connections, 0).map_err(map("writing to", FLOW_COMPARING))
    }

    /// Forgets what the programs have noted of a socket by [`Self::compare`].
    pub fn forget_wire(&mut self, socket: impl AsFd) -> Result<(), KernelError> {
        match self.handshake(&socket)? {
            Some(noted) => {
                self.note(socket, Handshake { arrives_by: 0, leaves_by: 0, translated: 0, mark: 0, ..noted })
            }
            None => Ok(()),
        }
    }

    fn wish(&mut self, socket: impl AsFd, wish: u32) -> Result<(), KernelError> {
        let noted = self.handshake(&socket)?.unwrap_or_default();
        self.note(socket, Handshake { wishes: noted.wishes | wish, ..noted })
    }

    fn note(&mut self, socket: impl AsFd, handshake: Handshake) -> Result<(), KernelError> {
        let inserted = self.handshakes.insert(&socket.as_fd().as_raw_fd(), handshake, 0);
        inserted.map_err(map("writing to", HANDSHAKES))
    }
}

/// How many connections are compared with the wire, for the programs to see.
struct Comparing(Array<MapData, u32>);

impl fmt::Debug for Comparing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comparing").finish_non_exhaustive()
    }
}

/// Packets by what became of them.
pub struct FlowReasons(PerCpuArray<MapData, u64>);

impl fmt::Debug for FlowReasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowReasons").finish_non_exhaustive()
    }
}

impl FlowReasons {
    pub(super) fn take(ebpf: &mut Ebpf, object: &'static str) -> Result<Self, KernelError> {
        take(ebpf, object, FLOW_REASONS).map(Self)
    }

    /// Packets that met this fate since the maps were made, on all CPUs.
    pub fn count(&self, reason: FlowReason) -> Result<u64, KernelError> {
        let values = self.0.get(&(reason as u32), 0).map_err(map("reading", FLOW_REASONS))?;
        Ok(values.iter().sum())
    }
}

/// Never 0, which says that a flow has no label.
fn label_key(text: &str) -> u32 {
    let hash = fnv1a(text);
    #[expect(clippy::cast_possible_truncation, reason = "both halves count")]
    let folded = (hash ^ (hash >> 32)) as u32;
    folded.max(1)
}

/// `None` for what is not there.
pub(super) fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(None),
        Err(error) if code(&error) == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn code(error: &MapError) -> Option<i32> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        cause = error.source();
    }
    None
}
