//! `connections` of a route and of a pool: how many there may be at the same time, on sockets, as flows and after a restart.

use std::{io::Write, net::TcpStream};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    service, stream,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{answer_to, case, echo_once, greeted};

const NAME: &str = "few.example";
/// The alert `internal_error`.
const INTERNAL_ERROR: u8 = 80;

fn hello() -> Vec<u8> {
    ClientHello::new(NAME).records()
}

fn open(lab: &Lab) -> Result<TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    echo_once(&mut stream, &hello())?;
    Ok(stream)
}

fn is_refused(lab: &Lab) -> Result<()> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    stream.write_all(&hello())?;
    lab::hello::expect_alert(&mut stream, INTERNAL_ERROR)
}

/// Opens one as soon as there is room.
fn open_soon(lab: &Lab) -> Result<TcpStream> {
    let mut opened = None;
    wait::until_ok("a place to become free", SOON, || {
        opened = Some(open(lab)?);
        Ok(())
    })?;
    opened.ok_or_else(|| lab::Error::msg("none was opened"))
}

fn route(lab: &Lab, limit: &str) -> String {
    format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n{limit}\n", lab.home_address())
}

fn account(edged: &Edged, what: &str) -> Result<Value> {
    edged.edgectl().list(what)?.pop().ok_or_else(|| lab::Error::msg("nothing is listed"))
}

#[test]
fn a_route_has_no_more_connections_than_it_may() -> Result<()> {
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, &route(lab, "connections = 2"))?;
        let mut live = vec![open(lab)?, open(lab)?];
        is_refused(lab)?;
        let record = edged.access_log.wait_for("the refusal", |record| record["close"] == "route_limit")?;
        ensure!(record["route"] == NAME && record["backend"].is_null(), "{record}");
        ensure!(service.accepted() == 2, "a refused client reached the backend");
        let shown = account(&edged, "routes")?;
        ensure!(shown["connections"] == 2 && shown["connections_limit"] == 2, "{shown}");
        ensure!(edged.edgectl().text(&["routes", "list"])?.contains("2/2"));
        live.pop();
        live.push(open_soon(lab)?);
        is_refused(lab)?;
        // A reload changes the limit for the next, and those above a lower one go on.
        edged.rewrite(&route(lab, "connections = 1"))?;
        edged.edgectl().text(&["reload"])?;
        is_refused(lab)?;
        live.iter_mut().try_for_each(|stream| echo_once(stream, b"still there"))?;
        edged.rewrite(&route(lab, ""))?;
        edged.edgectl().text(&["reload"])?;
        live.push(open(lab)?);
        ensure!(account(&edged, "routes")?["connections_limit"].is_null());
        Ok(())
    })
}

#[test]
fn the_hosts_of_a_route_share_its_limit() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let body = format!(
            "[[route]]\nhost = [\"other.example\", \"{NAME}\"]\nto = \"{}\"\nconnections = 2\n",
            lab.home_address()
        );
        let edged = Edged::plan(lab, &body).daemon("datapath = \"flow\"").start()?;
        let mut other = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut other, &ClientHello::new("other.example").records())?;
        let _live = open(lab)?;
        is_refused(lab)?;
        // The next daemon counts them together, too.
        edged.edgectl().until(&["connections", "list"], |list| {
            let flows = list.as_array().into_iter().flatten().filter(|it| it["datapath"] == "flow");
            ensure!(flows.count() == 2, "{list}");
            Ok(())
        })?;
        edged.kill()?;
        let _edged = Edged::plan(lab, &body).daemon("datapath = \"flow\"").start()?;
        is_refused(lab)?;
        drop(other);
        let _next = open_soon(lab)?;
        Ok(())
    })
}

#[test]
fn a_route_added_at_run_time_has_its_limit_too() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, "")?;
        let to = lab.home_address().to_string();
        edged.edgectl().text(&["routes", "add", NAME, &to, "--connections", "1"])?;
        let _live = open(lab)?;
        is_refused(lab)?;
        let state = edged.state().to_owned();
        ensure!(account(&edged, "routes")?["connections_limit"] == 1, "{}", state.display());
        edged.kill()?;
        let edged = Edged::start(lab, "")?;
        ensure!(account(&edged, "routes")?["connections_limit"] == 1);
        Ok(())
    })
}

