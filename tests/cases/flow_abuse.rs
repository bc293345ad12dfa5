//! Harm that hostile and vanished peers could do to others in the flow tier: taking the tier itself, or the
//! ports towards home.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv6Addr, TcpStream},
    process::Command,
    sync::{Mutex, mpsc::channel},
    time::Duration,
};

use lab::{
    Context, Edged, Host, Lab, Result,
    capture::Capture,
    ensure,
    firewall::{tracked, until_untracked},
    forge::{Forger, Kind, Observer, Tuple},
    lock::lock,
    metrics::{ADMIN, Metrics},
    service::{self, Service},
    stream::{self, Pattern},
    table,
    wait::{self, SOON},
};

use crate::{
    behind_firewall, case, echo_once,
    flow::{NAME, body, echoed, hello, reset_is_seen, wait_for_flows},
};

/// A peer that answers nothing is asked four times, 15 seconds apart, before it is given up.
const GIVEN_UP: Duration = Duration::from_secs(100);

fn edged(lab: &Lab, extra: &str) -> Result<Edged> {
    Edged::plan(lab, &body(lab, extra)).daemon("datapath = \"flow\"").daemon(ADMIN).start()
}

/// An address of the client's in a /24 of its own.
pub(crate) fn source(lab: &Lab, network: u8) -> Result<IpAddr> {
    let address = IpAddr::from([203, 0, network, 1]);
    add_source(lab, address, 32)
}

/// One in a /64 of its own, which is in the same /48 as the others.
fn subnet(lab: &Lab, number: u16) -> Result<IpAddr> {
    add_source(lab, Ipv6Addr::new(0x2001, 0xdb8, 7, number, 0, 0, 0, 1).into(), 128)
}

fn add_source(lab: &Lab, address: IpAddr, prefix: u8) -> Result<IpAddr> {
    let text = format!("{address}/{prefix}");
    let via = if address.is_ipv4() { lab.client.v4.to_string() } else { lab.client.v6.to_string() };
    let family = if address.is_ipv4() { "-4" } else { "-6" };
    lab.client.ip(&["address", "replace", &text, "dev", "lo"])?;
    lab.edge.ip(&[family, "route", "replace", &text, "via", &via, "dev", "front"])?;
    Ok(address)
}

/// Lets a flow from this address of the client's fail: the last bytes are sent again and again, as by a client whose
/// segments do not get through.
pub(crate) fn stall(lab: &Lab, daemon: &Edged, from: IpAddr, flows: usize) -> Result<TcpStream> {
    let edge = if from.is_ipv4() { lab.edge.at(443) } else { lab.edge.at_v6(443) };
    let mut stream = lab.client.connect_from(from, edge)?;
    echo_once(&mut stream, &hello())?;
    wait_for_flows(daemon, flows)?;
    let up = Tuple::new(stream.local_addr()?, edge);
    let observer = Observer::on(&lab.client, up.reversed())?;
    echo_once(&mut stream, b"where are we?")?;
    let before = observer.last()?.moved(-6, 0);
    let forger = Forger::on(&lab.client, up.source)?;
    for _ in 0..200 {
        forger.send(up, Kind::Data, before)?;
    }
    Ok(stream)
}

#[test]
fn sources_that_let_flows_fail_take_the_tier_from_themselves_alone() -> Result<()> {
    const HOSTILE: u8 = 10;
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let mut daemon = edged(lab, "")?;
        // One honest client, of a network that none of the hostile ones is in.
        let mut honest = echoed(lab, &daemon)?;
        let mut streams = Vec::new();
        let sources = (0..HOSTILE).map(|nth| source(lab, nth)).chain((0..4).map(|nth| subnet(lab, nth)));
        let sources = sources.collect::<Result<Vec<_>>>()?;
        for (nth, source) in sources.iter().enumerate() {
            streams.push(stall(lab, &daemon, *source, nth + 2)?);
            echo_once(&mut honest, &Pattern::new(61).bytes(10_000))?;
            wait::until_true("the failure to be noticed", SOON, || {
                daemon.process().whole_log().is_ok_and(|log| log.contains(&format!("client={source}")))
            })?;
        }
        // The sweeps that judge.
        for _ in 0..3 {
            let swept = daemon.edgectl().list("connections")?.len();
            ensure!(swept == streams.len() + 1);
            echo_once(&mut honest, b"still there")?;
            std::thread::sleep(Duration::from_millis(1100));
        }
        // Others get flows, over either family.
        let flows = streams.len() + 1;
        for (nth, source) in [source(lab, 100)?, lab.client.v6.into()].into_iter().enumerate() {
            let edge = if source.is_ipv4() { lab.edge.at(443) } else { lab.edge.at_v6(443) };
            let mut other = lab.client.connect_from(source, edge)?;
            echo_once(&mut other, &hello())?;
            wait_for_flows(&daemon, flows + nth + 1)?;
            streams.push(other);
        }
        // The hostile ones do not; nor does another /64 of their /48.
        for source in [sources[0], subnet(lab, 77)?] {
            let edge = if source.is_ipv4() { lab.edge.at(443) } else { lab.edge.at_v6(443) };
            let before = Metrics::read(&lab.edge)?.stays("distrusted_source");
            let mut stream = lab.client.connect_from(source, edge)?;
            echo_once(&mut stream, &hello())?;
            Metrics::until(&lab.edge, "the hostile one to stay on sockets", |now| {
                ensure!(now.stays("distrusted_source") > before, "{source} has a flow");
                Ok(())
            })?;
        }
        ensure!(Metrics::read(&lab.edge)?.stays("distrusted") == 0, "the backend was blamed");
        ensure!(!daemon.process().whole_log()?.contains("flows to this backend do not work"));
        Ok(())
    })
}

