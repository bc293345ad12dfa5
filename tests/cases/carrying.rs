//! Streams arrive whole: both directions at once, uneven and stalling, after the other side's FIN, to readers
//! that stop, and many at a time. Every case runs with each tier that carries on sockets.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use lab::{
    Context, Edged, Lab, Result, ensure,
    hello::ClientHello,
    service::{self, Service},
    stream::{self, End, Pace, Pattern},
    wait,
};

use crate::{case, echo_once};

const MIB: u64 = 1 << 20;
const NAME: &str = "bulk.example";

/// Runs each case with each tier that every machine has, and as the daemon chooses by itself.
macro_rules! with_each_tier {
    ($($case:ident),+ $(,)?) => {
        mod copy { $(#[test] fn $case() -> lab::Result<()> { super::$case("copy") })+ }
        mod splice { $(#[test] fn $case() -> lab::Result<()> { super::$case("splice") })+ }
        mod sockmap { $(#[test] fn $case() -> lab::Result<()> { super::$case("sockmap") })+ }
        mod auto { $(#[test] fn $case() -> lab::Result<()> { super::$case("auto") })+ }
    };
}

with_each_tier!(
    fifty_connections_both_ways_at_once,
    bytes_after_the_clients_fin,
    bytes_after_the_backends_fin,
    a_reader_that_stops_costs_little,
    two_thousand_connections,
    connections_that_end_with_their_answer,
);

/// The same with the tier that has no sockets, where a reader that stops costs nothing.
mod flow {
    macro_rules! with_flow {
        ($($case:ident),+ $(,)?) => { $(#[test] fn $case() -> lab::Result<()> { super::$case("flow") })+ };
    }
    with_flow!(
        fifty_connections_both_ways_at_once,
        bytes_after_the_clients_fin,
        bytes_after_the_backends_fin,
        two_thousand_connections,
        connections_that_end_with_their_answer,
    );
}

/// And behind a stateful firewall, which sees the beginning of a flow alone.
mod flow_behind_a_firewall {
    macro_rules! with_flow {
        ($($case:ident),+ $(,)?) => {
            $(#[test] fn $case() -> lab::Result<()> { crate::behind_firewall(|| super::$case("flow")) })+
        };
    }
    with_flow!(
        fifty_connections_both_ways_at_once,
        bytes_after_the_clients_fin,
        bytes_after_the_backends_fin,
        two_thousand_connections,
        connections_that_end_with_their_answer,
    );
}

fn hello() -> Vec<u8> {
    ClientHello::new(NAME).post_quantum().records()
}

/// A service behind the hello: it must have arrived unchanged.
fn behind_hello<T: Send + 'static>(
    lab: &Lab,
    serve: impl Fn(TcpStream) -> Result<T> + Send + Sync + 'static,
) -> Result<Service<T>> {
    Service::start(&lab.home, lab.home_at(443), move |mut stream| {
        let expected = hello();
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got).context("reading the hello")?;
        ensure!(got == expected, "the hello was changed");
        serve(stream)
    })
}

fn edged(lab: &Lab, tier: &str) -> Result<Edged> {
    // All clients are one source here.
    let body = format!(
        "[limits]\nconnections_per_source = 0\n[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n",
        lab.home_address()
    );
    Edged::plan(lab, &body).daemon(&format!("datapath = \"{tier}\"")).start()
}

fn connect(lab: &Lab) -> Result<TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    stream.write_all(&hello())?;
    Ok(stream)
}

/// Sends one pattern and receives another at the same time.
pub(crate) fn exchange(stream: &TcpStream, send: Pattern, receive: Pattern, length: u64) -> Result<()> {
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            send.send(&mut &*stream, length, Pace::Uneven)?;
            Ok(stream.shutdown(Shutdown::Write)?)
        });
        let received = receive.receive(&mut &*stream, Pace::Uneven)?;
        ensure!(received == (length, End::Fin), "{received:?} is not all {length} bytes");
        sending.join().unwrap_or_else(|_| lab::bail!("the sender panicked"))
    })
}

fn fifty_connections_both_ways_at_once(tier: &str) -> Result<()> {
    const CONNECTIONS: u64 = 50;
    const LENGTH: u64 = 20 * MIB;
    let (up, down) = (Pattern::new(11), Pattern::new(12));
    case(|lab| {
        let service = behind_hello(lab, move |stream| exchange(&stream, down, up, LENGTH))?;
        let edged = edged(lab, tier)?;
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CONNECTIONS)
                .map(|_| scope.spawn(|| exchange(&connect(lab)?, up, down, LENGTH).context("at the client")))
                .collect();
            for client in clients {
                client.join().unwrap_or_else(|_| lab::bail!("a client panicked"))?;
            }
            Ok::<_, lab::Error>(())
        })?;
        for _ in 0..CONNECTIONS {
            service.outcome().context("at the backend")?;
        }
        let all = usize::try_from(CONNECTIONS)?;
        let records =
            edged.access_log.wait_for_count(all, "the connections", |record| record["sni"] == NAME)?;
        let expected_up = LENGTH + hello().len() as u64;
        for record in records {
            if record["datapath"] == "flow" {
                let [up, down] = [&record["bytes_up"], &record["bytes_down"]];
                ensure!(*up == expected_up && *down == LENGTH, "{record}");
            } else {
                ensure!(record["bytes_up"] == expected_up && record["bytes_down"] == LENGTH, "{record}");
            }
            ensure!(record["close"] == "finished", "{record}");
        }
        Ok(())
    })
}

fn bytes_after_the_clients_fin(tier: &str) -> Result<()> {
    const LENGTH: u64 = 100 * MIB;
    let down = Pattern::new(21);
    case(|lab| {
        let _service = behind_hello(lab, move |mut stream| {
            ensure!(stream.read(&mut [0])? == 0, "the client's FIN must come first");
            down.send(&mut stream, LENGTH, Pace::Steady)
        })?;
        let _edged = edged(lab, tier)?;
        let mut stream = connect(lab)?;
        stream.shutdown(Shutdown::Write)?;
        let received = down.receive(&mut stream, Pace::Steady)?;
        ensure!(received == (LENGTH, End::Fin), "{received:?}");
        Ok(())
    })
}

fn bytes_after_the_backends_fin(tier: &str) -> Result<()> {
    const LENGTH: u64 = 100 * MIB;
    let up = Pattern::new(22);
    case(|lab| {
        let service = behind_hello(lab, move |mut stream| {
            stream.shutdown(Shutdown::Write)?;
            up.receive(&mut stream, Pace::Steady)
        })?;
        let _edged = edged(lab, tier)?;
        let mut stream = connect(lab)?;
        ensure!(stream.read(&mut [0])? == 0, "the backend's FIN must come first");
        up.send(&mut stream, LENGTH, Pace::Steady)?;
        drop(stream);
        ensure!(service.outcome()? == (LENGTH, End::Fin));
        Ok(())
    })
}

fn a_reader_that_stops_costs_little(tier: &str) -> Result<()> {
    const CONNECTIONS: u64 = 20;
    // Far more than sockets and pipes may hold.
    const LENGTH: u64 = 64 * MIB;
    // Each connection may fill a buffer of either socket; what the kernel lets them grow to is the operator's to set.
    const BUFFERS: [(&str, &str); 2] =
        [("net.ipv4.tcp_rmem", "4096 131072 6291456"), ("net.ipv4.tcp_wmem", "4096 16384 4194304")];
    const SOCKETS: u64 = CONNECTIONS * 16 * MIB;
    const DAEMON: u64 = CONNECTIONS * 2 * MIB;
    let down = Pattern::new(31);
    case(|lab| {
        lab.edge.sysctl(&BUFFERS)?;
        let service = behind_hello(lab, move |mut stream| {
            // Longer than the readers stop.
            stream.set_write_timeout(Some(Duration::from_mins(2)))?;
            down.send(&mut stream, LENGTH, Pace::Steady)
        })?;
        let edged = edged(lab, tier)?;
        let before = edged.resident()?;
        let streams = (0..CONNECTIONS).map(|_| connect(lab)).collect::<Result<Vec<_>>>()?;
        // The edge's sockets are full when two looks show the same.
        let mut last = 0;
        wait::until_true("the queues to fill", wait::SOON, || {
            thread::sleep(Duration::from_millis(300));
            let now = lab.edge.tcp_memory().unwrap_or(0);
            now > MIB && std::mem::replace(&mut last, now) == now
        })?;
        let grown = edged.resident()?.saturating_sub(before);
        let held = lab.edge.tcp_memory()?;
        ensure!(grown < DAEMON, "the daemon grew by {grown} bytes");
        ensure!(held < SOCKETS, "the edge's sockets hold {held} bytes");
        thread::scope(|scope| {
            let readers: Vec<_> = streams
                .into_iter()
                .map(|mut stream| scope.spawn(move || down.receive(&mut stream, Pace::Steady)))
                .collect();
            for reader in readers {
                let received = reader.join().unwrap_or_else(|_| lab::bail!("a reader panicked"))?;
                ensure!(received == (LENGTH, End::Fin), "after the stop: {received:?}");
            }
            Ok(())
        })?;
        for _ in 0..CONNECTIONS {
            service.outcome()?;
        }
        Ok(())
    })
}

fn two_thousand_connections(tier: &str) -> Result<()> {
    const CONNECTIONS: usize = 2000;
    const CONNECTORS: usize = 8;
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let mut edged = edged(lab, tier)?;
        let (sender, connected): (_, Receiver<TcpStream>) = mpsc::channel();
        thread::scope(|scope| {
            let connectors: Vec<_> = (0..CONNECTORS)
                .map(|_| {
                    let sender = sender.clone();
                    scope.spawn(move || {
                        for _ in 0..CONNECTIONS / CONNECTORS {
                            let mut stream = lab.client.connect(lab.edge.at(443))?;
                            echo_once(&mut stream, &hello())?;
                            sender.send(stream).context("nobody takes the connections")?;
                        }
                        Ok(())
                    })
                })
                .collect();
            connectors.into_iter().try_for_each(|connector| {
                connector.join().unwrap_or_else(|_| lab::bail!("a connector panicked"))
            })
        })?;
        drop(sender);
        let mut streams: Vec<TcpStream> = connected.iter().collect();
        ensure!(service.accepted() == CONNECTIONS, "{} reached the service", service.accepted());
        // Two sockets each; pipes are for those that are busy.
        wait::until_ok("the connections to be idle", wait::SOON, || {
            let descriptors = edged.process().descriptors()?;
            ensure!(descriptors < CONNECTIONS * 2 + 200, "{descriptors} descriptors for idle connections");
            Ok(())
        })?;
        let resident = edged.resident()?;
        ensure!(resident < 100 * MIB, "{resident} bytes resident with {CONNECTIONS} idle connections");
        for stream in &mut streams {
            echo_once(stream, b"still there")?;
        }
        drop(streams);
        for _ in 0..CONNECTIONS {
            service.outcome()?;
        }
        let log = &edged.access_log;
        log.wait_for_count(CONNECTIONS, "the connections", |record| record["close"] == "finished")?;
        Ok(())
    })
}

/// The backend has answered and closed before anything but the hello was carried: whatever is being prepared for
/// a longer life by then has to be undone, and the answer not lost with it.
fn connections_that_end_with_their_answer(tier: &str) -> Result<()> {
    const CONNECTIONS: usize = 1600;
    const CLIENTS: usize = 16;
    case(|lab| {
        let answer = Pattern::new(5).bytes(1000);
        let said = answer.clone();
        let _service = behind_hello(lab, move |mut stream| Ok(stream.write_all(&said)?))?;
        let edged = edged(lab, tier)?;
        thread::scope(|scope| {
            let client = || {
                (0..CONNECTIONS / CLIENTS).try_for_each(|_| {
                    let (got, end) = stream::read_to_end(&mut connect(lab)?)?;
                    ensure!(end == End::Fin && got == answer, "{} bytes, {end:?}", got.len());
                    Ok(())
                })
            };
            let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().unwrap_or_else(|_| lab::bail!("a client panicked")))
        })?;
        edged
            .access_log
            .wait_for_count(CONNECTIONS, "the connections", |record| record["close"] == "finished")
            .map(drop)
    })
}
