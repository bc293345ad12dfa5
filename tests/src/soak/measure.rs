//! Reads the figures of the balance.

use std::{collections::BTreeSet, fs, net::TcpStream, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use rustix::process::Pid;

use super::{
    balance::{Figures, Item},
    home::{FLOW, Home, Order, Wish},
    plant::Cgroup,
};
use crate::{
    Edged, Host, Lab, firewall,
    hello::ClientHello,
    metrics::Metrics,
    netns, stream, table,
    wait::{self, SOON},
};

/// Ports for connections to each backend (`flow.ports`). Few, so that a run comes to their end.
pub(super) const PORTS: (u16, u16) = (20_000, 20_511);

/// Everything that can be read beside the daemon. Nothing may be going on.
pub(super) fn figures(lab: &Lab, edged: &Edged, home: &Home<'_>, cgroup: Option<&Cgroup>) -> Result<Figures> {
    let mut figures = Figures { pins: pins(lab)?, ..Figures::default() };
    let mut count = |item, count| figures.counts.insert(item, count);
    let process = edged.as_process();
    count(Item::Resident, process.resident()?);
    count(Item::Descriptors, process.descriptors()? as u64);
    count(Item::Threads, fs::read_dir(format!("/proc/{}/task", process.pid()))?.count() as u64);
    let processes = netns::processes(lab.edge.namespace().name());
    let edgeds: Vec<Pid> = processes.into_iter().filter(|pid| is_edged(*pid)).collect();
    count(Item::Processes, edgeds.len() as u64);
    if let Some(keeper) = edgeds.iter().find(|pid| pid.as_raw_nonzero().get().unsigned_abs() != process.pid())
    {
        count(Item::KeeperResident, resident(*keeper)?);
        count(Item::KeeperDescriptors, fs::read_dir(format!("/proc/{keeper}/fd"))?.count() as u64);
    }
    count(Item::Sockets, sockets(&lab.edge)?);
    count(Item::AtHome, home.live());
    count(Item::Connections, edged.edgectl().list("connections")?.len() as u64);
    count(Item::Routes, edged.edgectl().list("routes")?.len() as u64);
    count(Item::Blocks, edged.edgectl().list("block")?.len() as u64);
    if let Ok(tracked) = firewall::tracked(&lab.edge) {
        let established = tracked.iter().filter(|entry| entry.contains(" ESTABLISHED ")).count();
        count(Item::Tracked, established as u64);
    }
    let metrics = Metrics::read(&lab.edge)?;
    count(Item::HelloMemory, metrics.get("edge_hello_memory_bytes"));
    let entries = table::entries(lab)?;
    count(Item::FlowEntries, entries.flows);
    count(Item::Pending, entries.pending);
    if let Some(cgroup) = cgroup {
        count(Item::KernelMemory, cgroup.kernel()?);
    }
    Ok(figures)
}

fn is_edged(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("edged"))
}

