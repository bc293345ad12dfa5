//! The share of connections and first-byte memory that a crowd can take from others with the default limits.
//! The configuration changes only what makes a case short.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    metrics::{ADMIN, Metrics},
    service, stream,
    topology::CLIENT_SECOND,
    wait::{self, SOON},
};

use crate::{case, echo_once};

const NAME: &str = "crowd.example";

fn body(lab: &Lab, limits: &str) -> String {
    format!("[limits]\n{limits}\n[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address())
}

/// Waits until the edge has read all that clients have sent: no connection holds anything, accepted or not.
fn until_read(lab: &Lab) -> Result<()> {
    wait::until_ok("the edge to read everything", SOON, || {
        let mut ss = Command::new("ss");
        ss.args(["-tnH", "sport", "=", ":443"]);
        let all = lab.edge.text_of(ss)?;
        let unread = all.lines().filter(|line| line.split_whitespace().nth(1) != Some("0")).count();
        ensure!(unread == 0, "{unread} connections hold bytes");
        Ok(())
    })
}

/// A connection from this address through which an echo has passed.
fn echoed(lab: &Lab, from: IpAddr) -> Result<TcpStream> {
    let mut stream = lab.client.connect_from(from, lab.edge.at(443))?;
    echo_once(&mut stream, &ClientHello::new(NAME).records())?;
    Ok(stream)
}

#[test]
fn one_source_cannot_have_all_places() -> Result<()> {
    // An eighth of the places, and at least this many.
    const SHARE: usize = 128;
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, &body(lab, "connections = 200"))?;
        let from = lab.client.v4.into();
        let live = (0..SHARE).map(|_| echoed(lab, from)).collect::<Result<Vec<_>>>()?;
        // The reset may come as early as at the end of connecting.
        ensure!(echoed(lab, from).is_err(), "one source has more than its share");
        edged.access_log.wait_for("the refusal", |record| record["close"] == "source_limit")?;
        echoed(lab, CLIENT_SECOND.into())?;
        let status = edged.edgectl().json(&["status"])?;
        ensure!(status["connections"]["limit_per_source"] == SHARE, "{status}");
        drop(live);
        wait::until_ok("places to become free", SOON, || echoed(lab, from).map(drop))
    })
}

#[test]
fn hellos_without_end_take_bounded_memory_and_give_it_back() -> Result<()> {
    const SOURCES: u8 = 30;
    const CLIENTS: usize = 50;
    /// `limits.hello_memory`, the tasks of all these connections, and what the allocator loses.
    const MOST: u64 = 48 << 20;
    const LEFT: u64 = 16 << 20;
    // A message of 16 KiB begins. A record of one byte takes six on the wire.
    let begin = [22, 3, 1, 0, 4, 1, 0, 0x40, 0];
    let record = [22, 3, 1, 0, 1, 0];
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let sources: Vec<IpAddr> =
            (0..SOURCES).map(|number| Ipv4Addr::new(198, 18, 1, 100 + number).into()).collect();
        for source in &sources {
            lab.client.ip(&["addr", "add", &format!("{source}/24"), "dev", "eth0"])?;
        }
        let mut edged = Edged::plan(lab, &body(lab, "hello_timeout = \"120s\"")).daemon(ADMIN).start()?;
        echoed(lab, lab.client.v4.into())?;
        let before = edged.resident()?;
        // Half of them stop within what is allowed, the others do not.
        let flood = |source: &IpAddr| -> Result<Vec<TcpStream>> {
            (0..CLIENTS)
                .map(|number| {
                    let mut stream = lab.client.connect_from(*source, lab.edge.at(443))?;
                    // A refused one fails here.
                    let _ = stream.write_all(&begin);
                    let records = if number % 2 == 0 { 4000 } else { 16_000 };
                    let _ = stream.write_all(&record.repeat(records));
                    Ok(stream)
                })
                .collect()
        };
        let streams = thread::scope(|scope| {
            let floods: Vec<_> = sources.iter().map(|source| scope.spawn(|| flood(source))).collect();
            let join = |flood: thread::ScopedJoinHandle<'_, Result<_>>| {
                flood.join().unwrap_or_else(|_| lab::bail!("a client panicked"))
            };
            floods.into_iter().map(join).collect::<Result<Vec<Vec<TcpStream>>>>()
        })?;
        wait::until_ok("the daemon to have read all of it", 2 * SOON, || {
            let before = edged.process().cpu_time()?;
            thread::sleep(Duration::from_secs(1));
            let used = edged.process().cpu_time()?.saturating_sub(before);
            ensure!(used < Duration::from_millis(100), "{used:?} of processor time in a second");
            Ok(())
        })?;
        // Everybody else is served.
        echoed(lab, lab.client.v4.into())?;
        let grown = edged.resident()?.saturating_sub(before);
        ensure!(grown < MOST, "the daemon grew by {grown} bytes");
        let refused = |metrics: &Metrics, reason: &str| {
            metrics.get(&format!("edge_rejected_total{{reason=\"{reason}\"}}"))
        };
        let metrics = Metrics::until(&lab.edge, "the refusals", |metrics| {
            ensure!(refused(metrics, "hello_memory") > 0 && refused(metrics, "too_many_records") > 0);
            Ok(())
        })?;
        let taken = metrics.get("edge_hello_memory_bytes");
        ensure!(taken > 1 << 20 && taken <= 16 << 20, "{taken} bytes of first bytes");
        drop(streams);
        wait::until_ok("the memory to be given back", SOON, || {
            let left = edged.resident()?.saturating_sub(before);
            ensure!(left < LEFT, "{left} bytes of {grown} are left");
            let taken = Metrics::read(&lab.edge)?.get("edge_hello_memory_bytes");
            ensure!(taken == 0, "{taken} bytes of first bytes");
            Ok(())
        })?;
        println!("the daemon grew by {grown} bytes");
        Ok(())
    })
}

/// Finished hellos count until they are with the backend, so that a backend that hangs makes no way around the bound.
#[test]
fn a_source_has_a_share_of_the_memory() -> Result<()> {
    const CLIENTS: usize = 60;
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, &body(lab, "hello_memory = 1048576\nhello_timeout = \"120s\""))?;
        let hello = ClientHello::new(NAME).padding(30_000).records();
        let all_but_the_end = || -> Result<TcpStream> {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            stream.write_all(&hello[..hello.len() - 1])?;
            Ok(stream)
        };
        let mut streams = (1..CLIENTS).map(|_| all_but_the_end()).collect::<Result<Vec<_>>>()?;
        edged.access_log.wait_for("a refusal", |record| record["close"] == "hello_memory")?;
        // Workers accept in no order among each other: the youngest comes when all others have been read.
        until_read(lab)?;
        let mut youngest = all_but_the_end()?;
        until_read(lab)?;
        // The oldest have to go; the youngest goes on, and others are not concerned.
        let mut other = lab.client.connect_from(CLIENT_SECOND.into(), lab.edge.at(443))?;
        echo_once(&mut other, &hello)?;
        let mut oldest = streams.remove(0);
        ensure!(stream::read_to_end(&mut oldest)?.1 == stream::End::Reset, "the oldest has not gone");
        youngest.write_all(&hello[hello.len() - 1..])?;
        let mut back = vec![0; hello.len()];
        std::io::Read::read_exact(&mut youngest, &mut back)?;
        ensure!(back == hello && service.accepted() == 2, "{} at home", service.accepted());
        Ok(())
    })
}
