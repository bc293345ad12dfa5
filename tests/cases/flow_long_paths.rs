//! Streams whose sender sees a short leg of a long path. In a flow it would see the whole path at once, and BBR would
//! take it for congested for ten seconds.

use std::{
    io::{Read, Write},
    time::Duration,
};

use lab::{
    Context, Edged, Lab, Result, ensure,
    metrics::{ADMIN, Metrics},
    require::{self, Need},
    service::Service,
    wait::{self, SOON},
};

use crate::{
    echo_once,
    flow::{body, connect, hello, wait_for_flows},
};

/// To home, one way.
const FAR: Duration = Duration::from_millis(15);
/// An upload that is worth a hand-over.
const UPLOAD: usize = 1 << 20;

/// A lab whose home is far from the edge, and an upload to it that is over; the connection is open.
fn uploaded(body_of_case: impl FnOnce(&Lab, Edged, std::net::TcpStream) -> Result<()>) -> Result<()> {
    if !require::all(&[Need::Namespaces, Need::Tunnel]) {
        return Ok(());
    }
    Lab::plan().tunnel().relayed().case(|lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        tunnel.relay()?.delay(FAR);
        let _service = Service::start(&lab.home, lab.home_at(443), |mut stream| {
            stream.set_read_timeout(Some(wait::patient(4 * SOON)))?;
            stream.read_exact(&mut vec![0; hello().len() + UPLOAD])?;
            stream.write_all(b"got it")?;
            lab::service::send_back(stream)
        })?;
        let daemon = Edged::plan(lab, &body(lab, "")).daemon(ADMIN).start()?;
        let mut stream = connect(lab)?;
        stream.write_all(&vec![0; UPLOAD])?;
        crate::expect(&mut stream, "got it")?;
        Metrics::until(&lab.edge, "the stream to stay on its sockets", |now| {
            ensure!(now.stays("longer_path") == 1, "{}", now.stays("longer_path"));
            Ok(())
        })?;
        wait_for_flows(&daemon, 0)?;
        body_of_case(lab, daemon, stream)
    })
}

#[test]
fn a_stream_over_a_much_longer_path_becomes_a_flow_when_it_rests() -> Result<()> {
    uploaded(|lab, daemon, mut stream| {
        // Not at ten seconds of age: it has moved much until then. When it has rested for eleven.
        wait::until_ok("a flow", 2 * SOON, || wait_for_flows(&daemon, 1))?;
        echo_once(&mut stream, b"still there?")?;
        let stays = Metrics::read(&lab.edge)?.stays("longer_path");
        ensure!(stays == 1, "counted {stays} times");
        Ok(())
    })
}

#[test]
fn or_when_the_daemon_ends() -> Result<()> {
    uploaded(|lab, mut daemon, mut stream| {
        daemon.terminate()?;
        echo_once(&mut stream, b"without a daemon")?;
        let daemon = Edged::plan(lab, &body(lab, "")).start()?;
        wait_for_flows(&daemon, 1).map(drop)
    })
}