fn resident(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// TCP sockets that carry something, or could.
fn sockets(host: &Host) -> Result<u64> {
    let mut ss = Command::new("ss");
    ss.args(["-Htan", "state", "connected", "exclude", "time-wait"]);
    Ok(host.text_of(ss)?.lines().count() as u64)
}

/// The files below the lab's pins, without the links of existing devices: the tunnel's get links when it is
/// first used.
fn pins(lab: &Lab) -> Result<BTreeSet<String>> {
    fn walk(root: &Path, directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                walk(root, &path, found)?;
            } else {
                found.insert(path.strip_prefix(root)?.display().to_string());
            }
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    walk(&lab.pins(), &lab.pins(), &mut found)?;
    let mut ip = Command::new("ip");
    ip.args(["-o", "link"]);
    let links = lab.edge.text_of(ip)?;
    let index = |line: &str| Some(format!("device-{}", line.split_once(':')?.0));
    let there: Vec<String> = links.lines().filter_map(index).collect();
    found.retain(|pin| {
        let name = pin.rsplit('/').next().unwrap_or_default();
        !there.iter().any(|device| {
            name.strip_prefix(device.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        })
    });
    Ok(found)
}

/// How many connections of one source to one backend become flows before its share of ports is used up. They
/// are reset afterwards, so that their ports are free again within seconds.
pub(super) fn free_ports(lab: &Lab, edged: &Edged) -> Result<u64> {
    // More than its share, which is half of what is free.
    let wanted = usize::from(PORTS.1 - PORTS.0) / 2 + 24;
    let flows = || -> Result<u64> {
        let own = format!("{}:", lab.client.v4);
        let list = edged.edgectl().list("connections")?;
        let is_own = |entry: &&serde_json::Value| {
            entry["datapath"] == "flow"
                && entry["client"].as_str().is_some_and(|client| client.starts_with(&own))
        };
        Ok(list.iter().filter(is_own).filter(|entry| entry["host"] == FLOW.host).count() as u64)
    };
    let stays = || Ok::<_, anyhow::Error>(Metrics::read(&lab.edge)?.stays("port"));
    let (flows_before, stays_before) = (flows()?, stays()?);
    let streams = (0..wanted).map(|_| carried(lab)).collect::<Result<Vec<_>>>()?;
    let found = wait::until_ok("every connection to be a flow or to have no port", SOON, || {
        let (flows, stays) = (flows()? - flows_before, stays()? - stays_before);
        ensure!(flows + stays == wanted as u64, "{flows} flows and {stays} without a port, of {wanted}");
        Ok(flows)
    });
    streams.into_iter().try_for_each(stream::reset)?;
    wait::until_ok("the flows to go", SOON, || {
        let left = flows()? - flows_before;
        ensure!(left == 0, "{left} are left");
        Ok(())
    })?;
    found
}

/// A connection that its backend has answered.
fn carried(lab: &Lab) -> Result<TcpStream> {
    use std::io::{Read, Write};
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    let order = Order { wish: Wish::Echo, seed: 0, length: 0 };
    stream.write_all(&[ClientHello::new(FLOW.host).records(), order.bytes()].concat())?;
    stream.read_exact(&mut [0])?;
    // A hand-over compares packets of both directions.
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// Waits until nothing of the day is left but what the balance will show; at most so long.
pub(super) fn settle(lab: &Lab, edged: &Edged, home: &Home<'_>, patience: Duration, make_older: bool) {
    let is_settled = || {
        let listed = edged.edgectl().list("connections").is_ok_and(|list| list.is_empty());
        // Programs and maps of an older layout go with its last flow.
        let layouts = fs::read_dir(lab.pins()).is_ok_and(|layouts| layouts.count() == 1);
        let entries = table::entries(lab).is_ok_and(|entries| entries.flows == 0 && entries.pending == 0);
        listed
            && layouts
            && entries
            && home.live() == 0
            && sockets(&lab.edge).is_ok_and(|sockets| sockets <= 2)
    };
    if make_older {
        // The kernel forgets closed flows after a minute, longer than a rehearsal lasts.
        thread::sleep(Duration::from_secs(2));
        let _ = table::age(lab, Duration::from_mins(1));
    }
    // The balance says what is missing.
    let _ = wait::until_true("the edge to settle", patience, is_settled);
}

/// The connections that edged lists and the edge's sockets after all clients have left, for the search of a
/// leak.
pub(super) fn leftovers(lab: &Lab, edged: &Edged) -> Result<Vec<String>> {
    let listed = edged.edgectl().list("connections")?;
    if listed.is_empty() {
        return Ok(Vec::new());
    }
    let mut ss = Command::new("ss");
    ss.args(["-Htanoi", "state", "connected", "exclude", "time-wait"]);
    let on_edge = lab.edge.text_of(ss)?;
    let mut ss = Command::new("ss");
    ss.args(["-Htano", "state", "connected", "exclude", "time-wait"]);
    let at_home = lab.home.text_of(ss)?;
    let lines = on_edge.lines().map(|line| format!("edge: {}", line.trim()));
    let home = at_home.lines().map(|line| format!("home: {}", line.trim()));
    Ok(listed.iter().map(ToString::to_string).chain(lines).chain(home).collect())
}
