//! Every reason for which a connection stays on its sockets, as far as it can be brought about from outside: the
//! connection is served as ever, and the reason is counted.
//!
//! Not here: `addresses_taken` and `kernel`. A SYN frees the addresses of a flow that is closed and does not reach
//! the edge on those of a live one; and a call fails where the machine has no memory.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, TcpStream},
    process::Command,
    thread,
};

use lab::{
    Context, Edged, Lab, Result, ensure,
    metrics::{ADMIN, Metrics},
    service,
    stream::{self, End, Pattern},
    table,
    topology::CLIENT_SECOND,
    wait::{self, SOON},
};

use crate::{
    case, echo_once,
    flow::{NAME, connect, hello, wait_for_flows},
    flow_abuse::{source, stall},
};

fn edged(lab: &Lab, body: &str) -> Result<Edged> {
    Edged::plan(lab, body).daemon("datapath = \"flow\"").daemon(ADMIN).start()
}

fn route(to: impl std::fmt::Display) -> String {
    format!("[[route]]\nhost = \"{NAME}\"\nto = \"{to}\"\n")
}

/// A connection that is served and stays on its sockets for this reason.
fn stays(lab: &Lab, reason: &str) -> Result<TcpStream> {
    let before = Metrics::read(&lab.edge)?.stays(reason);
    let stream = lab.client.connect(lab.edge.at(443))?;
    served(lab, stream, reason, before)
}

fn served(lab: &Lab, mut stream: TcpStream, reason: &str, before: u64) -> Result<TcpStream> {
    echo_once(&mut stream, &hello())?;
    Metrics::until(&lab.edge, &format!("{reason} to be counted"), |now| {
        // One that waits for its turn is counted whenever it is tried again.
        ensure!(now.stays(reason) > before, "{reason}: {}", now.stays(reason));
        Ok(())
    })?;
    echo_once(&mut stream, &Pattern::new(91).bytes(100_000))?;
    Ok(stream)
}

/// A case of one reason, in a lab and with a daemon made for it.
fn one_stays(reason: &str, prepare: impl FnOnce(&Lab) -> Result<String>) -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, &prepare(lab)?)?;
        drop(stays(lab, reason)?);
        let record = daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["datapath"] != "flow" && record["close"] == "finished", "{record}");
        Ok(())
    })
}

#[test]
fn where_the_legs_differ() -> Result<()> {
    one_stays("timestamps_differ", |lab| {
        lab.home.sysctl(&[("net.ipv4.tcp_timestamps", "0")])?;
        Ok(route(lab.home_address()))
    })?;
    one_stays("ecn_differs", |lab| {
        lab.client.sysctl(&[("net.ipv4.tcp_ecn", "1")])?;
        lab.edge.sysctl(&[("net.ipv4.tcp_ecn", "2")])?;
        lab.home.sysctl(&[("net.ipv4.tcp_ecn", "0")])?;
        Ok(route(lab.home_address()))
    })
}

#[test]
fn where_the_way_home_has_become_narrower_than_the_client_was_told() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let _daemon = edged(lab, &route(lab.home_address()))?;
        let stream = lab.client.connect(lab.edge.at(443))?;
        let home = format!("{}/32", lab.home.v4);
        lab.edge.ip(&["route", "add", &home, "dev", "back", "mtu", "1300"])?;
        served(lab, stream, "path_mtu", 0).map(drop)
    })
}

#[test]
fn where_the_backend_is_here() -> Result<()> {
    case(|lab| {
        let here = "127.0.0.1:7000".parse()?;
        let _echo = service::echo(&lab.edge, here)?;
        let _daemon = edged(lab, &route(here))?;
        stays(lab, "device").map(drop)
    })
}

