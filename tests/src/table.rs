//! The table of flows as another daemon might have left it in the kernel: a small one, or a full one.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Pod,
    maps::{HashMap, Map, MapData},
};
use edge_common::{
    LAYOUT,
    flow::{DOWN, Flow, FlowKey, Label, Pending, Tuple, UP},
};

use crate::Lab;

const FLOWS: &str = "FLOWS";
const PENDING: &str = "FLOWS_PENDING";
const LABELS: &str = "FLOW_LABELS";
/// `BPF_F_NO_PREALLOC`, as the daemon's own has it.
const NO_PREALLOC: u32 = 1;

/// Puts a table for so many flows in the place of the one that a daemon, which has ended, has left.
pub fn shrink(lab: &Lab, flows: u32) -> Result<()> {
    replace(&pinned(lab, FLOWS)?, HashMap::<_, FlowKey, Flow>::create(2 * flows, NO_PREALLOC)?)
}

/// The same for what is known of flows.
pub fn shrink_labels(lab: &Lab, labels: u32) -> Result<()> {
    replace(&pinned(lab, LABELS)?, HashMap::<_, u32, Label>::create(labels, NO_PREALLOC)?)
}

fn replace<K, V>(path: &Path, map: HashMap<MapData, K, V>) -> Result<()>
where
    K: Pod,
    V: Pod,
{
    fs::remove_file(path)?;
    Ok(map.pin(path)?)
}

/// The contents of the kernel's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// Entries of the table of flows, two a flow.
    pub flows: u64,
    /// Hand-overs that are under way.
    pub pending: u64,
}

/// Counts the entries of this layout's tables.
pub fn entries(lab: &Lab) -> Result<Entries> {
    let flows: HashMap<_, FlowKey, Flow> =
        HashMap::try_from(Map::HashMap(MapData::from_pin(pinned(lab, FLOWS)?)?))?;
    let pending: HashMap<_, u64, Pending> =
        HashMap::try_from(Map::HashMap(MapData::from_pin(pinned(lab, PENDING)?)?))?;
    Ok(Entries { flows: flows.keys().count() as u64, pending: pending.keys().count() as u64 })
}

/// Adds flows from this IPv4 address, one per port from 1 on, to a backend that nobody uses.
pub fn add_flows(lab: &Lab, client: SocketAddr, edge: SocketAddr, count: u16) -> Result<()> {
    let mut table: HashMap<_, FlowKey, Flow> =
        HashMap::try_from(Map::HashMap(MapData::from_pin(pinned(lab, FLOWS)?)?))?;
    let now = u64::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec)?;
    let IpAddr::V4(source) = client.ip() else { bail!("{client} is not IPv4") };
    let [.., last] = source.octets();
    for port in 1..=count {
        let client = SocketAddr::new(client.ip(), port);
        let back = SocketAddr::from(([198, 18, 2, 1], port));
        let backend = SocketAddr::from(([198, 18, 3, last], 443));
        let common = Flow {
            // Numbers that no daemon of the lab gets to.
            id: (1 << 40) + (u64::from(last) << 16) + u64::from(port),
            accepted: now * 1_000_000_000,
            last_seen: now * 1_000_000_000,
            ..Flow::default()
        };
        let up = Flow { to: Tuple::new(back, backend), direction: UP, ..common };
        let down = Flow { to: Tuple::new(edge, client), direction: DOWN, ..common };
        table.insert(FlowKey::new(client, edge), up, 0)?;
        table.insert(up.reverse_key(), down, 0)?;
    }
    Ok(())
}

/// Makes all flows older: none of them has carried a packet for so much longer.
pub fn age(lab: &Lab, by: Duration) -> Result<()> {
    let mut table: HashMap<_, FlowKey, Flow> =
        HashMap::try_from(Map::HashMap(MapData::from_pin(pinned(lab, FLOWS)?)?))?;
    let entries: Vec<_> = table.iter().collect::<Result<_, _>>()?;
    for (key, mut flow) in entries {
        flow.last_seen = flow.last_seen.saturating_sub(u64::try_from(by.as_nanos())?);
        table.insert(key, flow, 0)?;
    }
    Ok(())
}

/// Where a daemon has pinned a map.
fn pinned(lab: &Lab, name: &str) -> Result<PathBuf> {
    let pins = lab.pins();
    let own = format!("v{LAYOUT}-");
    let mut layouts = fs::read_dir(&pins)?.flatten();
    let layout = layouts.find(|layout| layout.file_name().to_string_lossy().starts_with(&own));
    let path = layout.context("nothing is pinned")?.path().join("flow").join(name);
    ensure!(path.exists(), "there is no {}", path.display());
    Ok(path)
}
