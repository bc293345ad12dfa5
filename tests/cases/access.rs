//! Access by name: a route that matches a client and refuses it, so that no other route is tried.

use std::{io::Write, net::TcpStream};

use lab::{
    Edged, Lab, Result, ensure,
    hello::{self, ClientHello},
    service,
};

use crate::{answer_to, case, echo_once, flow::wait_for_flows, greeting};

fn is_refused(lab: &Lab, name: &str) -> Result<()> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    stream.write_all(&ClientHello::new(name).records())?;
    hello::expect_alert(&mut stream, hello::UNRECOGNIZED_NAME)?;
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n");
    let answer = answer_to(lab, lab.edge.at(80), request.as_bytes())?;
    ensure!(answer.starts_with("HTTP/1.1 404 "), "{answer:?}");
    Ok(())
}

#[test]
fn who_is_refused_by_name_is_not_served_by_the_wildcard() -> Result<()> {
    case(|lab| {
        let tls = service::named(&lab.home, lab.home_at(443), "tls")?;
        let plain = service::named(&lab.home, lab.home_at(80), "http")?;
        let client = lab.client.v4;
        let home = lab.home_address();
        let edged = Edged::start(
            lab,
            &format!(
                "[[route]]\nhost = \"*.a.example\"\nto = \"{home}\"\n\
                 [[route]]\nhost = \"allow.a.example\"\nto = \"{home}\"\nallow = [\"198.51.100.0/24\"]\n\
                 [[route]]\nhost = \"deny.a.example\"\nto = \"{home}\"\ndeny = [\"{client}\"]\n\
                 [[route]]\nhost = \"open.a.example\"\nto = \"{home}\"\nallow = [\"{client}\"]\n\
                 [[route]]\nhost = \"refuse.a.example\"\nto = \"refuse\"\n\
                 [[route]]\nhost = \"from.a.example\"\nto = \"refuse\"\nfrom = [\"198.51.100.0/24\"]\n"
            ),
        )?;
        for name in ["allow.a.example", "deny.a.example", "refuse.a.example"] {
            is_refused(lab, name).map_err(|error| error.context(name.to_owned()))?;
        }
        ensure!(tls.accepted() + plain.accepted() == 0, "a refused client reached a backend");
        for name in ["x.a.example", "open.a.example", "from.a.example"] {
            ensure!(greeting(lab, name)? == "tls", "{name}");
        }

        let denied = edged.access_log.wait_for("a denied client", |record| {
            record["route"] == "deny.a.example" && record["close"] == "denied"
        })?;
        ensure!(denied["backend"].is_null() && denied["sni"] == "deny.a.example", "{denied}");
        edged.access_log.wait_for("a refused client", |record| {
            record["route"] == "refuse.a.example" && record["close"] == "refused"
        })?;
        let rejected = &edged.edgectl().json(&["status"])?["rejected"];
        ensure!(rejected["denied"] == 4 && rejected["refused"] == 2, "{rejected}");
        Ok(())
    })
}

#[test]
fn access_is_given_and_shown_at_run_time() -> Result<()> {
    case(|lab| {
        let _tls = service::named(&lab.home, lab.home_at(443), "tls")?;
        let client = lab.client.v4.to_string();
        let home = lab.home_address().to_string();
        let wildcard = format!("[[route]]\nhost = \"*.a.example\"\nto = \"{home}\"\n");
        let mut edged = Edged::start(lab, &wildcard)?;
        let edgectl = edged.edgectl();
        edgectl.text(&["routes", "add", "admin.a.example", &home, "--deny", &client])?;
        edgectl.text(&["routes", "add", "no.a.example", "refuse"])?;
        edgectl.refused(1, &["routes", "add", "odd.a.example", "refuse", "--allow", &client])?;
        is_refused(lab, "admin.a.example")?;
        is_refused(lab, "no.a.example")?;

        let list = edgectl.text(&["routes", "list"])?;
        ensure!(list.contains("DENY") && list.contains(&format!("{client}/32")), "{list}");
        let test = |arguments: &[&str]| edgectl.text(&[&["routes", "test"], arguments].concat());
        let said = test(&["admin.a.example", "--from", &client])?;
        ensure!(said.contains(&format!("denied by its route, which {client} may not use")), "{said}");
        let said = test(&["admin.a.example", "--from", "203.0.113.9"])?;
        ensure!(said.contains("goes to"), "{said}");
        let said = test(&["no.a.example"])?;
        ensure!(said.contains("refused by its route: the client gets the TLS alert"), "{said}");

        edged.terminate()?;
        drop(edged);
        let _edged = Edged::start(lab, &wildcard)?;
        is_refused(lab, "admin.a.example")?;
        ensure!(greeting(lab, "x.a.example")? == "tls");
        Ok(())
    })
}

