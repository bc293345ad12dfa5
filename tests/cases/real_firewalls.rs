//! Flows on an edge with the firewalls that people have, set up by the programs that they use: ufw, Docker, and rules that
//! put connections into zones of connection tracking.

use std::net::{Shutdown, SocketAddr, TcpStream};

use lab::{
    Edged, Lab, Result, ensure,
    firewall::{self, CONTAINER, tracked, until_untracked},
    hello::ClientHello,
    require::{self, Need},
    service,
    stream::{self, End, Pattern},
    wait::{self, SOON},
};

use crate::{
    case, echo_once,
    firewall::echo_bulk,
    flow::{NAME, reset_is_seen, wait_for_flows},
};

const MIB: usize = 1 << 20;
const CONNECTIONS: usize = 10;

fn edged(lab: &Lab, backend: SocketAddr) -> Result<Edged> {
    let route = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{backend}\"\n");
    Edged::plan(lab, &route).daemon("datapath = \"flow\"").start()
}

fn echoed(lab: &Lab) -> Result<TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    echo_once(&mut stream, &ClientHello::new(NAME).records())?;
    Ok(stream)
}

/// Of the connections to port 443, of the edge or of the backend.
fn is_ours(entry: &str) -> bool {
    entry.contains("dport=443 ")
}

/// Connections become flows and carry much, connection tracking keeps nothing of them, they end in order, and the operator
/// can end them.
fn flows_hold(lab: &Lab, backend: SocketAddr) -> Result<()> {
    let service = service::echo(&lab.home, backend)?;
    let daemon = edged(lab, backend)?;
    let mut streams = (0..CONNECTIONS).map(|_| echoed(lab)).collect::<Result<Vec<_>>>()?;
    wait_for_flows(&daemon, CONNECTIONS)?;
    until_untracked(&lab.edge, is_ours)?;
    let bytes = Pattern::new(41).bytes(2 * MIB);
    for stream in &mut streams {
        echo_once(stream, b"still there")?;
        echo_bulk(stream, &bytes)?;
    }
    for mut stream in streams {
        stream.shutdown(Shutdown::Write)?;
        ensure!(stream::read_to_end(&mut stream)?.1 == End::Fin);
        service.outcome()?;
    }
    let is_finished = |record: &serde_json::Value| record["close"] == "finished";
    daemon.access_log.wait_for_count(CONNECTIONS, "the connections", is_finished)?;
    until_untracked(&lab.edge, is_ours)?;
    let mut stream = echoed(lab)?;
    let list = wait_for_flows(&daemon, 1)?;
    until_untracked(&lab.edge, is_ours)?;
    daemon.edgectl().text(&["connections", "close", &list[0]["id"].to_string()])?;
    reset_is_seen(&mut stream)?;
    until_untracked(&lab.edge, is_ours)
}

#[test]
fn behind_ufw() -> Result<()> {
    if !require::all(&[Need::Firewall, Need::Program("ufw", "ufw")]) {
        return Ok(());
    }
    case(|lab| {
        firewall::ufw(&lab.edge)?;
        // It denies: a port without a rule is closed to clients, even if a program listens.
        let _other = service::echo(&lab.edge, (lab.edge.v4, 8443).into())?;
        ensure!(!lab.client.accepts(lab.edge.at(8443)), "ufw lets everything in");
        flows_hold(lab, lab.home_at(443))
    })
}

#[test]
fn beside_docker() -> Result<()> {
    if !require::all(&[Need::Firewall, Need::Program("iptables-restore", "iptables"), Need::Device("bridge")])
    {
        return Ok(());
    }
    // A backend at home, and one in a container of this machine.
    for to_container in [false, true] {
        case(|lab| {
            firewall::docker(&lab.edge, &lab.home)?;
            let container = SocketAddr::from((CONTAINER, 443));
            flows_hold(lab, if to_container { container } else { lab.home_at(443) })?;
            // Docker's published ports are served as before, through the same devices.
            let _published = service::echo(&lab.home, (CONTAINER, 80).into())?;
            let mut stream = lab.client.connect(lab.edge.at(8080))?;
            echo_once(&mut stream, b"published")
        })?;
    }
    Ok(())
}

/// As OVS, a VRF or a host with overlapping addresses has it.
#[test]
fn in_another_zone() -> Result<()> {
    if !require::all(&[Need::Firewall]) {
        return Ok(());
    }
    case(|lab| {
        firewall::nft(
            &lab.edge,
            "table inet zones {
                chain pre { type filter hook prerouting priority raw; ct zone set 7; }
                chain out { type filter hook output priority raw; ct zone set 7; }
            }",
        )?;
        firewall::stateful(&lab.edge)?;
        let _echo = service::echo(&lab.home, lab.home_at(22))?;
        let _there = lab.edge.connect(lab.home_at(22))?;
        wait::until_true("the zone to be used", SOON, || {
            tracked(&lab.edge).is_ok_and(|all| all.iter().any(|entry| entry.contains("zone=7 ")))
        })?;
        flows_hold(lab, lab.home_at(443))
    })
}
