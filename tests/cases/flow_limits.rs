//! The limits of the flow tier, and its behaviour at them: ports, labels, and the end of the daemon.

use std::{
    net::{IpAddr, TcpStream},
    process::Command,
    time::Duration,
};

use lab::{
    Context, Edged, Lab, Result, ensure,
    hello::ClientHello,
    loss::Loss,
    metrics::{ADMIN, Metrics},
    service,
    stream::{self, Pattern},
    table,
    wait::{self, SOON},
};

use crate::{
    case, echo_once,
    flow::{NAME, hello, wait_for_flows},
    flow_abuse::source,
    ways::with,
};

fn edged(lab: &Lab, body: &str) -> Result<Edged> {
    Edged::plan(lab, body).daemon("datapath = \"flow\"").daemon(ADMIN).start()
}

#[test]
fn flows_have_the_ports_that_the_configuration_keeps_for_them() -> Result<()> {
    const PORTS: u16 = 64;
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let route = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address());
        let body = |ports: &str| format!("[flow]\nports = \"{ports}\"\n{route}");
        let mut daemon = edged(lab, &body("20000-20063"))?;
        let open_from = |source: IpAddr| -> Result<TcpStream> {
            let mut stream = lab.client.connect_from(source, lab.edge.at(443))?;
            echo_once(&mut stream, &hello())?;
            Ok(stream)
        };
        let open = || open_from(lab.client.v4.into());
        // Each of these sources gets half of what is left.
        let mut streams = Vec::new();
        for (nth, ports) in [32, 16, 8, 4, 2, 1, 1].into_iter().enumerate() {
            let source = source(lab, u8::try_from(nth)?)?;
            for _ in 0..ports {
                streams.push(open_from(source)?);
            }
        }
        wait_for_flows(&daemon, PORTS.into())?;
        let mut reserved = Command::new("cat");
        reserved.arg("/proc/sys/net/ipv4/ip_local_reserved_ports");
        ensure!(lab.edge.text_of(reserved)?.contains("20000-20063"));
        // Another one has to do without.
        let mut last = open()?;
        Metrics::until(&lab.edge, "a connection without a port", |now| {
            ensure!(now.stays("port") == 1, "{}", now.stays("port"));
            Ok(())
        })?;
        echo_once(&mut last, b"served all the same")?;
        stream::reset(last)?;
        // Other ports are for the next daemon; flows from those before go on.
        daemon.rewrite(&body("30000-30063"))?;
        let told = daemon.edgectl().json(&["reload"])?;
        ensure!(told.to_string().contains("flow.ports changed"), "{told}");
        daemon.terminate()?;
        let daemon = edged(lab, &body("30000-30063"))?;
        wait_for_flows(&daemon, PORTS.into())?;
        streams.push(open()?);
        wait_for_flows(&daemon, usize::from(PORTS) + 1)?;
        streams.iter_mut().try_for_each(|stream| echo_once(stream, b"still there"))
    })
}

#[test]
fn names_without_number_leave_room_for_what_is_known_of_flows() -> Result<()> {
    // Seven of eight may be a connection's own.
    const LABELS: u32 = 8;
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let body = format!("[[route]]\nhost = \"*.example\"\nto = \"{}\"\n", lab.home_address());
        edged(lab, &body)?.terminate()?;
        table::shrink_labels(lab, LABELS)?;
        let daemon = edged(lab, &body)?;
        let open = |name: &str| {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            echo_once(&mut stream, &ClientHello::new(name).records())?;
            lab::Result::Ok(stream)
        };
        let mut streams =
            (0..20).map(|number| open(&format!("{number}.example"))).collect::<Result<Vec<_>>>()?;
        let flows = wait_for_flows(&daemon, 20)?;
        let named: Vec<_> = flows.iter().filter(|flow| !flow["host"].is_null()).collect();
        ensure!(named.len() == 7, "{} have a name", named.len());
        for flow in &flows {
            ensure!(flow["route"] == "*.example" && flow["listener"] == "https", "{flow}");
        }
        // A connection that has a label keeps and shares it.
        let shared = named[0]["host"].as_str().context("no host")?.to_owned();
        streams.push(open(&shared)?);
        let flows = wait_for_flows(&daemon, 21)?;
        ensure!(flows.iter().filter(|flow| flow["host"] == *shared).count() == 2, "{flows:?}");
        streams.iter_mut().try_for_each(|stream| echo_once(stream, b"still there"))?;
        drop(streams);
        let records = daemon.access_log.wait_for_count(21, "the connections", |record| {
            record["datapath"] == "flow" && record["route"] == "*.example"
        })?;
        ensure!(records.iter().filter(|record| record["sni"].is_null()).count() == 13, "{records:?}");
        Ok(())
    })
}

#[test]
fn a_client_that_loses_packets_outlives_the_daemon_too() -> Result<()> {
    // There and back it is twice that: loss on the client's short line is better repeated by the edge.
    const FAR: Duration = Duration::from_millis(50);
    with(Lab::plan().tunnel().relayed(), |lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        tunnel.relay()?.delay(FAR);
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let body = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address());
        let mut daemon = Edged::plan(lab, &body).daemon("drain_timeout = \"5s\"").daemon(ADMIN).start()?;
        // Every segment is a packet, so that those that are lost are many and small.
        lab.edge.ip(&["link", "set", "front", "gso_max_segs", "1"])?;
        let _loss = Loss::to(&lab.client, 20)?;
        let mut stream = wait::until_ok("a client that loses packets", SOON, || {
            let before = Metrics::read(&lab.edge)?.stays("lossy_client");
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            echo_once(&mut stream, &hello())?;
            echo_once(&mut stream, &Pattern::new(94).bytes(600_000))?;
            ensure!(Metrics::read(&lab.edge)?.stays("lossy_client") > before, "it lost too little");
            Ok(stream)
        })?;
        wait_for_flows(&daemon, 0)?;
        ensure!(daemon.terminate()? == Some(0));
        echo_once(&mut stream, b"still there")
    })
}