#[test]
fn where_the_connection_home_was_there_before() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let pool = format!(
            "[[pool]]\nname = \"warm\"\nwarm = 2\nhealth = {{ kind = \"tcp\" }}\n[[pool.backend]]\nto = \"{}\"\n{}",
            lab.home_at(443),
            route("warm")
        );
        let _daemon = edged(lab, &pool)?;
        // The first clients are what the stock begins with.
        wait::until_ok("a warm connection", SOON, || {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            echo_once(&mut stream, &hello())?;
            ensure!(Metrics::read(&lab.edge)?.stays("port") > 0, "it was connected for this client");
            Ok(())
        })
    })
}

#[test]
fn where_the_client_is_reached_by_another_device_alone() -> Result<()> {
    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let edge = lab.edge.namespace().name();
        lab.client.ip(&["link", "add", "eth1", "type", "veth", "peer", "name", "side", "netns", edge])?;
        for (host, devices) in [(&lab.client, ["all", "eth0", "eth1"]), (&lab.edge, ["all", "front", "side"])]
        {
            for device in devices {
                host.sysctl(&[(&format!("net.ipv4.conf.{device}.rp_filter"), "0")])?;
            }
        }
        lab.client.ip(&["link", "set", "eth1", "up"])?;
        lab.edge.ip(&["link", "set", "side", "up"])?;
        lab.client.ip(&["address", "add", &format!("{CLIENT}/32"), "dev", "lo"])?;
        lab.edge.ip(&["route", "add", &format!("{CLIENT}/32"), "dev", "side"])?;
        let _daemon = edged(lab, &route(lab.home_address()))?;
        let stream = lab.client.connect_from(CLIENT, lab.edge.at(443))?;
        served(lab, stream, "asymmetric_route", 0).map(drop)
    })
}

#[test]
fn where_a_side_has_closed_already() -> Result<()> {
    case(|lab| {
        // Its end is on the way as soon as it is connected, and usually there before a hand-over can begin.
        let _service = service::named(&lab.home, lab.home_at(443), "good bye")?;
        let _daemon = edged(lab, &route(lab.home_address()))?;
        wait::until_ok("an end that comes first", SOON, || {
            let mut stream = connect(lab)?;
            let answer = stream::read_to_end(&mut stream)?;
            ensure!(answer == (b"good bye".to_vec(), End::Fin), "{answer:?}");
            drop(stream);
            ensure!(Metrics::read(&lab.edge)?.stays("closing") > 0, "it was handed over before");
            Ok(())
        })
    })
}

#[test]
fn where_the_handshake_came_before_the_daemon() -> Result<()> {
    // A listening socket of the service manager's, which starts the daemon for the first client.
    const ACTIVATE: &str = "
import os, select, socket, sys
listener = socket.socket(socket.AF_INET6)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('::', 443))
listener.listen(64)
select.select([listener], [], [])
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='https')
os.execv(sys.argv[1], sys.argv[1:])
";
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let body = route(lab.home_address());
        let plan = Edged::plan(lab, &body).daemon("datapath = \"flow\"").daemon(ADMIN);
        thread::scope(|scope| {
            let daemon = scope.spawn(|| plan.by(&["/usr/bin/python3", "-c", ACTIVATE]).start());
            let early = wait::until_ok("the service manager", SOON, || lab.client.connect(lab.edge.at(443)));
            let daemon = daemon.join().unwrap_or_else(|_| lab::bail!("the start panicked"))?;
            served(lab, early?, "handshake_not_seen", 0)?;
            let doctor = daemon.edgectl().run(&["doctor", "-v"])?;
            let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
            ensure!(doctor.contains("Slice=edge.slice"), "{doctor}");
            // Later connections are seen.
            let mut stream = connect(lab)?;
            stream.write_all(b"later")?;
            wait_for_flows(&daemon, 1).map(drop)
        })
    })
}

