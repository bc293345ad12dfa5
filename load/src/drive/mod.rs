//! The clients: one job, then its report.

mod bulk;
mod connect;
mod hold;
mod ping;

use std::{fs, io, net::TcpStream, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rustls::pki_types::ServerName;

use crate::{
    handshake,
    job::{Errand, HelloSize, Job, Report},
    opening::{GO, Order, opening},
};

/// No read or write may take longer: an edge that stalls is a failure, not a wait.
const PATIENCE: Duration = Duration::from_secs(20);
/// Octets of the answer of a short connection: about what a `ServerHello` and a certificate take.
const ANSWER: u32 = 1200;

/// Does the errand.
pub fn drive(errand: &Errand) -> Result<Report> {
    let millis = |millis: u32| Duration::from_millis(millis.into());
    match &errand.job {
        &Job::Bulk { streams, direction, millis } => bulk::run(errand, streams, direction, millis),
        &Job::Ping { size, millis: time } => ping::run(errand, size, millis(time)),
        &Job::Connect { clients, hello, millis: time } => {
            let bytes = opening(&errand.name, hello, Order::Answer(ANSWER));
            connect::run(clients, millis(time), || connect::short(errand.to, &bytes, ANSWER))
        }
        Job::Handshake { clients, authority, millis: time } => {
            let pem = fs::read(authority).with_context(|| format!("reading {}", authority.display()))?;
            let config = handshake::client(&pem)?;
            let name = ServerName::try_from(errand.name.clone())?;
            connect::run(*clients, millis(*time), || {
                let stream = TcpStream::connect(errand.to)?;
                limit(&stream)?;
                handshake::greet(stream, &Arc::clone(&config), &name)
            })
        }
        &Job::Hold { connections } => hold::run(errand, connections),
    }
}

/// Connects and sends the opening.
fn open(errand: &Errand, order: Order) -> io::Result<TcpStream> {
    use io::Write as _;
    let mut stream = TcpStream::connect(errand.to)?;
    limit(&stream)?;
    stream.write_all(&opening(&errand.name, HelloSize::Small, order))?;
    Ok(stream)
}

/// Waits until the service is ready for what comes next.
fn wait_for_go(stream: &mut TcpStream) -> io::Result<()> {
    use io::Read as _;
    let mut answer = [0; GO.len()];
    stream.read_exact(&mut answer)?;
    if answer == GO { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn limit(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}
