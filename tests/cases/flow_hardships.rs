//! Ordinary hardships of flows: links that narrow, packets lost while the daemon is killed, ports that are
//! reused at once, a FIN long before the end of the data, and kills during hand-overs.

use std::{
    collections::HashSet,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use lab::{
    Context, Edged, Host, Lab, Result, ensure,
    loss::{self, Loss},
    metrics::{ADMIN, Metrics},
    require::{self, Need},
    service::{self, Service},
    stream::{self, End, Pace, Pattern},
    streaming::Streaming,
    wait::{self, SOON},
};

use crate::{
    case, echo_once,
    flow::{NAME, connect, edged, hello, outlive, wait_for_flows},
    router_case,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A daemon that hands everything over to this backend, and counts.
fn edged_to(lab: &Lab, backend: SocketAddr) -> Result<Edged> {
    let route = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{backend}\"\n");
    Edged::plan(lab, &route).daemon("datapath = \"flow\"").daemon(ADMIN).start()
}

fn is_flow_to_its_end(daemon: &Edged) -> Result<()> {
    let record = daemon.access_log.wait_for_host(NAME)?;
    ensure!(record["datapath"] == "flow" && record["close"] == "finished", "{record}");
    Ok(())
}

/// Each of the four links becomes narrower than all before. The edge has to answer for its own, and to translate what
/// routers say of those beyond; the ends see to theirs.
fn every_link_narrows(v6: bool) -> Result<()> {
    router_case(|lab| {
        let (home, edge) = if v6 {
            (lab.home.at_v6(443), lab.edge.at_v6(443))
        } else {
            (lab.home.at(443), lab.edge.at(443))
        };
        let _echo = service::echo(&lab.home, home)?;
        let daemon = edged_to(lab, home)?;
        let mut stream = lab.client.connect(edge)?;
        echo_once(&mut stream, &hello())?;
        wait_for_flows(&daemon, 1)?;
        let [to_client, to_home] = lab.routers()?;
        let streaming = Streaming::start(stream)?;
        let falls: [(&str, &dyn Fn() -> Result<()>); 4] = [
            ("too_big_translated", &|| to_home.set_far_mtu(&lab.home, 1450)),
            ("too_big", &|| to_home.set_near_mtu(&lab.edge, "back", 1400)),
            ("too_big_translated", &|| to_client.set_far_mtu(&lab.client, 1350)),
            ("too_big", &|| to_client.set_near_mtu(&lab.edge, "front", 1300)),
        ];
        for (fate, fall) in falls {
            streaming.wait_for_more(2 * MIB)?;
            let before = Metrics::read(&lab.edge)?.fate(fate);
            fall()?;
            streaming.wait_for_more(2 * MIB)?;
            // Packets that arrived since then may have crossed the link before.
            Metrics::until(&lab.edge, "somebody to be told", |now| {
                ensure!(now.fate(fate) > before, "no {fate}");
                Ok(())
            })?;
        }
        streaming.end()?;
        is_flow_to_its_end(&daemon)
    })
}

#[test]
fn every_link_narrows_in_mid_flow() -> Result<()> {
    every_link_narrows(false)
}

#[test]
fn every_link_narrows_over_ipv6() -> Result<()> {
    every_link_narrows(true)
}

/// Exchanges between connections that are flows from the start, while one of so many packets is lost on its way to
/// either end and the daemon is killed and started again so many times.
fn lossy(one_of: u32, connections: usize, length: u64, kills: usize) -> Result<()> {
    if !require::all(&[Need::Program("nft", "nftables")]) {
        return Ok(());
    }
    case(|lab| {
        loss::one_by_one(&[&lab.client, &lab.home])?;
        let losses = [Loss::to(&lab.client, one_of)?, Loss::to(&lab.home, one_of)?];
        outlive(lab, connections, length, kills)?;
        for loss in &losses {
            ensure!(loss.lost()? > 0, "nothing was lost");
        }
        Ok(())
    })
}

#[test]
fn one_of_a_thousand_packets_is_lost_and_the_daemon_killed() -> Result<()> {
    lossy(1000, 6, 64 * MIB, 2)
}

#[test]
#[ignore = "twelve gigabytes take minutes"]
fn the_same_with_a_gigabyte_each_way() -> Result<()> {
    lossy(1000, 6, GIB, 4)
}

#[test]
fn one_of_a_hundred_packets_is_lost() -> Result<()> {
    lossy(100, 3, 16 * MIB, 1)
}

/// How a connection of a [`reused`](tuples_are_used_again_at_once) tuple ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    ClientResets,
    ClientFirst,
    BackendFirst,
}

impl Ending {
    const ALL: [Self; 3] = [Self::ClientResets, Self::ClientFirst, Self::BackendFirst];
}

