//! Connections that become flows: whole through everything, through the daemon's death too, and still the operator's
//! to see and to end.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use lab::{
    Context, Edged, Lab, Result, ensure,
    hello::ClientHello,
    service::{self, Service},
    stream::{self, End, Pace, Pattern},
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{behind_firewall, carrying::exchange, case, echo_once, tunnel_case, ways::by};

const MIB: u64 = 1 << 20;
pub(crate) const NAME: &str = "flow.example";

pub(crate) fn hello() -> Vec<u8> {
    ClientHello::new(NAME).post_quantum().records()
}

pub(crate) fn body(lab: &Lab, extra: &str) -> String {
    let route = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address());
    format!("{extra}\n{route}")
}

pub(crate) fn edged(lab: &Lab, extra: &str) -> Result<Edged> {
    Edged::plan(lab, &body(lab, extra)).daemon("datapath = \"flow\"").start()
}

pub(crate) fn connect(lab: &Lab) -> Result<TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    stream.write_all(&hello())?;
    Ok(stream)
}

/// A connection whose echo has come back, and that is a flow now.
pub(crate) fn echoed(lab: &Lab, edged: &Edged) -> Result<TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    echo_once(&mut stream, &hello())?;
    wait_for_flows(edged, 1)?;
    Ok(stream)
}

pub(crate) fn wait_for_flows(edged: &Edged, count: usize) -> Result<Vec<Value>> {
    wait::until_ok(&format!("{count} flows"), SOON, || {
        let mut list = edged.edgectl().list("connections")?;
        list.retain(|connection| connection["datapath"] == "flow");
        ensure!(list.len() == count, "{} flows, not {count}", list.len());
        Ok(list)
    })
}

/// A service that exchanges patterns behind the hello.
pub(crate) fn exchanging(lab: &Lab, length: u64) -> Result<(Service<()>, Pattern, Pattern)> {
    let (up, down) = (Pattern::new(31), Pattern::new(32));
    let service = Service::start(&lab.home, lab.home_at(443), move |mut stream| {
        let expected = hello();
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got).context("reading the hello")?;
        ensure!(got == expected, "the hello was changed");
        exchange(&stream, down, up, length)
    })?;
    Ok((service, up, down))
}

pub(crate) fn reset_is_seen(stream: &mut TcpStream) -> Result<()> {
    let (rest, end) = stream::read_to_end(stream)?;
    ensure!(end == End::Reset, "{end:?} after {} bytes", rest.len());
    Ok(())
}

#[test]
fn flows_outlive_the_daemon_and_are_accounted_for_by_the_next_one() -> Result<()> {
    case(|lab| outlive(lab, 4, 256 * MIB, 2))
}

#[test]
fn flows_outlive_the_daemon_behind_a_firewall() -> Result<()> {
    behind_firewall(|| case(|lab| outlive(lab, 4, 64 * MIB, 1)))
}

