//! Upgrades to a version whose maps have another layout: what was handed over before goes on beside what is handed over
//! now, and is the operator's to see and to end like any other flow.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::chown,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lab::{
    Context, Edged, Lab, Result, ensure, older, service,
    stream::Pattern,
    topology::CLIENT_SECOND,
    wait::{self, SOON},
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::{
    case, echo_once,
    flow::{NAME, body, edged, hello, reset_is_seen, wait_for_flows},
};

/// A client that is blocked before the upgrade.
const BLOCKED: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 4);
/// A closed flow lingers for a minute.
const LINGERS: Duration = Duration::from_mins(3);
const SOME: usize = 300_000;

fn open(lab: &Lab, source: Ipv4Addr) -> Result<TcpStream> {
    let mut stream = lab.client.connect_from(source.into(), lab.edge.at(443))?;
    echo_once(&mut stream, &hello())?;
    Ok(stream)
}

/// Some data there and back, in both of which every byte counts.
fn exchange(stream: &mut TcpStream) -> Result<()> {
    echo_once(stream, &Pattern::new(71).bytes(SOME))
}

fn ids(flows: &[Value]) -> Vec<u64> {
    let mut ids: Vec<_> = flows.iter().filter_map(|flow| flow["id"].as_u64()).collect();
    ids.sort_unstable();
    ids
}

/// The flow of a client's connection.
fn id_of(flows: &[Value], stream: &TcpStream) -> Result<String> {
    let client = stream.local_addr()?.to_string();
    let found = flows.iter().find(|flow| flow["client"] == client);
    Ok(found.with_context(|| format!("{client} has no flow"))?["id"].to_string())
}

/// Other layouts in `status`.
fn others(edged: &Edged) -> Result<Value> {
    Ok(edged.edgectl().json(&["status"])?["datapath"]["others"].take())
}

/// A client that is blocked, and tries to connect all the time: it must not get through at any moment.
struct Excluded<'a> {
    lab: &'a Lab,
    over: AtomicBool,
}

impl<'a> Excluded<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        lab.client.ip(&["address", "add", &format!("{BLOCKED}/24"), "dev", "eth0"])?;
        Ok(Self { lab, over: AtomicBool::new(false) })
    }

    fn tries(&self) -> Result<usize> {
        const PATIENCE: Duration = Duration::from_millis(50);
        let mut tries = 0;
        while !self.over.load(Ordering::Relaxed) {
            let outcome = self.lab.client.run(|| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.bind(&SocketAddr::from((BLOCKED, 0)).into())?;
                Ok(socket.connect_timeout(&self.lab.edge.at(443).into(), PATIENCE))
            })?;
            // Where nobody listens, a client that is not blocked is refused.
            let is_dropped = outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
            ensure!(is_dropped, "the blocked client got through at its try {tries}: {outcome:?}");
            tries += 1;
        }
        Ok(tries)
    }

    /// Runs `change` while the client tries.
    fn during<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        thread::scope(|scope| {
            let tries = scope.spawn(|| self.tries());
            let changed = change();
            self.over.store(true, Ordering::Relaxed);
            let tries = tries.join().unwrap_or_else(|_| lab::bail!("the blocked client panicked"))?;
            self.over.store(false, Ordering::Relaxed);
            let changed = changed?;
            ensure!(tries > 0, "the blocked client did not try");
            Ok(changed)
        })
    }
}

#[test]
fn flows_of_an_older_layout_go_on_beside_new_ones_until_they_end() -> Result<()> {
    case(|lab| {
        let Some(programs) = older::programs(older::LAYOUT_2)? else { return Ok(()) };
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let excluded = Excluded::new(lab)?;
        let mut old =
            Edged::plan(lab, &body(lab, "")).daemon("datapath = \"flow\"").programs(&programs).start()?;
        old.edgectl().text(&["block", "add", &BLOCKED.to_string()])?;
        let mut streams = (0..4).map(|_| open(lab, lab.client.v4)).collect::<Result<Vec<_>>>()?;
        streams.push(open(lab, CLIENT_SECOND)?);
        streams.iter_mut().try_for_each(exchange)?;
        let before = wait_for_flows(&old, streams.len())?;
        let (mut new, mut newer) = excluded.during(|| {
            ensure!(old.terminate()? == Some(0), "{}", old.process().log());
            streams.iter_mut().try_for_each(exchange).context("between two daemons")?;
            let new = edged(lab, "")?;
            streams.iter_mut().try_for_each(exchange).context("beside the new daemon")?;
            Ok((new, open(lab, lab.client.v4)?))
        })?;
        // All are listed, the new one with a number of its own.
        let flows = wait_for_flows(&new, streams.len() + 1)?;
        let (before, after) = (ids(&before), ids(&flows));
        ensure!(after[..before.len()] == before, "{before:?} became {after:?}");
        ensure!(flows.iter().all(|flow| flow["host"] == NAME && flow["route"] == NAME), "{flows:?}");
        let left = others(&new)?;
        ensure!(left[0]["layout"] == "v2" && left[0]["flows"] == 5 && left[0]["readable"] == true, "{left}");
        let doctor = new.edgectl().run(&["doctor", "-v"])?;
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(doctor.contains("flows of an earlier version"), "{doctor}");
        let blocks = new.edgectl().list("block")?;
        ensure!(blocks.iter().any(|block| block["packets"].as_u64() > Some(0)), "{blocks:?}");
        // The new daemon finds them again.
        new.kill()?;
        new = edged(lab, "")?;
        wait_for_flows(&new, streams.len() + 1)?;
        streams.iter_mut().chain([&mut newer]).try_for_each(exchange)?;
        // The operator ends them like others.
        let mut blocked = streams.pop().context("no stream")?;
        let mut closed = streams.pop().context("no stream")?;
        new.edgectl().text(&["connections", "close", &id_of(&flows, &closed)?])?;
        reset_is_seen(&mut closed)?;
        new.edgectl().text(&["block", "add", &CLIENT_SECOND.to_string()])?;
        new.access_log.wait_for("the block", |record| record["close"] == "blocked")?;
        new.edgectl().text(&["block", "remove", &CLIENT_SECOND.to_string()])?;
        reset_is_seen(&mut blocked)?;
        // And they end by themselves, every byte of them counted.
        let total = (hello().len() + 4 * SOME) as u64;
        streams.iter_mut().try_for_each(exchange)?;
        let ended = streams.len();
        drop(streams);
        let records =
            new.access_log.wait_for_count(ended, "the ends", |record| record["close"] == "finished")?;
        for record in &records {
            let (up, down) = (total + SOME as u64, total + SOME as u64);
            ensure!(record["bytes_up"] == up && record["bytes_down"] == down, "not {up}: {record}");
            ensure!(record["datapath"] == "flow" && record["sni"] == NAME, "{record}");
        }
        // With the last one, programs and maps of the older layout go.
        let pins = lab.pins().join("v2");
        wait::until_true("the pins of the older layout to go", LINGERS, || !pins.exists())?;
        ensure!(others(&new)?.is_null(), "{}", others(&new)?);
        exchange(&mut newer)?;
        wait_for_flows(&new, 1).map(drop)
    })
}