#[test]
fn an_http_client_over_the_limit_is_told_so() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(80))?;
        let _edged = Edged::start(lab, &route(lab, "connections = 1"))?;
        let head = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
        let mut live = lab.client.connect(lab.edge.at(80))?;
        echo_once(&mut live, head.as_bytes())?;
        let answer = answer_to(lab, lab.edge.at(80), head.as_bytes())?;
        ensure!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        Ok(())
    })
}

#[test]
fn a_full_backend_is_passed_over_and_stays_up() -> Result<()> {
    case(|lab| {
        let _one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let _two = service::named(&lab.home, lab.home_at(1002), "two")?;
        let pool = format!(
            "[[pool]]\nname = \"p\"\nbalance = \"source-hash\"\nconnections = 1\nhealth.kind = \"tcp\"\n\
             [[pool.backend]]\nto = \"{}\"\n[[pool.backend]]\nto = \"{}\"\nbackup = true\n\
             [[route]]\nhost = \"{NAME}\"\nto = \"p\"\n",
            lab.home_at(1001),
            lab.home_at(1002)
        );
        let edged = Edged::start(lab, &pool)?;
        let first = greeted(lab, NAME, "one")?;
        let _second = greeted(lab, NAME, "two")?;
        for _ in 0..5 {
            is_refused(lab)?;
        }
        let record = edged.access_log.wait_for("the refusal", |record| record["close"] == "backend_limit")?;
        ensure!(record["route"] == NAME && record["attempts"] == 0, "{record}");
        ensure!(record["error"].as_str().is_some_and(|error| error.contains("pool p")), "{record}");
        for backend in edged.edgectl().list("backends")? {
            ensure!(backend["state"] != "down" && backend["last_error"].is_null(), "{backend}");
            ensure!(backend["connections"] == 1 && backend["connections_limit"] == 1, "{backend}");
        }
        stream::reset(first)?;
        wait::until_ok("the first backend's place", SOON, || greeted(lab, NAME, "one").map(drop))
    })
}

#[test]
fn a_crowd_gets_exactly_the_places_that_there_are() -> Result<()> {
    const PLACES: usize = 7;
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let _edged = Edged::start(lab, &route(lab, &format!("connections = {PLACES}")))?;
        let mut crowd = (0..60).map(|_| lab.client.connect(lab.edge.at(443))).collect::<Result<Vec<_>>>()?;
        for stream in &mut crowd {
            stream.write_all(&hello())?;
        }
        let echoed = crowd.iter_mut().filter_map(|stream| {
            let mut first = [0; 1];
            std::io::Read::read_exact(stream, &mut first).ok().filter(|()| first == hello()[..1])
        });
        ensure!(
            echoed.count() == PLACES && service.accepted() == PLACES,
            "{} were served",
            service.accepted()
        );
        Ok(())
    })
}

#[test]
fn flows_have_places_until_they_end_and_after_a_restart() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let start = |body: &str| Edged::plan(lab, body).daemon("datapath = \"flow\"").start();
        let mut edged = start(&route(lab, "connections = 2"))?;
        let mut live = vec![open(lab)?, open(lab)?];
        crate::flow::wait_for_flows(&edged, 2)?;
        is_refused(lab)?;
        // The kernel keeps a closed flow for a minute, its place is free at once.
        drop(live.pop());
        live.push(open_soon(lab)?);
        crate::flow::wait_for_flows(&edged, 2)?;
        is_refused(lab)?;
        // The next daemon counts those that it finds, under a limit that is there or comes later.
        edged.rewrite(&route(lab, ""))?;
        edged.terminate()?;
        let edged = start(&route(lab, ""))?;
        crate::flow::wait_for_flows(&edged, 2)?;
        edged.rewrite(&route(lab, "connections = 2"))?;
        edged.edgectl().text(&["reload"])?;
        is_refused(lab)?;
        drop(live.pop());
        let mut last = open_soon(lab)?;
        is_refused(lab)?;
        live.iter_mut().chain([&mut last]).try_for_each(|stream| echo_once(stream, b"still there"))?;
        edged
            .access_log
            .wait_for_count(3, "the refusals", |record| record["close"] == "route_limit")
            .map(drop)
    })
}
