//! Lists, metrics and the access log agree with what happened.

use std::{
    fs,
    io::{Read as _, Write as _},
    process::Command,
};

use lab::{
    Context, Edged, Lab, Result,
    edged::program,
    ensure,
    hello::ClientHello,
    metrics::{ADMIN, Metrics},
    service::{self, Service},
    stream,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{answer_to, case, greeting};

fn route(lab: &Lab, port: u16) -> String {
    format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_at(port))
}

fn only_backend(edged: &Edged) -> Result<Value> {
    edged.edgectl().list("backends")?.pop().context("no backend")
}

#[test]
fn a_backend_that_nobody_checks_is_what_clients_find() -> Result<()> {
    case(|lab| {
        let edged = Edged::plan(lab, &route(lab, 1001)).daemon(ADMIN).start()?;
        let to = lab.home_at(1001);
        let series = format!("edge_backend_up{{pool=\"{to}\",backend=\"{to}\"}}");
        let shown = || Metrics::read(&lab.edge).map(|metrics| metrics.find(&series));
        let fresh = only_backend(&edged)?;
        ensure!(fresh["state"] == "unchecked" && fresh["last_success_at"].is_null(), "{fresh}");
        ensure!(shown()?.is_none(), "a metric about what nobody knows");
        let hello = ClientHello::new("a.example").records();
        for _ in 0..5 {
            let _ = answer_to(lab, lab.edge.at(443), &hello);
        }
        let down = only_backend(&edged)?;
        let refused = |field: &str| down[field].as_str().is_some_and(|error| error.contains("refused"));
        ensure!(down["state"] == "down" && refused("reason") && refused("last_error"), "{down}");
        ensure!(!down["last_error_at"].is_null() && down["last_success_at"].is_null(), "{down}");
        wait::until_ok("the metric", SOON, || {
            ensure!(shown()? == Some(0), "{:?}", shown()?);
            Ok(())
        })?;
        let table = edged.edgectl().text(&["backends", "list"])?;
        ensure!(table.contains("down") && table.contains("refused"), "{table}");
        let doctor = edged.edgectl().run(&["doctor"])?;
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(doctor.contains("refused"), "{doctor}");
        let _service = service::named(&lab.home, to, "reached")?;
        // Down or not, there is no other.
        ensure!(greeting(lab, "a.example")? == "reached");
        let up = only_backend(&edged)?;
        ensure!(up["state"] == "up" && !up["last_success_at"].is_null(), "{up}");
        ensure!(up["last_error"].as_str().is_some_and(|error| error.contains("refused")), "{up}");
        wait::until_ok("the metric", SOON, || {
            ensure!(shown()? == Some(1), "{:?}", shown()?);
            Ok(())
        })
    })
}

#[test]
fn the_line_of_a_connection_that_failed_says_where_and_why() -> Result<()> {
    case(|lab| {
        let body = format!(
            "[[route]]\nhost = \"a.example\"\nto = [\"{}\", \"{}\"]\n",
            lab.home_at(1001),
            lab.home_at(1002)
        );
        let edged = Edged::start(lab, &body)?;
        let mut client = lab.client.connect(lab.edge.at(443))?;
        let own = client.local_addr()?;
        client.write_all(&ClientHello::new("a.example").records())?;
        stream::read_to_end(&mut client)?;
        let record = edged.access_log.wait_for_client(own)?;
        ensure!(record["close"] == "connect_failed" && record["route"] == "a.example", "{record}");
        ensure!(record["attempts"] == 2 && record["sni"] == "a.example", "{record}");
        let tried = [1001, 1002].map(|port| lab.home_at(port).to_string());
        ensure!(tried.iter().any(|backend| record["backend"] == *backend), "{record}");
        ensure!(record["error"].as_str().is_some_and(|error| error.contains("refused")), "{record}");
        ensure!(record["local"] == lab.edge.at(443).to_string(), "{record}");
        Ok(())
    })
}

