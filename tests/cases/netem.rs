//! Lines with delay, loss and reordering, as the kernel's emulator makes them, and tunnels of the kernel's own
//! WireGuard: `cargo xtask vm` runs these on kernels that have both.

use std::{io::Read, thread};

use lab::{
    Context, Edged, Lab, Result, ensure,
    require::{self, Need},
    service::{self, Service},
    stream::{End, Pace, Pattern},
    topology::Plan,
};

use crate::{
    carrying::exchange,
    echo_once,
    flow::{body, connect, echoed, exchanging, hello, outlive, wait_for_flows},
};

const MIB: u64 = 1 << 20;

/// Runs a case in a lab whose lines the kernel can make bad, or says why it cannot.
fn case(plan: Plan, needs: &[Need], body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let all = require::all(&[&[Need::Namespaces, Need::Netem], needs].concat());
    if all { plan.case(body) } else { Ok(()) }
}

/// The line between client and edge, both ways; delay and loss are those of one way.
pub(crate) fn client_line(lab: &Lab, line: &str) -> Result<()> {
    lab.client.netem("eth0", line)?;
    lab.edge.netem("front", line)
}

/// The line between edge and home, both ways.
pub(crate) fn home_line(lab: &Lab, line: &str) -> Result<()> {
    lab.edge.netem("back", line)?;
    lab.home.netem("eth0", line)
}

fn both_lines(lab: &Lab, line: &str) -> Result<()> {
    client_line(lab, line)?;
    home_line(lab, line)
}

/// Runs this on some threads at once.
fn at_once(count: usize, each: impl Fn() -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&each)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| lab::bail!("a client panicked")))
    })
}