/// Exchanges this many bytes both ways on each of some flows, while the daemon is killed and started so many times.
pub(crate) fn outlive(lab: &Lab, connections: usize, length: u64, kills: usize) -> Result<()> {
    // A transfer by the slowest machine, whose every step is watched by the sockets' own time limits.
    let patience = Duration::from_mins(10);
    let (up, down) = (Pattern::new(33), Pattern::new(34));
    let service = Service::start(&lab.home, lab.home_at(443), move |mut stream| {
        stream.read_exact(&mut vec![0; hello().len()])?;
        stream.write_all(b"ready")?;
        // As long as the clients wait for each other.
        stream.set_read_timeout(Some(wait::patient(2 * SOON)))?;
        crate::expect(&mut stream, "go")?;
        exchange(&stream, down, up, length)
    })?;
    let (go, may_end) = (AtomicBool::new(false), AtomicBool::new(false));
    let client = || {
        let mut stream = connect(lab)?;
        crate::expect(&mut stream, "ready")?;
        // Flows from the start, so that none is lost with its sockets.
        wait::until_true("all to be flows", 2 * SOON, || go.load(Ordering::Acquire))?;
        stream.write_all(b"go")?;
        thread::scope(|scope| {
            let sending = scope.spawn(|| {
                up.send(&mut &stream, length, Pace::Uneven)?;
                // The line of a flow that ends in the very moment of a kill may be lost: it waits for others to be
                // written with it.
                wait::until_true("the last kill", 4 * SOON, || may_end.load(Ordering::Acquire))?;
                Ok(stream.shutdown(Shutdown::Write)?)
            });
            let received = down.receive(&mut &stream, Pace::Uneven)?;
            ensure!(received == (length, End::Fin), "{received:?} is not all {length} bytes");
            sending.join().unwrap_or_else(|_| lab::bail!("the sender panicked"))
        })
        .context("at the client")
    };
    let daemon = thread::scope(|scope| {
        let mut daemon = edged(lab, "")?;
        let clients: Vec<_> = (0..connections).map(|_| scope.spawn(client)).collect();
        wait_for_flows(&daemon, connections)?;
        go.store(true, Ordering::Release);
        for _ in 0..kills {
            daemon.kill()?;
            daemon = edged(lab, "")?;
        }
        may_end.store(true, Ordering::Release);
        for client in clients {
            client.join().unwrap_or_else(|_| lab::bail!("a client panicked"))?;
        }
        Ok::<_, lab::Error>(daemon)
    })?;
    for _ in 0..connections {
        service.outcome_within(patience).context("at the backend")?;
    }
    let records =
        daemon.access_log.wait_for_count(connections, "the connections", |record| record["sni"] == NAME)?;
    for record in records {
        let expected_up = length + (hello().len() + "go".len()) as u64;
        let expected_down = length + "ready".len() as u64;
        ensure!(record["bytes_up"] == expected_up, "{record}");
        ensure!(record["bytes_down"] == expected_down, "{record}");
        ensure!(record["close"] == "finished" && record["datapath"] == "flow", "{record}");
    }
    let nobody = |routes: &Value| {
        ensure!(routes[0]["connections"] == 0, "{routes}");
        Ok(())
    };
    daemon.edgectl().until(&["routes", "list"], nobody).map(drop)
}

/// Exchanges between clients that come one after the other, so many of each of some threads: none may be lost, however
/// it is being handed over. Gives how many were flows in the end.
fn storm(each: usize) -> Result<usize> {
    const THREADS: usize = 20;
    const LENGTH: u64 = 2_000_000;
    let mut flows = 0;
    case(|lab| {
        let (service, up, down) = exchanging(lab, LENGTH)?;
        let daemon = edged(lab, "")?;
        thread::scope(|scope| {
            let clients: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| (0..each).try_for_each(|_| exchange(&connect(lab)?, up, down, LENGTH)))
                })
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().unwrap_or_else(|_| lab::bail!("a client panicked")))
        })?;
        for _ in 0..THREADS * each {
            service.outcome().context("at the backend")?;
        }
        let all = daemon
            .access_log
            .wait_for_count(THREADS * each, "all", |record| record["close"] == "finished")?;
        flows = all.iter().filter(|record| record["datapath"] == "flow").count();
        ensure!(flows >= all.len() / 60, "only {flows} of {} were handed over", all.len());
        Ok(())
    })?;
    Ok(flows)
}

#[test]
fn hundreds_of_hand_overs_while_data_streams_lose_nothing() -> Result<()> {
    println!("{} were flows in the end", storm(30)?);
    Ok(())
}

#[test]
#[ignore = "takes minutes"]
fn ten_thousand_hand_overs_while_data_streams_lose_nothing() -> Result<()> {
    println!("{} were flows in the end", storm(500)?);
    Ok(())
}

/// Sends megabytes through an echo service once the connection is a flow, and looks at its line in the access log.
fn carried_as_flow(daemon: &Edged, mut stream: TcpStream) -> Result<()> {
    wait_for_flows(daemon, 1)?;
    let piece = Pattern::new(7).bytes(100_000);
    for _ in 0..20 {
        echo_once(&mut stream, &piece)?;
    }
    drop(stream);
    let record =
        daemon.access_log.wait_for("the end", |record| record["bytes_up"].as_u64() > Some(1_900_000))?;
    ensure!(record["datapath"] == "flow" && record["close"] == "finished", "{record}");
    daemon.wait_for_connections(0).map(drop)
}

fn an_echo_is_a_flow(lab: &Lab) -> Result<()> {
    let _echo = service::echo(&lab.home, lab.home_at(443))?;
    let daemon = edged(lab, "")?;
    let stream = echoed(lab, &daemon)?;
    carried_as_flow(&daemon, stream)
}

