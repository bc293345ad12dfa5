//! `edgectl` beside its tables: filters, the export of routes, the plan of a reload, the live access log.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
};

use lab::{
    Context as _, Edged, Result, Signal, bail,
    edged::program,
    ensure, service, stream,
    wait::{self, SOON},
};
use serde_json::{Value, json};

use crate::{case, greeted, greeting};

#[test]
fn a_dry_run_counts_connections_and_changes_nothing() -> Result<()> {
    case(|lab| {
        let _one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let _two = service::named(&lab.home, lab.home_at(1002), "two")?;
        let route = |host: &str, port, more: &str| {
            format!("[[route]]\nhost = \"{host}\"\nto = \"{}\"\n{more}", lab.home_at(port))
        };
        let denied = format!("deny = [\"{}\"]\n", lab.client.v4);
        let edged = Edged::start(lab, &(route("a.example", 1001, "") + &route("b.example", 1001, "")))?;
        let edgectl = edged.edgectl();
        let nothing = edgectl.text(&["reload", "--dry-run"])?;
        ensure!(nothing.contains("would change nothing"), "{nothing}");

        let mut denied_one = greeted(lab, "a.example", "one")?;
        let _kept = greeted(lab, "b.example", "one")?;
        edged.rewrite(&(route("a.example", 1001, &denied) + &route("c.example", 1002, "")))?;
        let plan = edgectl.json(&["reload", "--dry-run"])?;
        let key = json!([{"name": "a.example", "keys": ["deny"]}]);
        ensure!(plan["routes"]["changed"] == key, "{plan}");
        ensure!(plan["routes"]["added"] == json!(["c.example"]), "{plan}");
        ensure!(plan["routes"]["removed"] == json!(["b.example"]), "{plan}");
        ensure!(plan["connections"] == json!({"ended": 1, "kept": 1}), "{plan}");
        ensure!(greeting(lab, "b.example")? == "one", "nothing is applied");

        // The prediction comes true.
        edgectl.text(&["reload"])?;
        stream::read_to_end(&mut denied_one)?;
        let again = edgectl.json(&["reload", "--dry-run"])?;
        ensure!(again["routes"] == json!({"added": [], "removed": [], "changed": []}), "{again}");

        edged.rewrite("hots = 1\n")?;
        let complaint = edgectl.refused(1, &["reload", "--dry-run"])?;
        ensure!(complaint.contains("edge.toml:"), "{complaint}");
        let status = edgectl.json(&["status"])?;
        ensure!(status["config"]["last_reload"]["successful"] == true, "a dry run is no reload: {status}");
        Ok(())
    })
}

#[test]
fn connections_are_found_and_closed_by_what_they_are() -> Result<()> {
    case(|lab| {
        let _one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let to = lab.home_at(1001);
        let edged = Edged::start(lab, &format!("[[route]]\nhost = \"*.example\"\nto = \"{to}\"\n"))?;
        let edgectl = edged.edgectl();
        let mut a = greeted(lab, "a.example", "one")?;
        let _b = greeted(lab, "b.example", "one")?;
        let count = |filter: &[&str]| -> Result<usize> {
            let list = edgectl.json(&[&["connections", "list"], filter].concat())?;
            Ok(list.as_array().map_or(0, Vec::len))
        };
        let (client, home) = (lab.client.v4.to_string(), lab.home_address().to_string());
        for (filter, found) in [
            (&["--host", "a.example"][..], 1),
            (&["--host", "*.example"], 2),
            (&["--client", &client], 2),
            (&["--client", "203.0.113.0/24"], 0),
            (&["--backend", &home, "--limit", "1"], 1),
            (&["--older", "1h"], 0),
        ] {
            ensure!(count(filter)? == found, "{filter:?}");
        }
        let closed = edgectl.text(&["connections", "close", "--host", "a.example"])?;
        ensure!(closed == "closed 1 connection\n", "{closed}");
        stream::read_to_end(&mut a)?;
        edged.access_log.wait_for("it", |record| record["close"] == "closed_by_operator")?;
        edged.wait_for_connections(1)?;
        Ok(())
    })
}

#[test]
fn exported_routes_can_move_into_the_file() -> Result<()> {
    case(|lab| {
        let _one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let edged = Edged::start(lab, "")?;
        let edgectl = edged.edgectl();
        let to = lab.home_at(1001).to_string();
        edgectl.text(&["routes", "add", ".a.example", &to, "--alpn", "h2", "--connections", "7"])?;
        edgectl.text(&["routes", "add", "b.example", &to, "--deny", "203.0.113.0/24"])?;
        let text = edgectl.text(&["routes", "export"])?;
        edged.rewrite(&text)?;
        edgectl.text(&["reload"])?;
        let routes = edgectl.list("routes")?;
        ensure!(routes.len() == 3 && routes.iter().all(|route| route["source"] == "file"), "{routes:?}");
        ensure!(greeting(lab, "b.example")? == "one");
        Ok(())
    })
}

#[test]
fn the_log_is_followed_through_the_control_socket() -> Result<()> {
    case(|lab| {
        let _one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let to = lab.home_at(1001);
        let edged = Edged::start(lab, &format!("[[route]]\nhost = \"a.example\"\nto = \"{to}\"\n"))?;
        let edgectl = edged.edgectl();
        ensure!(greeting(lab, "a.example")? == "one");
        ensure!(greeting(lab, "scan.example")?.starts_with('\u{15}'), "an alert");
        wait::until_true("both lines", SOON, || {
            edgectl.text(&["log"]).is_ok_and(|text| text.lines().count() == 2)
        })?;
        let refused = edgectl.text(&["log", "--refused"])?;
        ensure!(refused.lines().count() == 1, "{refused}");
        ensure!(refused.contains(" scan.example refused, no_route"), "{refused}");
        let one = edgectl.text(&["log", "--host", "a.example", "--json"])?;
        let one: Value = serde_json::from_str(&one)?;
        ensure!(
            one["sni"] == "a.example" && one["close"] == "finished" && one["route"] == "a.example",
            "{one}"
        );

        let mut follower = Command::new(program("edgectl")?)
            .args(["log", "--follow", "--refused", "-n", "0", "--json", "--control"])
            .arg(edgectl.control())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = BufReader::new(follower.stdout.take().context("no output")?).lines();
        let (seen, next) = mpsc::channel();
        std::thread::spawn(move || {
            lines.map_while(std::result::Result::ok).try_for_each(|line| seen.send(line))
        });
        // Until it follows, nobody hears of what happens.
        let line = wait::until_ok("the line of a refused client", SOON, || {
            greeting(lab, "a.example")?;
            greeting(lab, "late.example")?;
            next.recv_timeout(std::time::Duration::from_millis(200)).context("no line yet")
        })?;
        let line: Value = serde_json::from_str(&line)?;
        ensure!(line["sni"] == "late.example" && line["refused"] == true, "{line}");
        for line in next.try_iter() {
            ensure!(!line.contains("a.example\""), "it wants the refused only: {line}");
        }

        // Nobody who follows delays the end.
        let mut edged = edged;
        let before = std::time::Instant::now();
        edged.signal(Signal::TERM)?;
        ensure!(edged.process().wait(SOON)?.code() == Some(0));
        let took = before.elapsed();
        ensure!(took < std::time::Duration::from_millis(1_900), "the end took {took:?}");
        if let Some(status) = follower.try_wait()? {
            bail!("it waits for the next daemon, and ended with {status}");
        }
        follower.kill()?;
        follower.wait()?;
        Ok(())
    })
}
