//! The table of flows as another daemon might have left it in the kernel: a small one, or a full one.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use edge_common::flow::{DOWN, Flow, FlowKey, UP};

use crate::Lab;

const NAME: &str = "FLOWS";
/// `BPF_F_NO_PREALLOC`, as the daemon's own has it.
const NO_PREALLOC: u32 = 1;

/// Puts a table for so many flows in the place of the one that a daemon, which has ended, has left.
pub fn shrink(lab: &Lab, flows: u32) -> Result<()> {
    let path = pinned(lab)?;
    let small = HashMap::<MapData, FlowKey, Flow>::create(2 * flows, NO_PREALLOC)?;
    fs::remove_file(&path)?;
    Ok(small.pin(path)?)
}

/// Adds flows of clients at this address, one a port from 1 on, to a backend that nobody speaks to.
pub fn add_flows(lab: &Lab, client: SocketAddr, edge: SocketAddr, count: u16) -> Result<()> {
    let mut table: HashMap<_, FlowKey, Flow> =
        HashMap::try_from(Map::HashMap(MapData::from_pin(pinned(lab)?)?))?;
    let now = u64::try_from(rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec)?;
    for port in 1..=count {
        let client = SocketAddr::new(client.ip(), port);
        let back = SocketAddr::from(([198, 18, 2, 1], port));
        let backend = SocketAddr::from(([198, 18, 2, 9], 443));
        let common = Flow {
            // Numbers that no daemon of the lab gets to.
            id: (1 << 40) + u64::from(port),
            accepted: now * 1_000_000_000,
            last_seen: now * 1_000_000_000,
            ..Flow::default()
        };
        let up = Flow { to: FlowKey::new(back, backend), direction: UP, ..common };
        let down = Flow { to: FlowKey::new(edge, client), direction: DOWN, ..common };
        table.insert(FlowKey::new(client, edge), up, 0)?;
        table.insert(up.reverse_key(), down, 0)?;
    }
    Ok(())
}

/// Where a daemon has pinned its table.
fn pinned(lab: &Lab) -> Result<PathBuf> {
    let pins = lab.pins();
    let layout = fs::read_dir(&pins)?.next().context("nothing is pinned")??;
    let path = layout.path().join("flow").join(NAME);
    ensure!(path.exists(), "there is no {}", path.display());
    Ok(path)
}