#[test]
fn flows_of_an_older_layout_time_out_and_go_with_their_route() -> Result<()> {
    case(|lab| {
        let Some(programs) = older::programs(older::LAYOUT_2)? else { return Ok(()) };
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let plan = || Edged::plan(lab, "[limits]\nidle_timeout = \"5s\"\n").daemon("datapath = \"flow\"");
        let old = plan().programs(&programs).start()?;
        old.edgectl().text(&["routes", "add", NAME, &lab.home_address().to_string()])?;
        let mut streams = [open(lab, lab.client.v4)?, open(lab, lab.client.v4)?];
        wait_for_flows(&old, 2)?;
        old.kill()?;
        let new = plan().start()?;
        let record = new.access_log.wait_for("the idle flow", |record| record["close"] == "idle_timeout")?;
        ensure!(record["datapath"] == "flow", "{record}");
        streams.iter_mut().try_for_each(reset_is_seen)?;
        let gone = || !lab.pins().join("v2").exists();
        wait::until_true("the pins of the older layout to go", SOON, gone)?;
        new.kill()?;
        // Once more, with its route taken away.
        let old = plan().programs(&programs);
        take_away(lab)?;
        belongs_to_root(&lab.directory().join("state"))?;
        chown(lab.directory().join("access-log.json"), Some(0), Some(0))?;
        let old = old.start()?;
        let mut stream = open(lab, lab.client.v4)?;
        wait_for_flows(&old, 1)?;
        old.kill()?;
        let new = plan().start()?;
        wait_for_flows(&new, 1)?;
        new.edgectl().text(&["routes", "remove", NAME, "--close"])?;
        reset_is_seen(&mut stream)?;
        new.access_log.wait_for("the route", |record| record["close"] == "route_removed")?;
        wait::until_true("the pins of the older layout to go", SOON, gone)
    })
}

/// The guide's instructions for a downgrade to a version that stays root.
fn belongs_to_root(state: &Path) -> Result<()> {
    for entry in std::fs::read_dir(state)? {
        chown(entry?.path(), Some(0), Some(0))?;
    }
    Ok(chown(state, Some(0), Some(0))?)
}

/// Removes what this version pinned, which a daemon of layout 2 would not start beside.
fn take_away(lab: &Lab) -> Result<()> {
    Ok(std::fs::remove_dir_all(own_pins(lab)?)?)
}

/// The one directory of pins that there is.
fn own_pins(lab: &Lab) -> Result<PathBuf> {
    let mut found =
        std::fs::read_dir(lab.pins())?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    ensure!(found.len() == 1, "{found:?}");
    found.pop().context("nothing is pinned")
}

#[test]
fn flows_of_a_layout_that_nobody_knows_go_on_too() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let excluded = Excluded::new(lab)?;
        let mut first = edged(lab, "")?;
        first.edgectl().text(&["block", "add", &BLOCKED.to_string()])?;
        let mut stream = open(lab, lab.client.v4)?;
        wait_for_flows(&first, 1)?;
        // As a build whose layout has the same number and the same sizes, and another meaning.
        let own = own_pins(lab)?;
        let other = own.with_file_name("v3-00000000");
        let (second, mut beside) = excluded.during(|| {
            first.terminate()?;
            std::fs::rename(&own, &other)?;
            exchange(&mut stream)?;
            let second = edged(lab, "")?;
            let beside = open(lab, lab.client.v4)?;
            Ok((second, beside))
        })?;
        ensure!(own.exists() && is_pinned(&other), "the other layout was taken over");
        exchange(&mut stream).context("of the other layout")?;
        exchange(&mut beside)?;
        wait_for_flows(&second, 1)?;
        let left = others(&second)?;
        ensure!(left[0]["layout"] == "v3-00000000" && left[0]["flows"] == 1, "{left}");
        ensure!(left[0]["readable"] == false, "{left}");
        let doctor = second.edgectl().run(&["doctor", "-v"])?;
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(doctor.contains("flows of another version") && doctor.contains("--uninstall"), "{doctor}");
        ensure!(!other.join("shield").exists(), "two shields");
        excluded.during(|| exchange(&mut beside))
    })
}

fn is_pinned(layout: &Path) -> bool {
    layout.join("flow/FLOWS").exists()
}