#[test]
fn two_sources_leave_ports_for_a_third() -> Result<()> {
    const PORTS: usize = 64;
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let mut daemon = edged(lab, "[flow]\nports = \"20000-20063\"")?;
        let open = |from| -> Result<TcpStream> {
            let mut stream = lab.client.connect_from(from, lab.edge.at(443))?;
            echo_once(&mut stream, &hello())?;
            Ok(stream)
        };
        let greedy = [source(lab, 1)?, source(lab, 2)?];
        let mut streams = Vec::new();
        for nth in 0..2 * PORTS {
            streams.push(open(greedy[nth % 2])?);
        }
        // A third each, and the last one by which the first is ahead. The rest is served on sockets.
        let taken = PORTS * 2 / 3 + 1;
        wait_for_flows(&daemon, taken)?;
        Metrics::until(&lab.edge, "those without a port", |now| {
            ensure!(now.stays("port") == (2 * PORTS - taken) as u64, "{}", now.stays("port"));
            Ok(())
        })?;
        streams.truncate(taken);
        streams.push(open(source(lab, 3)?)?);
        wait_for_flows(&daemon, taken + 1)?;
        // The next daemon knows whose they are.
        daemon.terminate()?;
        let daemon = edged(lab, "[flow]\nports = \"20000-20063\"")?;
        wait_for_flows(&daemon, taken + 1)?;
        streams.push(open(greedy[0])?);
        Metrics::until(&lab.edge, "one without a port", |now| {
            ensure!(now.stays("port") == 1, "{}", now.stays("port"));
            Ok(())
        })?;
        streams.push(open(source(lab, 3)?)?);
        wait_for_flows(&daemon, taken + 2).map(drop)
    })
}

/// The number of packets without data so far.
fn bare(capture: &Capture) -> Result<usize> {
    Ok(capture.packets()?.iter().filter(|line| line.contains("[.]") && line.contains("length 0")).count())
}

#[test]
fn idle_flows_are_kept_alive_and_stay_idle() -> Result<()> {
    const OLDER: Duration = Duration::from_mins(10);
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "[limits]\nidle_timeout = \"15m\"")?;
        let mut stream = echoed(lab, &daemon)?;
        let to_client = Capture::start(&lab.edge, "front", "tcp src port 443")?;
        let to_home = Capture::start(&lab.edge, "back", "tcp dst port 443")?;
        table::age(lab, OLDER)?;
        // The question to each, and the answer of the other, which passes through.
        for capture in [&to_client, &to_home] {
            wait::until_true("keepalives", SOON, || bare(capture).is_ok_and(|count| count >= 2))?;
        }
        let idle = |flows: &[serde_json::Value]| flows[0]["idle_seconds"].as_f64();
        // A sweep after the answers.
        std::thread::sleep(Duration::from_millis(1500));
        let flows = wait_for_flows(&daemon, 1)?;
        ensure!(idle(&flows) > Some(OLDER.as_secs_f64()), "answers count as activity: {flows:?}");
        let asked = bare(&to_client)? + bare(&to_home)?;
        ensure!(asked == 4, "{asked} for two questions and two answers");
        echo_once(&mut stream, b"still there")?;
        wait::until_true("activity to be seen", SOON, || {
            wait_for_flows(&daemon, 1).is_ok_and(|flows| idle(&flows) < Some(10.0))
        })?;
        // An idle flow ends at the limit although its peers answer.
        table::age(lab, 2 * OLDER)?;
        let record = daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "idle_timeout", "{record}");
        reset_is_seen(&mut stream)
    })
}