#[test]
fn where_clients_of_several_networks_have_shown_that_flows_fail() -> Result<()> {
    const ALL: &str = "flows to this backend do not work";
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let mut daemon = edged(lab, &route(lab.home_address()))?;
        let mut streams = Vec::new();
        for nth in 0..3 {
            let source = source(lab, nth)?;
            streams.push(stall(lab, &daemon, source, usize::from(nth) + 1)?);
            wait::until_true("the stall to be noticed", SOON, || {
                daemon.process().whole_log().is_ok_and(|log| log.contains(&format!("client={source}")))
            })?;
            if nth == 0 {
                // Alone it is left alone.
                let stream = lab.client.connect_from(source, lab.edge.at(443))?;
                drop(served(lab, stream, "distrusted_source", 0)?);
            }
        }
        wait::until_true("the backend to be blamed", SOON, || {
            daemon.process().whole_log().is_ok_and(|log| log.contains(ALL))
        })?;
        let stream = lab.client.connect_from(source(lab, 3)?, lab.edge.at(443))?;
        drop(served(lab, stream, "distrusted", 0)?);
        // Existing flows continue.
        streams.iter_mut().try_for_each(|stream| echo_once(stream, b"still there"))
    })
}

#[test]
fn where_the_table_is_full_and_nobody_is_evicted() -> Result<()> {
    const FLOWS: u32 = 4;
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        edged(lab, &route(lab.home_address()))?.terminate()?;
        table::shrink(lab, FLOWS)?;
        let daemon = edged(lab, &route(lab.home_address()))?;
        let mut flows = (0..FLOWS)
            .map(|_| {
                let mut stream = lab.client.connect(lab.edge.at(443))?;
                echo_once(&mut stream, &hello())?;
                Ok(stream)
            })
            .collect::<Result<Vec<_>>>()?;
        let there = wait_for_flows(&daemon, FLOWS as usize)?;
        let mut others = (0..3).map(|_| stays(lab, "table_full")).collect::<Result<Vec<_>>>()?;
        for stream in flows.iter_mut().chain(&mut others) {
            echo_once(stream, &Pattern::new(92).bytes(50_000))?;
        }
        let ids = |list: &[serde_json::Value]| list.iter().map(|flow| flow["id"].clone()).collect::<Vec<_>>();
        let mut left = [ids(&there), ids(&wait_for_flows(&daemon, FLOWS as usize)?)];
        for ids in &mut left {
            ids.sort_unstable_by_key(serde_json::Value::as_u64);
        }
        ensure!(left[0] == left[1], "flows were evicted: {left:?}");
        // When one is gone, there is room for one of those who wait.
        stream::reset(flows.swap_remove(0)).context("making room")?;
        wait::until_ok("a place", SOON, || {
            for stream in &mut others {
                echo_once(stream, &Pattern::new(93).bytes(50_000))?;
            }
            let list = daemon.edgectl().list("connections")?;
            let count = list.iter().filter(|connection| connection["datapath"] == "flow").count();
            ensure!(count == FLOWS as usize && list.len() == 6, "{count} flows of {}", list.len());
            Ok(())
        })
    })
}

#[test]
fn where_a_source_has_as_many_flows_as_it_may() -> Result<()> {
    // As docs/flow.md has it.
    const QUOTA: u16 = 16_384;
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let _daemon = edged(lab, &route(lab.home_address()))?;
        // Not from the ports of these flows: they lead to nobody.
        lab.client.sysctl(&[("net.ipv4.ip_local_port_range", "20000 65000")])?;
        table::add_flows(lab, lab.client.at(0), lab.edge.at(443), QUOTA)?;
        wait::until_ok("the quota to be noticed", SOON, || {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            echo_once(&mut stream, &hello())?;
            ensure!(Metrics::read(&lab.edge)?.stays("source_quota") > 0, "it is a flow");
            Ok(())
        })?;
        // Another source has its own: no socket is left.
        let mut other = lab.client.connect_from(CLIENT_SECOND.into(), lab.edge.at(443))?;
        echo_once(&mut other, &hello())?;
        wait::until_true("the other's flow", SOON, || {
            let mut ss = Command::new("ss");
            ss.args(["-tnH", "state", "established", "dst", &CLIENT_SECOND.to_string()]);
            lab.edge.text_of(ss).is_ok_and(|sockets| sockets.is_empty())
        })?;
        echo_once(&mut other, b"still there")
    })
}