/// The tiers that connections ended in.
fn tiers(daemon: &Edged, connections: usize) -> Result<Vec<String>> {
    let records =
        daemon.access_log.wait_for_count(connections, "all", |record| record["close"] == "finished")?;
    Ok(records.iter().map(|record| record["datapath"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Exchanges patterns on some connections at once, all of which must arrive, and gives the tiers that they ended in.
fn tiers_of(lab: &Lab, daemon: &Edged, connections: usize, length: u64) -> Result<Vec<String>> {
    let (service, up, down) = exchanging(lab, length)?;
    at_once(connections, || exchange(&connect(lab)?, up, down, length).context("at the client"))?;
    for _ in 0..connections {
        service.outcome().context("at the backend")?;
    }
    tiers(daemon, connections)
}

fn with_tier(lab: &Lab, tier: &str) -> Result<Edged> {
    Edged::plan(lab, &body(lab, "")).daemon(&format!("datapath = \"{tier}\"")).start()
}

#[test]
fn flows_outlive_the_daemon_while_both_lines_lose_one_in_a_hundred() -> Result<()> {
    case(Lab::plan(), &[], |lab| {
        both_lines(lab, "delay 5ms loss 1%")?;
        outlive(lab, 4, 4 * MIB, 2)
    })
}

/// Every tier over lines that lose, reorder and repeat.
fn whole_over_bad_lines(tier: &str) -> Result<()> {
    case(Lab::plan(), &[], |lab| {
        both_lines(lab, "delay 5ms loss 0.5% duplicate 0.5% reorder 5%")?;
        if tier == "flow" {
            return outlive(lab, 3, 2 * MIB, 2);
        }
        let daemon = with_tier(lab, tier)?;
        let tiers = tiers_of(lab, &daemon, 4, 2 * MIB)?;
        // Where little comes at a time, splice is not worth it.
        ensure!(tier == "splice" || tiers.iter().all(|found| found == tier), "{tiers:?}");
        Ok(())
    })
}

macro_rules! with_each_tier {
    ($($tier:ident)+) => { $(
        mod $tier {
            #[test]
            fn whole_over_bad_lines() -> lab::Result<()> {
                super::whole_over_bad_lines(stringify!($tier))
            }
        }
    )+ };
}
with_each_tier!(copy splice sockmap flow);

/// Downloads on some connections at once, all of which must arrive, and says in which tiers they ended.
fn tiers_of_downloads(lab: &Lab, daemon: &Edged, connections: usize, length: u64) -> Result<Vec<String>> {
    let down = Pattern::new(41);
    let _service = Service::start(&lab.home, lab.home_at(443), move |mut stream| {
        stream.read_exact(&mut vec![0; hello().len()])?;
        down.send(&mut stream, length, Pace::Steady)
    })?;
    at_once(connections, || {
        let received = down.receive(&mut connect(lab)?, Pace::Steady)?;
        ensure!(received == (length, End::Fin), "{received:?} is not all {length} bytes");
        Ok(())
    })?;
    tiers(daemon, connections)
}

#[test]
fn flows_that_begin_in_mid_stream_over_long_and_lossy_lines() -> Result<()> {
    for (near, far) in [("delay 5ms loss 0.1%", "delay 15ms"), ("delay 15ms", "delay 50ms loss 0.1%")] {
        case(Lab::plan(), &[], |lab| {
            client_line(lab, near)?;
            home_line(lab, far)?;
            let daemon = with_tier(lab, "auto")?;
            let tiers = tiers_of_downloads(lab, &daemon, 6, 8 * MIB)?;
            let flows = tiers.iter().filter(|tier| *tier == "flow").count();
            eprintln!("{near}, {far}: {flows} of {} were flows in the end", tiers.len());
            ensure!(flows > 0, "none of {tiers:?} was handed over with {near} and {far}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn flows_through_the_kernels_wireguard_over_a_lossy_line() -> Result<()> {
    case(Lab::plan().tunnel(), &[Need::KernelTunnel], |lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        ensure!(tunnel.in_kernel(), "the kernel has WireGuard, but wireguard-go carries");
        home_line(lab, "delay 15ms loss 0.5%")?;
        outlive(lab, 2, 2 * MIB, 2)
    })
}

#[test]
fn flows_through_a_kernel_tunnel_that_was_made_anew() -> Result<()> {
    case(Lab::plan().tunnel(), &[Need::KernelTunnel], |lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = with_tier(lab, "flow")?;
        drop(echoed(lab, &daemon)?);
        wait_for_flows(&daemon, 0)?;
        // A device that is made anew is another one, whatever its name.
        tunnel.edge().kill(&lab.edge)?;
        tunnel.edge().bring_up(&lab.edge)?;
        tunnel.wait(&lab.edge)?;
        let mut stream = echoed(lab, &daemon)?;
        echo_once(&mut stream, &Pattern::new(42).bytes(100_000))
    })
}

#[test]
fn flows_wait_where_the_clients_line_loses_much_and_home_is_far() -> Result<()> {
    case(Lab::plan(), &[], |lab| {
        client_line(lab, "delay 5ms loss 3%")?;
        home_line(lab, "delay 50ms")?;
        let plan = Edged::plan(lab, &body(lab, "")).environment("EDGE_LOG", "debug");
        let mut daemon = plan.start()?;
        let tiers = tiers_of(lab, &daemon, 2, 2 * MIB)?;
        ensure!(tiers.iter().all(|tier| tier != "flow"), "{tiers:?}");
        let log = daemon.process().whole_log()?;
        ensure!(log.contains("its client's line loses packets"), "it was not for that: {log}");
        Ok(())
    })
}

#[test]
fn streams_to_a_client_that_is_much_further_than_home_stay_on_their_sockets() -> Result<()> {
    for (near, stay) in [("delay 25ms rate 20mbit", true), ("delay 5ms rate 20mbit", false)] {
        case(Lab::plan(), &[], |lab| {
            client_line(lab, near)?;
            home_line(lab, "delay 5ms")?;
            let daemon = with_tier(lab, "auto")?;
            let tiers = tiers_of_downloads(lab, &daemon, 2, 4 * MIB)?;
            let flows = tiers.iter().filter(|tier| *tier == "flow").count();
            ensure!(stay == (flows == 0), "{near}: {tiers:?}");
            Ok(())
        })?;
    }
    Ok(())
}
