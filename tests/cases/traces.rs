//! The tracing objects: what the programs do with a client's packets, in the log and by `edgectl trace`.

use std::net::UdpSocket;

use lab::{
    Edged, Lab, Result, Signal, ensure,
    process::Process,
    service,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{
    case, echo_once,
    flow::{body, echoed, edged},
};

fn traced(lab: &Lab) -> Result<Edged> {
    Edged::plan(lab, &body(lab, "")).daemon("datapath = \"flow\"").argument("--trace-ebpf").start()
}

/// `edgectl trace`, which reads already.
fn reader(lab: &Lab, daemon: &Edged, arguments: &[&str]) -> Result<Process> {
    let process = daemon.edgectl().spawn(&[&["trace"], arguments].concat(), lab.directory())?;
    wait_for(&process, "; Ctrl-C ends it")?;
    Ok(process)
}

fn wait_for(process: &Process, part: &str) -> Result<String> {
    wait::until_ok(&format!("{part:?} from edgectl trace"), SOON, || {
        let text = process.whole_log()?;
        ensure!(text.contains(part), "no {part:?} in {text}");
        Ok(text)
    })
}

/// Sends datagrams from the client to a port where nobody listens.
fn datagrams(lab: &Lab, count: usize) -> Result<()> {
    lab.client.run(|| {
        let socket = UdpSocket::bind((lab.client.v4, 0))?;
        for _ in 0..count {
            // An ICMP error of the one before may come back.
            let _ = socket.send_to(b"x", lab.edge.at(4711));
        }
        Ok(())
    })
}

#[test]
fn without_the_tracing_objects_edgectl_says_how_to_get_them() -> Result<()> {
    case(|lab| {
        let daemon = edged(lab, "")?;
        let complaint = daemon.edgectl().refused(1, &["trace", "192.0.2.1"])?;
        for part in ["without --trace-ebpf", "systemctl edit edged", "ExecStart="] {
            ensure!(complaint.contains(part), "{part}: {complaint}");
        }
        daemon.edgectl().refused(2, &["trace", "somebody"])?;
        Ok(())
    })
}

#[test]
fn hand_over_and_drop_are_seen_of_the_client_asked_for_alone() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let mut daemon = traced(lab)?;
        let (v4, v6) = (lab.client.v4.to_string(), lab.client.v6.to_string());
        let mut json = reader(lab, &daemon, &[&v4, "--json"])?;
        let words = reader(lab, &daemon, &[&format!("{v4}/24")])?;
        let mut stream = echoed(lab, &daemon)?;
        echo_once(&mut stream, b"as a flow")?;
        let mut other = lab.client.connect(lab.edge.at_v6(443))?;
        echo_once(&mut other, &crate::flow::hello())?;

        let text = wait_for(&json, "forwarded\"")?;
        ensure!(text.contains("passed to the stack: no flow"), "before the hand-over: {text}");
        ensure!(text.contains("handed over"), "{text}");
        let port = stream.local_addr()?.port();
        let lines = text.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str);
        let lines: Vec<Value> = lines.collect::<Result<_, _>>()?;
        ensure!(lines.iter().all(|line| line["client"] == v4), "{text}");
        let hand_over =
            |line: &&Value| line["message"].as_str().is_some_and(|text| text.starts_with("handed over"));
        let handed: Vec<_> = lines.iter().filter(hand_over).collect();
        ensure!(!handed.is_empty() && handed.iter().all(|line| line["program"] == "flow"), "{text}");
        ensure!(
            handed.iter().all(|line| line["client_port"] == port && line["peer_port"] == 443),
            "{handed:?}"
        );
        let seen = wait_for(&words, "handed over")?;
        ensure!(seen.contains(&format!("{v4}:{port} - {}", lab.home_at(443))), "{seen}");
        let log = daemon.wait_for_log("handed over")?;
        ensure!(log.contains("edge::trace") || log.contains("program"), "{log}");
        ensure!(!log.contains("passed to the stack: no flow"), "each packet is in the log: {log}");

        // In edgectl's output as in the log.
        daemon.edgectl().text(&["block", "add", &v4])?;
        datagrams(lab, 3)?;
        let text = wait_for(&json, "its source is blocked")?;
        ensure!(text.contains(r#""program":"shield""#) && !text.contains(&v6), "{text}");
        wait_for(&words, "bytes dropped: its source is blocked")?;
        daemon.wait_for_log("its source is blocked")?;

        json.signal(Signal::INT)?;
        ensure!(json.wait(SOON)?.success(), "Ctrl-C is its usual end");
        ensure!(daemon.terminate()? == Some(0), "{}", daemon.process().log());
        Ok(())
    })
}

#[test]
fn a_flood_of_dropped_packets_neither_stops_the_daemon_nor_fills_its_log() -> Result<()> {
    case(|lab| {
        let daemon = traced(lab)?;
        let client = lab.client.v4.to_string();
        daemon.edgectl().text(&["block", "add", &client])?;
        let words = reader(lab, &daemon, &[&client])?;
        datagrams(lab, 100_000)?;
        daemon.edgectl().json(&["status"])?;
        // Both say that they did not get all.
        wait_for(&words, "lines")?;
        wait::until_ok("lines left out of the log", SOON, || {
            datagrams(lab, 1)?;
            let log = daemon.as_process().whole_log()?;
            ensure!(log.contains("left_out"), "nothing was left out");
            let lines = log.lines().filter(|line| line.contains("its source is blocked")).count();
            ensure!(lines < 5000, "{lines} lines in the log");
            Ok(())
        })
    })
}

#[test]
fn flows_outlive_the_change_of_the_objects() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let daemon = edged(lab, "")?;
        let mut stream = echoed(lab, &daemon)?;
        daemon.kill()?;
        let daemon = traced(lab)?;
        let words = reader(lab, &daemon, &[&lab.client.v4.to_string()])?;
        echo_once(&mut stream, b"carried by the tracing objects")?;
        wait_for(&words, "forwarded")?;
        daemon.kill()?;
        echo_once(&mut stream, b"while nobody reads")?;
        let daemon = edged(lab, "")?;
        crate::flow::wait_for_flows(&daemon, 1)?;
        echo_once(&mut stream, b"carried by the ordinary objects")
    })
}