#[test]
fn a_client_without_an_option_gets_a_backend_leg_without_it() -> Result<()> {
    for option in ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"] {
        case(|lab| {
            lab.client.sysctl(&[(&format!("net.ipv4.{option}"), "0")])?;
            an_echo_is_a_flow(lab).with_context(|| format!("without {option}"))
        })?;
    }
    case(|lab| {
        lab.client.sysctl(&[("net.ipv4.tcp_ecn", "1")])?;
        lab.edge.sysctl(&[("net.ipv4.tcp_ecn", "2")])?;
        lab.home.sysctl(&[("net.ipv4.tcp_ecn", "2")])?;
        an_echo_is_a_flow(lab).context("with ECN")
    })
}

#[test]
fn legs_that_differ_stay_on_sockets() -> Result<()> {
    case(|lab| {
        lab.home.sysctl(&[("net.ipv4.tcp_timestamps", "0")])?;
        let (service, up, down) = exchanging(lab, MIB)?;
        let daemon = edged(lab, "")?;
        exchange(&connect(lab)?, up, down, MIB)?;
        service.outcome()?;
        let record = daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["datapath"] != "flow" && record["close"] == "finished", "{record}");
        Ok(())
    })
}

#[test]
fn over_ipv6_and_between_the_families() -> Result<()> {
    for (client_v6, home_v6) in [(true, true), (false, true), (true, false)] {
        case(|lab| {
            let to = if home_v6 { lab.home.at_v6(7000) } else { lab.home.at(7000) };
            let _echo = service::echo(&lab.home, to)?;
            let listener = format!(
                "[[listener]]\nname = \"raw\"\nbind = [\"[::]:7000\"]\nprotocol = \"tcp\"\nto = \"{to}\"\n"
            );
            let daemon = Edged::plan(lab, &listener).daemon("datapath = \"flow\"").start()?;
            let edge = if client_v6 { lab.edge.at_v6(7000) } else { lab.edge.at(7000) };
            let mut stream = lab.client.connect(edge)?;
            echo_once(&mut stream, b"anybody there?")?;
            carried_as_flow(&daemon, stream).with_context(|| format!("{edge} to {to}"))
        })?;
    }
    Ok(())
}

#[test]
fn through_a_wireguard_tunnel() -> Result<()> {
    tunnel_case(an_echo_is_a_flow)
}

#[test]
fn a_flow_shows_its_tunnel_and_what_its_backend_is_good_for() -> Result<()> {
    tunnel_case(|lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        let _echo = service::echo(&lab.home, (tunnel.home_address(), 443).into())?;
        let route = format!("[[route]]\nhost = \"{NAME}\"\nto = \"home\"\n");
        let pool = format!(
            "[[pool]]\nname = \"home\"\nhealth = {{ kind = \"tcp\" }}\n[[pool.backend]]\n{}\n{route}",
            by(tunnel, 443)
        );
        let start = || Edged::plan(lab, &pool).daemon("datapath = \"flow\"").start();
        let shown = |daemon: &Edged, device: Value, state: Value| {
            wait::until_ok(&format!("{device} and {state}"), SOON, || {
                let [flow] = &*wait_for_flows(daemon, 1)? else { lab::bail!("one flow") };
                ensure!(flow["device"] == device && flow["backend_state"] == state, "{flow}");
                Ok(())
            })
        };
        let device = || Value::from(tunnel.edge_device());
        let daemon = start()?;
        let mut stream = echoed(lab, &daemon)?;
        shown(&daemon, device(), "up".into())?;
        let to = format!("{}:443", tunnel.home_address());
        daemon.edgectl().text(&["backends", "drain", &to])?;
        shown(&daemon, device(), "drained".into())?;
        daemon.kill()?;
        let daemon = start()?;
        shown(&daemon, device(), "drained".into())?;
        // It goes on without its backend in the configuration too.
        daemon.rewrite(&format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address()))?;
        daemon.edgectl().text(&["reload"])?;
        shown(&daemon, Value::Null, Value::Null)?;
        echo_once(&mut stream, b"still there")
    })
}