/// Whom a route or a listener refuses since a reload, it refuses while connected, on sockets and as a flow. Others and
/// those that only `from` leaves out stay.
#[test]
fn a_reload_ends_the_connections_of_whom_it_denies() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let (v4, v6, home) = (lab.client.v4, lab.client.v6, lab.home_address());
        let body = |routes: [&str; 4]| {
            let route = |(nth, more): (usize, &str)| {
                let datapath = if nth == 1 { "flow" } else { "auto" };
                format!(
                    "[[route]]\nhost = \"r{nth}.example\"\nto = \"{home}:443\"\ndatapath = \"{datapath}\"\n{more}\n"
                )
            };
            routes.into_iter().enumerate().map(route).collect::<String>()
        };
        let edged = Edged::start(lab, &body(["", "", "", ""]))?;
        let open = |nth: u8, to| -> Result<TcpStream> {
            let mut stream = lab.client.connect(to)?;
            echo_once(&mut stream, &ClientHello::new(&format!("r{nth}.example")).records())?;
            Ok(stream)
        };
        let mut denied = open(0, lab.edge.at(443))?;
        let mut denied_flow = open(1, lab.edge.at(443))?;
        let mut other_source = open(0, lab.edge.at_v6(443))?;
        let mut from = open(2, lab.edge.at(443))?;
        let mut allowed = open(3, lab.edge.at(443))?;
        let only = format!("deny = [\"{v4}\"]");
        let elsewhere = "from = [\"198.51.100.0/24\"]";
        let own = format!("allow = [\"{v4}\", \"{v6}\"]");
        edged.rewrite(&body([&only, &only, elsewhere, &own]))?;
        edged.edgectl().text(&["reload"])?;
        for (stream, name) in [(&mut denied, "r0.example"), (&mut denied_flow, "r1.example")] {
            ensure!(echo_once(stream, b"still here?").is_err(), "{name} is carried on");
            edged
                .access_log
                .wait_for("its end", |record| record["sni"] == name && record["close"] == "denied")?;
        }
        for stream in [&mut other_source, &mut from, &mut allowed] {
            echo_once(stream, b"still here")?;
        }
        Ok(())
    })
}

/// The same if the daemon starts with such a configuration: an earlier daemon's flow of this source ends.
#[test]
fn a_start_ends_the_flows_of_whom_it_denies() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let body = |deny: &str| {
            let to = lab.home_address();
            format!("[[route]]\nhost = \"*\"\nto = \"{to}:443\"\ndatapath = \"flow\"\n{deny}\n")
        };
        let edged = Edged::start(lab, &body(""))?;
        let open = |to| -> Result<TcpStream> {
            let mut stream = lab.client.connect(to)?;
            echo_once(&mut stream, &ClientHello::new("a.example").records())?;
            Ok(stream)
        };
        let (mut denied, mut other) = (open(lab.edge.at(443))?, open(lab.edge.at_v6(443))?);
        wait_for_flows(&edged, 2)?;
        edged.kill()?;
        let edged = Edged::start(lab, &body(&format!("deny = [\"{}\"]", lab.client.v4)))?;
        edged.access_log.wait_for("its end", |record| record["close"] == "denied")?;
        ensure!(echo_once(&mut denied, b"still here?").is_err(), "it is carried on");
        echo_once(&mut other, b"still here")
    })
}
