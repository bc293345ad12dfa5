//! An off-path attacker can neither end nor move a flow: forged segments from everywhere, at rest and during
//! a stream. Only a reset with the exact number ends it, which is TCP's own rule.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::channel,
    },
    thread,
    time::Duration,
};

use lab::{
    Context, Edged, Host, Lab, Result, ensure,
    forge::{Forger, Kind, Numbers, Observer, Tuple},
    metrics::{ADMIN, Metrics},
    service::{self, Service},
    stream::{self, End, Pattern},
    streaming::Streaming,
    wait::{self, SOON},
};

use crate::{
    case, echo_once,
    flow::{NAME, hello, reset_is_seen, wait_for_flows},
};

/// Before all that was sent, and behind every window that there may be.
const FAR: [i64; 6] = [-(1 << 31), -(1 << 30), -(1 << 17), 1 << 25, 1 << 30, (1 << 31) - 1];

/// Bytes of an echo.
const SPOKEN: usize = 3000;

/// A flow, with both its legs as its ends name them.
struct Victim<'a, T> {
    lab: &'a Lab,
    daemon: Edged,
    service: Service<T>,
    stream: TcpStream,
    /// Packets of the client, and of the backend, as they come to the edge.
    up: Tuple,
    down: Tuple,
}

impl<'a, T: Send + 'static> Victim<'a, T> {
    /// To a service that sends back what it gets, at first.
    fn new(
        lab: &'a Lab,
        v6: bool,
        serve: impl Fn(TcpStream) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (home, edge) = if v6 {
            (lab.home.at_v6(443), lab.edge.at_v6(443))
        } else {
            (lab.home.at(443), lab.edge.at(443))
        };
        let (sender, peers) = channel();
        let service = Service::start(&lab.home, home, move |stream| {
            sender.send(stream.peer_addr()?)?;
            serve(stream)
        })?;
        let route = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{home}\"\n");
        let daemon = Edged::plan(lab, &route).daemon("datapath = \"flow\"").daemon(ADMIN).start()?;
        let mut stream = lab.client.connect(edge)?;
        echo_once(&mut stream, &hello())?;
        wait_for_flows(&daemon, 1)?;
        let back = peers.recv_timeout(SOON).context("the edge's end of the backend's leg")?;
        let (up, down) = (Tuple::new(stream.local_addr()?, edge), Tuple::new(home, back));
        Ok(Self { lab, daemon, service, stream, up, down })
    }

    /// Both directions: who may send there, and its packets.
    fn ways(&self) -> [(&'a Host, Tuple); 2] {
        [(&self.lab.client, self.up), (&self.lab.home, self.down)]
    }

    /// Where a direction is, after an echo that made both sides speak.
    fn at_rest(&mut self, (host, tuple): (&Host, Tuple)) -> Result<Numbers> {
        let observer = Observer::on(host, tuple.reversed())?;
        echo_once(&mut self.stream, &Pattern::new(51).bytes(SPOKEN))?;
        observer.last()
    }

    fn metrics(&self) -> Result<Metrics> {
        Metrics::read(&self.lab.edge)
    }

    /// It has been a flow to its end, which comes in order.
    fn ends_well(self, bytes: Option<usize>) -> Result<()> {
        drop(self.stream);
        let record = self.daemon.access_log.wait_for_host(NAME)?;
        ensure!(record["datapath"] == "flow" && record["close"] == "finished", "{record}");
        if let Some(bytes) = bytes {
            ensure!(record["bytes_up"] == bytes && record["bytes_down"] == bytes, "not {bytes}: {record}");
        }
        Ok(())
    }
}

/// Waits until the counters have grown by so much at least.
fn have_grown(lab: &Lab, before: &Metrics, least: &[(&str, usize)]) -> Result<Metrics> {
    Metrics::until(&lab.edge, "the forged segments to be counted", |now| {
        for &(fate, least) in least {
            let grown = now.fate(fate) - before.fate(fate);
            ensure!(grown >= least as u64, "{fate} has grown by {grown}, not {least}");
        }
        Ok(())
    })
}

fn at_rest(v6: bool) -> Result<()> {
    case(|lab| {
        let mut victim = Victim::new(lab, v6, service::send_back)?;
        let before = victim.metrics()?;
        let mut rounds = 0;
        for way in victim.ways() {
            let (host, tuple) = way;
            let forger = Forger::on(host, tuple.source)?;
            for distance in FAR {
                let numbers = victim.at_rest(way)?;
                rounds += 1;
                for kind in Kind::ALL {
                    forger.send(tuple, kind, numbers.moved(distance, 0))?;
                }
                // These segments acknowledge data that nobody has sent.
                for kind in [Kind::Ack, Kind::Fin, Kind::RstAck] {
                    forger.send(tuple, kind, numbers.moved(distance, 1 << 30))?;
                }
            }
            // In the window, but not where it begins: a challenge is all that comes of it (RFC 5961).
            for distance in [-1, 1, 1000, 20_000] {
                let numbers = victim.at_rest(way)?;
                rounds += 1;
                for kind in [Kind::Rst, Kind::RstAck, Kind::Syn] {
                    forger.send(tuple, kind, numbers.moved(distance, 0))?;
                }
            }
        }
        let least = [
            ("reset_out_of_window", 2 * (FAR.len() * 3 + 4 * 2)),
            ("out_of_window", 2 * FAR.len() * 5),
            ("syn_on_live", 2 * (FAR.len() + 4)),
            ("syn_ack", 2 * FAR.len()),
        ];
        let after = have_grown(lab, &before, &least)?;
        // From the other side's network even what fits exactly.
        let [client, home] = victim.ways();
        for (way, stranger) in [(client, home.0), (home, client.0)] {
            let numbers = victim.at_rest(way)?;
            rounds += 1;
            let forger = Forger::on(stranger, way.1.source)?;
            for kind in Kind::ALL {
                forger.send(way.1, kind, numbers)?;
            }
        }
        have_grown(lab, &after, &[("wrong_device", 2 * Kind::ALL.len())])?;
        victim.at_rest(client)?;
        let bytes = hello().len() + (rounds + 1) * SPOKEN;
        victim.ends_well(Some(bytes))
    })
}