#[test]
fn a_connection_without_a_byte_is_counted_and_not_logged() -> Result<()> {
    case(|lab| {
        for (setting, lines) in [("", 1), ("access_log_empty = true", 3)] {
            let edged = Edged::plan(lab, &format!("[limits]\nhello_timeout = \"1s\"\n{}", route(lab, 1001)))
                .daemon(setting)
                .daemon("datapath = \"copy\"")
                .start()?;
            let before = edged.access_log.records()?.len();
            drop(lab.client.connect(lab.edge.at(443))?);
            stream::read_to_end_of(lab.client.connect(lab.edge.at(443)))?;
            let mut partial = lab.client.connect(lab.edge.at(443))?;
            partial.write_all(&[22])?;
            let own = partial.local_addr()?;
            drop(partial);
            edged.access_log.wait_for_client(own)?;
            edged.edgectl().until(&["status"], |status| {
                ensure!(status["connections"]["total"] == 3, "{}", status["connections"]);
                Ok(())
            })?;
            let records = edged.access_log.records()?;
            ensure!(records.len() - before == lines, "{setting}: {records:?}");
            edged.kill()?;
        }
        Ok(())
    })
}

#[test]
fn a_route_that_is_said_twice_is_counted_once() -> Result<()> {
    const LENGTH: usize = 4 << 20;
    case(|lab| {
        let _service = Service::start(&lab.home, lab.home_at(1001), |mut stream| {
            let mut hello = [0; 5];
            stream.read_exact(&mut hello)?;
            stream.write_all(&vec![b'x'; LENGTH])?;
            Ok(stream::read_to_end(&mut stream)?.0)
        })?;
        let to = lab.home_at(1001).to_string();
        let edged = Edged::plan(lab, "").daemon(ADMIN).start()?;
        let edgectl = edged.edgectl();
        edgectl.text(&["routes", "add", "a.example", &to])?;
        // Written differently, and the same route.
        edged.rewrite(&route(lab, 1001).replace("a.example", "A.example"))?;
        edgectl.text(&["reload"])?;
        edged.wait_for_log("the configuration file now has the same route")?;
        let listed = edgectl.list("routes")?;
        ensure!(listed.len() == 1 && listed[0]["source"] == "file", "{listed:?}");
        let state = fs::read_to_string(edged.state().join("state.toml"))?;
        ensure!(!state.contains("a.example"), "{state}");

        // Another word about the same clients: both stay, the operator is told, and one has the count.
        let other = format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_at(1002));
        edged.rewrite("")?;
        edgectl.text(&["reload"])?;
        edgectl.text(&["routes", "add", "a.example", &to])?;
        edged.rewrite(&other)?;
        let said = edgectl.text(&["reload"])?;
        ensure!(said.contains("two routes for a.example") && said.contains(&to), "{said}");
        ensure!(said.contains(&lab.home_at(1002).to_string()), "{said}");
        let mut client = lab.client.connect(lab.edge.at(443))?;
        client.write_all(&ClientHello::new("a.example").records())?;
        let mut received = vec![0; LENGTH];
        client.read_exact(&mut received)?;
        drop(client);
        edged.access_log.wait_for("its end", |record| record["bytes_down"] == LENGTH)?;
        let listed = edgectl.until(&["routes", "list"], |listed| {
            let down = |source: &str| -> u64 {
                let routes = listed.as_array().into_iter().flatten();
                routes
                    .filter(|route| route["source"] == source)
                    .filter_map(|route| route["bytes_down"].as_u64())
                    .sum()
            };
            ensure!((down("runtime"), down("file")) == (LENGTH as u64, 0), "{listed}");
            Ok(())
        })?;
        ensure!(listed.as_array().is_some_and(|routes| routes.len() == 2), "{listed}");
        Metrics::until(&lab.edge, "the bytes", |metrics| {
            let down = metrics.get("edge_bytes_total{route=\"a.example\",direction=\"down\"}");
            ensure!(down == LENGTH as u64, "{down}");
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn a_log_level_that_there_is_not_is_refused() -> Result<()> {
    case(|lab| {
        let mut command = Command::new(program("edged")?);
        command.args(["--check", "--config", "/dev/null"]).env("EDGE_LOG", "verbose");
        let output = lab.edge.output(command)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && complaint.contains("EDGE_LOG"), "{complaint}");
        Ok(())
    })
}