#[test]
fn tuples_are_used_again_at_once() -> Result<()> {
    const ROUNDS: usize = 200;
    const LENGTH: usize = 3000;
    case(|lab| {
        // Nor does the client's own stack keep the tuple back.
        lab.client.sysctl(&[("net.ipv4.tcp_max_tw_buckets", "0")])?;
        let service = Service::start(&lab.home, lab.home_at(443), |mut stream| {
            stream.read_exact(&mut vec![0; hello().len()])?;
            let mut said = vec![0; 1 + LENGTH];
            stream.read_exact(&mut said)?;
            stream.write_all(&said)?;
            if said[0] == Ending::BackendFirst as u8 {
                stream.read_exact(&mut [0])?;
                stream.shutdown(Shutdown::Write)?;
            }
            Ok(stream::read_to_end(&mut stream)?.1)
        })?;
        let daemon = edged(lab, "")?;
        let source = SocketAddr::new(lab.client.v4.into(), 40_000);
        for round in 0..ROUNDS {
            let ending = Ending::ALL[round % 3];
            let mut stream = connect_again(&lab.client, source, lab.edge.at(443))?;
            let said = [&[ending as u8], &*Pattern::new(round as u64).bytes(LENGTH)].concat();
            stream.write_all(&hello())?;
            echo_once(&mut stream, &said).with_context(|| format!("round {round}, {ending:?}"))?;
            // Every second one ends in the middle of its hand-over, or before it.
            if round % 2 == 0 {
                wait_for_flows(&daemon, 1)?;
            }
            if ending == Ending::ClientResets {
                stream::reset(stream)?;
            } else {
                match ending {
                    Ending::BackendFirst => stream.write_all(b"!")?,
                    _ => stream.shutdown(Shutdown::Write)?,
                }
                let (rest, end) = stream::read_to_end(&mut stream)?;
                ensure!(rest.is_empty() && end == End::Fin, "round {round}: {end:?} after {rest:?}");
                drop(stream);
            }
            let expected = if ending == Ending::ClientResets { End::Reset } else { End::Fin };
            let seen = service.outcome().with_context(|| format!("round {round}, {ending:?}"))?;
            ensure!(seen == expected, "round {round}: the backend saw {seen:?}, not {expected:?}");
        }
        let records =
            daemon.access_log.wait_for_count(ROUNDS, "the rounds", |record| record["sni"] == NAME)?;
        let ids: HashSet<_> = records.iter().map(|record| record["id"].as_u64()).collect();
        ensure!(ids.len() == records.len(), "one is accounted for twice: {records:?}");
        let flows = records.iter().filter(|record| record["datapath"] == "flow").count();
        println!("{flows} of {ROUNDS} were flows");
        ensure!(flows >= ROUNDS / 2, "only {flows} were flows");
        wait_for_flows(&daemon, 0).map(drop)
    })
}

/// Connects from a port as soon as the host itself has forgotten the connection before.
fn connect_again(host: &Host, source: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let kept = |error: &lab::Error| {
        let kinds = [ErrorKind::AddrInUse, ErrorKind::AddrNotAvailable];
        error.downcast_ref::<std::io::Error>().is_some_and(|error| kinds.contains(&error.kind()))
    };
    wait::until("the port to be free", SOON, || match host.connect_by(source, to) {
        Err(error) if kept(&error) => None,
        connected => Some(connected),
    })?
}

/// 100 MB go one way long after the other way has ended.
fn after_fin(of_client: bool) -> Result<()> {
    const LENGTH: u64 = 100 * MIB;
    let pattern = Pattern::new(71);
    let one_way = move |stream: &mut TcpStream, sends: bool| {
        if sends {
            ensure!(stream.read(&mut [0])? == 0, "the other side's FIN must come first");
            pattern.send(stream, LENGTH, Pace::Steady)?;
            stream.shutdown(Shutdown::Write)?;
        } else {
            stream.shutdown(Shutdown::Write)?;
            let received = pattern.receive(stream, Pace::Steady)?;
            ensure!(received == (LENGTH, End::Fin), "{received:?}");
        }
        Ok(())
    };
    case(|lab| {
        let service = Service::start(&lab.home, lab.home_at(443), move |mut stream| {
            stream.read_exact(&mut vec![0; hello().len()])?;
            stream.write_all(b"ready")?;
            crate::expect(&mut stream, "go")?;
            one_way(&mut stream, of_client)
        })?;
        let daemon = edged(lab, "")?;
        let mut stream = connect(lab)?;
        crate::expect(&mut stream, "ready")?;
        wait_for_flows(&daemon, 1)?;
        stream.write_all(b"go")?;
        one_way(&mut stream, !of_client)?;
        service.outcome()?;
        is_flow_to_its_end(&daemon)
    })
}

#[test]
fn a_flow_goes_on_after_the_clients_fin() -> Result<()> {
    after_fin(true)
}

#[test]
fn a_flow_goes_on_after_the_backends_fin() -> Result<()> {
    after_fin(false)
}