/// A probe passes through connection tracking, its answer does not: its entry would outlive it by days.
#[test]
fn keepalives_leave_nothing_in_conntrack() -> Result<()> {
    const FLOWS: usize = 50;
    behind_firewall(|| {
        case(|lab| {
            let _echo = service::echo(&lab.home, lab.home_at(443))?;
            let daemon = edged(lab, "[limits]\nidle_timeout = \"15m\"")?;
            let mut streams = Vec::new();
            for flows in 1..=FLOWS {
                let mut stream = lab.client.connect(lab.edge.at(443))?;
                echo_once(&mut stream, &hello())?;
                streams.push(stream);
                wait_for_flows(&daemon, flows)?;
            }
            until_untracked(&lab.edge, |entry| entry.contains("dport=443 "))?;
            let to_client = Capture::start(&lab.edge, "front", "tcp src port 443")?;
            let to_home = Capture::start(&lab.edge, "back", "tcp dst port 443")?;
            table::age(lab, Duration::from_mins(10))?;
            for capture in [&to_client, &to_home] {
                wait::until_true("keepalives", SOON, || bare(capture).is_ok_and(|count| count >= 2 * FLOWS))?;
            }
            // Sooner than any entry would expire by itself.
            wait::until_ok("conntrack to be empty", Duration::from_secs(3), || {
                let left = tracked(&lab.edge)?;
                ensure!(left.is_empty(), "{} entries are left: {:?}", left.len(), left.first());
                Ok(())
            })?;
            streams.iter_mut().try_for_each(|stream| echo_once(stream, b"still there"))
        })
    })
}

/// From now on nothing to this port leaves the host.
fn silence(host: &Host, port: u16) -> Result<()> {
    let mut nft = Command::new("nft");
    nft.arg(format!(
        "add table inet silence; \
         add chain inet silence output {{ type filter hook output priority 0; }}; \
         add rule inet silence output tcp dport {port} drop"
    ));
    host.text_of(nft).map(drop)
}

/// The client's answers arrive nowhere: a reset takes effect at once or not at all.
#[test]
fn a_client_that_has_not_acknowledged_all_is_cut_without_its_answer() -> Result<()> {
    case(|lab| {
        let said = b"more than it will acknowledge";
        let (tell, told) = channel();
        let told = Mutex::new(told);
        let _service = Service::start(&lab.home, lab.home_at(443), move |mut stream| {
            let mut greeting = vec![0; hello().len()];
            stream.read_exact(&mut greeting)?;
            stream.write_all(&greeting)?;
            let told = lock(&told);
            told.recv_timeout(2 * SOON).context("the word to go on")?;
            stream.write_all(said)?;
            stream::read_to_end(&mut stream).map(drop)
        })?;
        let daemon = edged(lab, "")?;
        let mut stream = echoed(lab, &daemon)?;
        silence(&lab.client, 443)?;
        tell.send(())?;
        stream.read_exact(&mut vec![0; said.len()])?;
        daemon.edgectl().text(&["block", "add", &lab.client.v4.to_string()])?;
        reset_is_seen(&mut stream)
    })
}

#[test]
fn flows_of_peers_that_are_gone_end_and_give_their_ports_back() -> Result<()> {
    for of_client in [true, false] {
        case(|lab| {
            let (sender, ports) = channel();
            let service = Service::start(&lab.home, lab.home_at(443), move |stream| {
                sender.send(stream.peer_addr()?.port())?;
                service::send_back(stream)
            })?;
            let daemon = edged(lab, "")?;
            let mut stream = echoed(lab, &daemon)?;
            let port = ports.recv_timeout(SOON).context("the port towards home")?;
            if of_client {
                silence(&lab.client, 443)?;
            } else {
                silence(&lab.home, port)?;
            }
            table::age(lab, Duration::from_mins(10))?;
            let record = wait::until("the flow to end", GIVEN_UP, || {
                let records = daemon.access_log.records().ok()?;
                records.into_iter().find(|record| record["sni"] == NAME)
            })?;
            let expected = if of_client { "client_gone" } else { "backend_gone" };
            ensure!(record["close"] == expected && record["datapath"] == "flow", "{record}");
            wait_for_flows(&daemon, 0)?;
            reset_is_seen(&mut stream)?;
            ensure!(service.outcome().is_err(), "home was told of a proper end");
            Ok(())
        })?;
    }
    Ok(())
}
