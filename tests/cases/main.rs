//! The cases: what a client and an operator rely on, against real peers, each in a lab of its own.

mod access;
mod acme;
mod answers;
mod boot;
mod cancel;
mod carrying;
mod checks;
mod clients;
mod configuration;
mod control;
mod crowds;
mod dashboard;
mod devices;
mod doctor;
mod endings;
mod failover;
mod figures;
mod firewall;
mod first_steps;
mod flow;
mod flow_abuse;
mod flow_attacks;
mod flow_hardships;
mod flow_limits;
mod flow_long_paths;
mod flow_stays;
mod hellos;
mod host_lists;
mod kernel;
mod lab_itself;
mod label_targets;
mod limits;
mod load;
mod lockout;
mod monitoring;
mod names;
mod netem;
mod odd_names;
mod places;
mod port_ranges;
mod protocols;
mod proxy_protocol;
mod real_firewalls;
mod redirect;
mod refusals;
mod restarts;
mod rights;
mod running;
mod segments;
mod slow_disk;
mod terminal;
mod timeouts;
mod traces;
mod truths;
mod unit;
mod unix_targets;
mod upgrades;
mod urgent;
mod vlans;
mod walks;
mod ways;

use std::{
    cell::Cell,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use lab::{
    Context, Lab, Result,
    hello::ClientHello,
    require::{self, Need},
    stream,
};

thread_local! {
    /// Whether the edge of this thread's labs has a firewall.
    static FIREWALLED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a case in a plain lab, or says why it cannot.
fn case(body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let is_firewalled = FIREWALLED.get();
    let needs: &[Need] =
        if is_firewalled { &[Need::Namespaces, Need::Firewall] } else { &[Need::Namespaces] };
    let plan = if is_firewalled { Lab::plan().firewalled() } else { Lab::plan() };
    if require::all(needs) { plan.case(body) } else { Ok(()) }
}

/// Runs a case on an edge with a stateful firewall. All cases at once: `EDGE_LAB_FIREWALL=1 cargo test -p edge-tests`.
fn behind_firewall(case: impl FnOnce() -> Result<()>) -> Result<()> {
    FIREWALLED.set(true);
    case()
}

/// The same in a lab with routers.
fn router_case(body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    if require::all(&[Need::Namespaces]) { Lab::plan().routers().case(body) } else { Ok(()) }
}

/// The same in a lab with a tunnel.
fn tunnel_case(body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let all = require::all(&[Need::Namespaces, Need::Tunnel]);
    if all { Lab::plan().tunnel().case(body) } else { Ok(()) }
}

/// Sends this hello to the edge and reads the whole answer of the service behind.
fn answer_to(lab: &Lab, edge: SocketAddr, hello: &[u8]) -> Result<String> {
    let mut stream = lab.client.connect(edge)?;
    stream.write_all(hello)?;
    let (answer, _) = stream::read_to_end(&mut stream)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Asks the edge for a host name over TLS and reads the answer of the service behind.
fn greeting(lab: &Lab, name: &str) -> Result<String> {
    answer_to(lab, lab.edge.at(443), &ClientHello::new(name).records())
        .with_context(|| format!("asking for {name}"))
}

/// A connection to the service behind `name`, which must have answered with `greeting` already.
fn greeted(lab: &Lab, name: &str, greeting: &str) -> Result<TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    stream.write_all(&ClientHello::new(name).records())?;
    expect(&mut stream, greeting)?;
    Ok(stream)
}

/// Reads exactly this text.
fn expect(stream: &mut TcpStream, text: &str) -> Result<()> {
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).with_context(|| format!("waiting for {text:?}"))?;
    lab::ensure!(answer == text.as_bytes(), "{:?} is not {text:?}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Sends some bytes through an echo service behind the edge and compares what comes back.
fn echo_once(stream: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).context("waiting for the echo")?;
    lab::ensure!(back == bytes, "the echo differs");
    Ok(())
}