/// The result at one end of a connection whose edge was killed: how many bytes arrived, and whether they were
/// all.
fn exchange_or_end(stream: &TcpStream, send: Pattern, receive: Pattern, length: u64) -> Result<(u64, bool)> {
    thread::scope(|scope| {
        scope.spawn(|| {
            // A side that cannot send gets the same error when it reads.
            if send.send(&mut &*stream, length, Pace::Uneven).is_ok() {
                let _ = stream.shutdown(Shutdown::Write);
            }
        });
        let (received, end) = receive.receive(&mut &*stream, Pace::Uneven)?;
        Ok((received, received == length && end == End::Fin))
    })
}

#[test]
fn a_kill_in_the_middle_of_hand_overs_leaves_nobody_waiting() -> Result<()> {
    const ROUNDS: u64 = 8;
    const CLIENTS: usize = 12;
    const LENGTH: u64 = 300_000;
    let (up, down) = (Pattern::new(81), Pattern::new(82));
    case(|lab| {
        let service = Service::start(&lab.home, lab.home_at(443), move |mut stream| {
            match stream.read_exact(&mut vec![0; hello().len()]) {
                Ok(()) => exchange_or_end(&stream, down, up, LENGTH),
                Err(error) if error.kind() == ErrorKind::WouldBlock => Err(error.into()),
                Err(_) => Ok((0, false)),
            }
        })?;
        let (mut whole, mut begun, mut silent) = (0, 0, 0);
        for round in 0..ROUNDS {
            let daemon = edged(lab, "")?;
            let accepted = service.accepted();
            let connect = || lab.client.connect(lab.edge.at(443));
            let streams = (0..CLIENTS).map(|_| connect()).collect::<Result<Vec<_>>>()?;
            let outcomes = thread::scope(|scope| {
                let client = |mut stream: TcpStream| {
                    if stream.write_all(&hello()).is_err() {
                        return Ok((0, false));
                    }
                    exchange_or_end(&stream, up, down, LENGTH).context("at a client")
                };
                let clients: Vec<_> =
                    streams.into_iter().map(|stream| scope.spawn(move || client(stream))).collect();
                wait::until_true("the first at home", SOON, || service.accepted() > accepted)?;
                // Not for anything to happen: from the first moments of the hand-overs to the last.
                thread::sleep(Duration::from_millis(4 * round));
                daemon.kill()?;
                let _next = edged(lab, "")?;
                let outcomes: Result<Vec<_>> = clients
                    .into_iter()
                    .map(|client| client.join().unwrap_or_else(|_| lab::bail!("a client panicked")))
                    .collect();
                outcomes
            })?;
            for (received, is_whole) in outcomes {
                match (received, is_whole) {
                    (_, true) => whole += 1,
                    (0, _) => silent += 1,
                    _ => begun += 1,
                }
            }
        }
        // The last round's may still have been looking into what it found.
        let _last = edged(lab, "")?;
        for _ in 0..service.accepted() {
            service.outcome().context("at the backend")?;
        }
        println!("{whole} went on, {silent} ended before the first byte, {begun} after it");
        Ok(())
    })
}

/// Connections that say nothing while their hand-over is cut short miss nothing, and go on.
#[test]
fn a_kill_in_the_middle_of_quiet_hand_overs_harms_nobody() -> Result<()> {
    const CLIENTS: usize = 24;
    const ROUNDS: usize = 20;
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let mut unfinished = 0;
        for _ in 0..ROUNDS {
            let daemon = edged(lab, "")?;
            let connect = || lab.client.connect(lab.edge.at(443));
            let mut streams = (0..CLIENTS).map(|_| connect()).collect::<Result<Vec<_>>>()?;
            // With the first, the programs are attached.
            echo_once(&mut streams[0], &hello())?;
            wait_for_flows(&daemon, 1)?;
            for stream in &mut streams[1..] {
                echo_once(stream, &hello())?;
            }
            daemon.kill()?;
            let next = edged(lab, "")?;
            let adopted = next.wait_for_log("flows of an earlier daemon go on")?;
            let count = |line: &str, what: &str| -> Result<usize> {
                let (_, rest) = line.split_once(what).with_context(|| format!("no {what} in {line}"))?;
                let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
                Ok(digits.parse()?)
            };
            let flows = count(&adopted, " flows=")?;
            let begun = count(&adopted, " unfinished=")?;
            if begun != 0 {
                let finished = next.wait_for_log("hand-overs of an earlier daemon are finished")?;
                ensure!(count(&finished, " lost=")? == 0, "{finished}");
            }
            unfinished += begun;
            // The others were on their sockets still.
            let alive =
                streams.iter_mut().filter_map(|stream| echo_once(stream, b"still there?").ok()).count();
            ensure!(alive == flows, "{alive} of {flows} flows are alive");
            next.edgectl().run(&["connections", "close", "--all"])?;
            if unfinished >= 5 {
                return Ok(());
            }
        }
        lab::bail!("{unfinished} hand-overs were cut short in {ROUNDS} rounds: the case shows little")
    })
}