#[test]
fn forged_segments_move_no_flow_at_rest() -> Result<()> {
    at_rest(false)
}

#[test]
fn nor_over_ipv6() -> Result<()> {
    at_rest(true)
}

#[test]
fn what_ends_a_flow_has_to_be_believed_when_nobody_speaks() -> Result<()> {
    case(|lab| {
        let mut victim = Victim::new(lab, false, service::send_back)?;
        for way in victim.ways() {
            let numbers = victim.at_rest(way)?;
            let forger = Forger::on(way.0, way.1.source)?;
            for kind in Kind::ALL {
                for distance in FAR {
                    forger.send(way.1, kind, numbers.moved(distance, 0))?;
                }
            }
        }
        // Longer than a reset may be belied, and a closed flow be looked at.
        thread::sleep(Duration::from_secs(6));
        wait_for_flows(&victim.daemon, 1)?;
        echo_once(&mut victim.stream, &Pattern::new(52).bytes(100_000))?;
        victim.ends_well(None)
    })
}

#[test]
fn storms_on_a_streams_addresses_change_nothing() -> Result<()> {
    const SEGMENTS: usize = 200;
    case(|lab| {
        let victim = Victim::new(lab, false, service::send_back)?;
        let before = victim.metrics()?;
        let [client, home] = victim.ways();
        // The attacker, the host whose packets it forges, and the host that sees the real numbers.
        let attackers = [(client.0, client), (home.0, home), (home.0, client), (client.0, home)];
        let streaming = Streaming::start(victim.stream.try_clone()?)?;
        let attacked = thread::scope(|scope| {
            let attackers = attackers.map(|(from, (host, tuple))| {
                scope.spawn(move || {
                    let forger = Forger::on(from, tuple.source)?;
                    for _ in 0..SEGMENTS / 10 {
                        let numbers = Observer::on(host, tuple.reversed())?.next()?;
                        for _ in 0..10 {
                            // Further than all that is streamed here.
                            let distance = fastrand::i64(1 << 29..(1 << 32) - (1 << 29));
                            for kind in Kind::ALL {
                                forger.send(tuple, kind, numbers.moved(distance, 0))?;
                            }
                        }
                    }
                    Ok::<_, lab::Error>(())
                })
            });
            let joined = attackers
                .map(|attacker| attacker.join().unwrap_or_else(|_| lab::bail!("an attacker panicked")));
            joined.into_iter().collect::<Result<()>>()
        });
        let streamed = streaming.end()?;
        attacked?;
        println!("{streamed} bytes each way");
        // Half of them: a host takes no more in than it has room for.
        let least = [
            ("wrong_device", SEGMENTS * Kind::ALL.len()),
            ("reset_out_of_window", SEGMENTS * 2),
            ("out_of_window", SEGMENTS * 3),
            ("syn_on_live", SEGMENTS),
            ("syn_ack", SEGMENTS),
        ];
        have_grown(lab, &before, &least)?;
        victim.ends_well(None)
    })
}

#[test]
fn an_exact_reset_cuts_and_both_sides_are_told() -> Result<()> {
    for of_client in [true, false] {
        case(|lab| {
            let speak = Arc::new(AtomicBool::new(false));
            let may_speak = Arc::clone(&speak);
            let mut victim = Victim::new(lab, false, move |mut stream| {
                for length in [hello().len(), SPOKEN] {
                    let mut bytes = vec![0; length];
                    stream.read_exact(&mut bytes)?;
                    stream.write_all(&bytes)?;
                }
                if !of_client {
                    wait::until_true("the time to speak", SOON, || may_speak.load(Ordering::Acquire))?;
                    stream.write_all(b"still there?")?;
                }
                Ok(stream::read_to_end(&mut stream)?.1)
            })?;
            let [client, home] = victim.ways();
            let way = if of_client { client } else { home };
            let numbers = victim.at_rest(way)?;
            Forger::on(way.0, way.1.source)?.send(way.1, Kind::Rst, numbers)?;
            // The receiver learns of it from the segment, the pretended sender when they next exchange data.
            if of_client {
                ensure!(victim.service.outcome()? == End::Reset);
                victim.stream.write_all(b"still there?")?;
                reset_is_seen(&mut victim.stream)?;
            } else {
                reset_is_seen(&mut victim.stream)?;
                speak.store(true, Ordering::Release);
                ensure!(victim.service.outcome()? == End::Reset);
            }
            let record = victim.daemon.access_log.wait_for_host(NAME)?;
            let close = record["close"].as_str().unwrap_or_default();
            ensure!(close.ends_with("_reset") && record["datapath"] == "flow", "{record}");
            wait_for_flows(&victim.daemon, 0).map(drop)
        })?;
    }
    Ok(())
}
