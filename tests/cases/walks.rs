//! Scans of all flows (by a scraper, `edgectl` or the daemon itself) delay no client.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Edged, Lab, Result, ensure,
    metrics::{ADMIN, Metrics},
    service, table,
    topology::CLIENT_SECOND,
};

use crate::{
    case, echo_once,
    flow::{body, hello},
};

/// Flows of each of two clients.
const FLOWS: u16 = 9_000;
const SCRAPERS: usize = 60;
const CONNECTS: usize = 60;
/// Between two scrapes of one scraper.
const EVERY: Duration = Duration::from_millis(100);

/// The time within which nine of ten connections are made, routed and answered.
fn connect_time(lab: &Lab) -> Result<Duration> {
    let mut times = (0..CONNECTS)
        .map(|_| {
            let began = Instant::now();
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            echo_once(&mut stream, &hello())?;
            Ok(began.elapsed())
        })
        .collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times[CONNECTS * 9 / 10])
}

#[test]
fn connects_are_as_quick_beside_sixty_scrapers() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let _daemon = Edged::plan(lab, &body(lab, "")).daemon("datapath = \"flow\"").daemon(ADMIN).start()?;
        // Not from the ports of these flows, which lead to nobody.
        lab.client.sysctl(&[("net.ipv4.ip_local_port_range", "20000 65000")])?;
        for client in [lab.client.at(0), (CLIENT_SECOND, 0).into()] {
            table::add_flows(lab, client, lab.edge.at(443), FLOWS)?;
        }
        let flows = u64::from(FLOWS) * 2;
        Metrics::until(&lab.edge, "the flows to be counted", |metrics| {
            let seen = metrics.get("edge_connections_active{listener=\"\",datapath=\"flow\"}");
            ensure!(seen >= flows, "{seen} flows");
            Ok(())
        })?;
        let alone = connect_time(lab)?;
        let (beside, answers) = thread::scope(|scope| {
            let scrapers: Vec<_> = (0..SCRAPERS)
                .map(|_| {
                    let (end, ended) = channel::<()>();
                    let scraper = scope.spawn(move || {
                        let mut answers = 0_u32;
                        while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                            Metrics::read(&lab.edge)?;
                            answers += 1;
                        }
                        Ok::<_, lab::Error>(answers)
                    });
                    (end, scraper)
                })
                .collect();
            let beside = connect_time(lab);
            let mut answers = 0;
            for (end, scraper) in scrapers {
                drop(end);
                answers += scraper.join().unwrap_or_else(|_| lab::bail!("a scraper panicked"))?;
            }
            Ok::<_, lab::Error>((beside?, answers))
        })?;
        println!(
            "nine of ten connects within {alone:?} alone, {beside:?} beside {answers} scrapes of {flows} flows"
        );
        // A busy machine makes either slower, a lock that scrapes hold made it a second.
        ensure!(beside < alone * 10 + Duration::from_millis(100), "{beside:?} instead of {alone:?}");
        Ok(())
    })
}
