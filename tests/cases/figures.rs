//! The cost of a lossy client line for each tier: measured, not tested. On sockets the edge, near the client,
//! retransmits a lost packet; in a flow and with plain forwarding, home does. `cargo xtask vm --figures` runs
//! this.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    require::{self, Need},
    service::Service,
};

use crate::netem::{client_line, home_line};

/// Ways to carry; the first goes past the daemon.
const WAYS: [&str; 5] = ["forwarding", "copy", "splice", "flow", "auto"];
/// One way, between client and edge.
const NEAR: &str = "delay 10ms";
/// One way, between edge and home.
const FAR: [&str; 2] = ["delay 15ms", "delay 50ms"];
/// Of a hundred packets, each way.
const LOSSES: [&str; 4] = ["0", "0.1", "1", "2"];
const ROUNDS: usize = 3;
/// A connection's beginning is another matter.
const WARM_UP: Duration = Duration::from_millis(1500);
const MEASURED: Duration = Duration::from_millis(4500);

#[test]
#[ignore = "measures for a quarter of an hour: cargo xtask vm --figures"]
fn figures_of_a_lossy_line_to_the_client() -> Result<()> {
    if !require::all(&[Need::Namespaces, Need::Netem]) {
        return Ok(());
    }
    Lab::plan().forwarding().case(|lab| {
        for host in [&lab.client, &lab.edge, &lab.home] {
            // A connection must not inherit what an earlier one has learned about the line.
            host.sysctl(&[("net.ipv4.tcp_no_metrics_save", "1")])?;
        }
        let _source = Service::start(&lab.home, lab.home_at(443), |mut stream| {
            let piece = vec![0; 64 * 1024];
            ensure!(stream.read(&mut [0; 16])? > 0, "no hello");
            // Until the client has had enough.
            while stream.write_all(&piece).is_ok() {}
            Ok(())
        })?;
        let routes = WAYS[1..].iter().map(|way| {
            let to = lab.home_address();
            format!("[[route]]\nhost = \"{way}.example\"\nto = \"{to}\"\ndatapath = \"{way}\"\n")
        });
        let _edged = Edged::start(lab, &routes.collect::<String>())?;
        for far in FAR {
            home_line(lab, far)?;
            for loss in LOSSES {
                client_line(lab, &format!("{NEAR} loss {loss}%"))?;
                let mut rates = WAYS.map(|_| Vec::new());
                for _ in 0..ROUNDS {
                    for (way, rates) in WAYS.iter().zip(&mut rates) {
                        rates.push(rate(lab, way)?);
                    }
                }
                let medians = WAYS.iter().zip(rates).map(|(way, mut rates)| {
                    rates.sort_by(f64::total_cmp);
                    format!("{way} {:.2}", rates[ROUNDS / 2])
                });
                let medians = medians.collect::<Vec<_>>().join(", ");
                eprintln!("client {NEAR} loss {loss}%, home {far}: {medians} (MiB/s, median of {ROUNDS})");
            }
        }
        Ok(())
    })
}

/// MiB a second towards the client.
#[expect(clippy::cast_precision_loss, reason = "a few hundred million bytes")]
fn rate(lab: &Lab, way: &str) -> Result<f64> {
    let to: SocketAddr = if way == WAYS[0] { lab.home_at(443) } else { lab.edge.at(443) };
    let mut stream = lab.client.connect(to)?;
    stream.write_all(&ClientHello::new(&format!("{way}.example")).records())?;
    let mut buffer = vec![0; 256 * 1024];
    let mut read_for = |time: Duration| -> Result<(usize, f64)> {
        let (began, mut total) = (Instant::now(), 0);
        while began.elapsed() < time {
            let length = stream.read(&mut buffer)?;
            ensure!(length > 0, "the source of {way} ended");
            total += length;
        }
        Ok((total, began.elapsed().as_secs_f64()))
    };
    read_for(WARM_UP)?;
    let (total, seconds) = read_for(MEASURED)?;
    Ok(total as f64 / seconds / f64::from(1 << 20))
}