#[test]
fn auto_hands_over_what_is_worth_it_and_leaves_short_ones_alone() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = Edged::plan(lab, &body(lab, "")).start()?;
        let mut short = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut short, &hello())?;
        drop(short);
        let record = daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["datapath"] == "copy", "{record}");
        let mut long = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut long, &hello())?;
        let piece = Pattern::new(5).bytes(50_000);
        for _ in 0..10 {
            echo_once(&mut long, &piece)?;
        }
        let [flow] = &*wait_for_flows(&daemon, 1)? else { lab::bail!("one flow") };
        ensure!(flow["host"] == NAME && flow["route"] == NAME && flow["listener"] == "https", "{flow}");
        echo_once(&mut long, &piece)?;
        // One that says little is handed over when it is old.
        let mut quiet = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut quiet, &hello())?;
        wait::until_ok("the quiet one to become a flow", 2 * SOON, || {
            let list = daemon.edgectl().list("connections")?;
            ensure!(
                list.iter().all(|connection| connection["datapath"] == "flow") && list.len() == 2,
                "{list:?}"
            );
            Ok(())
        })?;
        echo_once(&mut quiet, &piece)
    })
}

#[test]
fn flows_are_seen_counted_and_ended_by_the_operator() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "")?;
        let mut stream = echoed(lab, &daemon)?;
        let sent = Pattern::new(6).bytes(100_000);
        echo_once(&mut stream, &sent)?;
        let total = (hello().len() + sent.len()) as u64;
        let counted = |connections: usize| {
            daemon.edgectl().until(&["routes", "list"], |routes| {
                let [route] = &**routes.as_array().context("no list")? else {
                    lab::bail!("one route: {routes}")
                };
                ensure!(route["connections"] == connections && route["bytes_up"] == total, "{route}");
                ensure!(route["bytes_down"] == total, "{route}");
                Ok(())
            })
        };
        counted(1)?;
        let list = wait_for_flows(&daemon, 1)?;
        daemon.edgectl().until(&["backends", "list"], |backends| {
            ensure!(backends[0]["connections"] == 1, "{backends}");
            Ok(())
        })?;
        daemon.edgectl().text(&["connections", "close", &list[0]["id"].to_string()])?;
        reset_is_seen(&mut stream)?;
        let record = daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "closed_by_operator" && record["bytes_up"] == total, "{record}");
        wait_for_flows(&daemon, 0)?;
        counted(0)?;
        // A block cuts what is there.
        let mut stream = echoed(lab, &daemon)?;
        let client = stream.local_addr()?.ip().to_string();
        daemon.edgectl().text(&["block", "add", &client])?;
        daemon.access_log.wait_for("the block", |record| record["close"] == "blocked")?;
        daemon.edgectl().text(&["block", "remove", &client])?;
        reset_is_seen(&mut stream)
    })
}

#[test]
fn a_removed_route_takes_its_flows_along_if_told_so() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = Edged::plan(lab, "").daemon("datapath = \"flow\"").start()?;
        let to = lab.home_address().to_string();
        daemon.edgectl().text(&["routes", "add", NAME, &to])?;
        let mut stream = echoed(lab, &daemon)?;
        daemon.edgectl().text(&["routes", "remove", NAME, "--close"])?;
        reset_is_seen(&mut stream)?;
        let record = daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "route_removed", "{record}");
        Ok(())
    })
}

#[test]
fn an_idle_flow_is_ended() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        // It has to be seen before.
        let daemon = edged(lab, "[limits]\nidle_timeout = \"5s\"\n")?;
        let mut stream = echoed(lab, &daemon)?;
        reset_is_seen(&mut stream)?;
        let record = daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "idle_timeout" && record["datapath"] == "flow", "{record}");
        Ok(())
    })
}

#[test]
fn a_reset_goes_through_as_it_is() -> Result<()> {
    case(|lab| {
        let service = Service::start(&lab.home, lab.home_at(443), |mut stream| {
            stream.read_exact(&mut vec![0; hello().len()])?;
            stream.write_all(b"ready")?;
            Ok(stream::read_to_end(&mut stream)?.1)
        })?;
        let daemon = edged(lab, "")?;
        let mut stream = connect(lab)?;
        crate::expect(&mut stream, "ready")?;
        wait_for_flows(&daemon, 1)?;
        stream::reset(stream)?;
        ensure!(service.outcome()? == End::Reset);
        let record = daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "client_reset" && record["datapath"] == "flow", "{record}");
        Ok(())
    })
}
