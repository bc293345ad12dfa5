//! The operator's commands at run time, and the output of `edgectl`.

use std::process::Command;

use lab::{
    Context, Edgectl, Edged, Lab, Result,
    certificates::Authority,
    edged, ensure,
    peers::Nginx,
    service,
    stream::{self, End},
    wait::{self, SOON},
};
use serde_json::json;

use crate::{case, greeted, greeting, tunnel_case};

fn minimal(lab: &Lab) -> String {
    format!("[[route]]\nhost = \"file.example\"\nto = \"{}\"\n", lab.home_address())
}

#[test]
fn a_route_is_added_listed_tested_and_removed() -> Result<()> {
    case(|lab| {
        let _file = service::named(&lab.home, lab.home_at(443), "file")?;
        let _added = service::named(&lab.home, lab.home_at(1001), "added")?;
        let edged = Edged::start(lab, &minimal(lab))?;
        let edgectl = edged.edgectl();
        let to = lab.home_at(1001).to_string();
        ensure!(greeting(lab, "new.example")?.starts_with('\u{15}'), "an alert before there is a route");
        edgectl.text(&["routes", "add", "New.Example", &to])?;
        // In effect when edgectl has answered, without a wait.
        ensure!(greeting(lab, "new.example")? == "added");
        ensure!(greeting(lab, "file.example")? == "file");

        let routes = edgectl.list("routes")?;
        let of = |host: &str| routes.iter().find(|route| route["host"] == host).context("not listed");
        let (file, new) = (of("file.example")?, of("new.example")?);
        ensure!(routes.len() == 2 && file["source"] == "file", "{file}");
        ensure!(new["host"] == "new.example" && new["source"] == "runtime" && new["to"] == to, "{new}");
        for field in ["listener", "alpn", "from", "datapath", "connections", "bytes_up", "bytes_down"] {
            ensure!(new.get(field).is_some(), "no {field}: {new}");
        }
        // Bytes that the client has already received may be counted a moment later.
        edgectl.until(&["routes", "list"], |routes| {
            let new = routes.as_array().into_iter().flatten().find(|route| route["host"] == "new.example");
            ensure!(new.context("not listed")?["bytes_down"] == 5, "{routes}");
            Ok(())
        })?;

        let test = edgectl.json(&["routes", "test", "new.example"])?;
        ensure!(test["route"]["to"] == to, "{test}");
        let nowhere = edgectl.json(&["routes", "test", "other.example"])?;
        ensure!(nowhere["route"].is_null() && !nowhere["outcome"].is_null(), "{nowhere}");

        edgectl.text(&["routes", "remove", "new.example"])?;
        ensure!(greeting(lab, "new.example")?.starts_with('\u{15}'), "an alert after the route is gone");
        ensure!(edgectl.list("routes")?.len() == 1);
        Ok(())
    })
}

#[test]
fn removing_a_route_leaves_or_closes_its_connections() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, "")?;
        let edgectl = edged.edgectl();
        let hello = lab::hello::ClientHello::new("a.example").records();
        for close in [false, true] {
            edgectl.text(&["routes", "add", "a.example", &lab.home_address().to_string()])?;
            let mut live = lab.client.connect(lab.edge.at(443))?;
            crate::echo_once(&mut live, &hello)?;
            if close {
                edgectl.text(&["routes", "remove", "a.example", "--close"])?;
                stream::read_to_end(&mut live)?;
                edged.access_log.wait_for("it", |record| record["close"] == "route_removed")?;
            } else {
                edgectl.text(&["routes", "remove", "a.example"])?;
                crate::echo_once(&mut live, b"still there")?;
            }
        }
        Ok(())
    })
}

#[test]
fn connections_are_listed_and_closed() -> Result<()> {
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, &minimal(lab))?;
        let hello = lab::hello::ClientHello::new("file.example").alpn(&["h2"]).records();
        let mut live = lab.client.connect(lab.edge.at(443))?;
        crate::echo_once(&mut live, &hello)?;
        // Bytes that the client has already received may be counted a moment later.
        let list = edged.edgectl().until(&["connections", "list"], |list| {
            let counted = ["bytes_up", "bytes_down"].iter().all(|bytes| list[0][bytes] == hello.len());
            ensure!(counted && list.as_array().is_some_and(|list| list.len() == 1), "{list}");
            Ok(())
        })?;
        let connection = &list[0];
        ensure!(connection["client"] == live.local_addr()?.to_string(), "{connection}");
        ensure!(connection["host"] == "file.example" && connection["alpn"] == json!(["h2"]), "{connection}");
        ensure!(connection["listener"] == "https" && connection["route"] == "file.example", "{connection}");
        ensure!(connection["backend"] == lab.home_at(443).to_string(), "{connection}");
        for field in ["datapath", "age_seconds", "idle_seconds"] {
            ensure!(!connection[field].is_null(), "no {field}: {connection}");
        }
        let id = &connection["id"];
        let id_text = id.to_string();
        edged.edgectl().text(&["connections", "close", &id_text])?;
        stream::read_to_end(&mut live)?;
        // The backend may see FIN or RST, but it must see the end.
        let _ = service.outcome();
        let record = edged.access_log.wait_for("it", |record| record["close"] == "closed_by_operator")?;
        ensure!(record["id"] == *id, "{record}");
        // Its line is written before it is forgotten.
        edged.wait_for_connections(0)?;
        edged.edgectl().refused(1, &["connections", "close", &id_text])?;
        Ok(())
    })
}

#[test]
fn backends_are_listed_drained_and_put_back() -> Result<()> {
    case(|lab| {
        let one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let _two = service::named(&lab.home, lab.home_at(1002), "two")?;
        let (first, second) = (lab.home_at(1001).to_string(), lab.home_at(1002).to_string());
        let body = format!(
            "[[pool]]\nname = \"p\"\nhealth = {{ kind = \"off\" }}\n[[pool.backend]]\nto = \"{first}\"\n\
             [[pool.backend]]\nto = \"{second}\"\n[[route]]\nhost = \"*\"\nto = \"p\"\n"
        );
        let edged = Edged::start(lab, &body)?;
        let edgectl = edged.edgectl();
        let state = |to: &str| -> Result<String> {
            let list = edgectl.list("backends")?;
            let backend = list.iter().find(|backend| backend["to"] == to).context("not listed")?;
            ensure!(backend["pool"] == "p" && backend["weight"] == 1, "{backend}");
            Ok(backend["state"].as_str().unwrap_or_default().to_owned())
        };
        ensure!(state(&first)? == "unchecked" && state(&second)? == "unchecked");
        edgectl.text(&["backends", "drain", &first])?;
        ensure!(state(&first)? == "drained");
        for _ in 0..6 {
            ensure!(greeting(lab, "a.example")? == "two");
        }
        ensure!(one.accepted() == 0, "a drained backend got a connection");
        edgectl.text(&["backends", "ready", &first])?;
        wait::until_true("the backend to be used again", SOON, || {
            greeting(lab, "a.example").is_ok_and(|got| got == "one")
        })?;
        edgectl.refused(1, &["backends", "drain", "192.0.2.1:1"])?;
        Ok(())
    })
}

#[test]
fn a_backend_that_fails_is_told_and_avoided() -> Result<()> {
    case(|lab| {
        let one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let _two = service::named(&lab.home, lab.home_at(1002), "two")?;
        let (first, second) = (lab.home_at(1001).to_string(), lab.home_at(1002).to_string());
        let body = format!(
            "[[pool]]\nname = \"p\"\nhealth = {{ kind = \"tcp\", interval = \"200ms\", timeout = \"1s\", rise = 2, fall = 2 }}\n\
             [[pool.backend]]\nto = \"{first}\"\n[[pool.backend]]\nto = \"{second}\"\n\
             [[route]]\nhost = \"*\"\nto = \"p\"\n"
        );
        let edged = Edged::start(lab, &body)?;
        let state = |wanted: &str| {
            wait::until_ok(&format!("the backend to be {wanted}"), SOON, || {
                let list = edged.edgectl().list("backends")?;
                let backend = list.iter().find(|backend| backend["to"] == first).context("not listed")?;
                ensure!(backend["state"] == wanted, "{backend}");
                ensure!(wanted == "up" || !backend["reason"].is_null(), "down without a reason: {backend}");
                Ok(())
            })
        };
        state("up")?;
        drop(one);
        state("down")?;
        for _ in 0..6 {
            ensure!(greeting(lab, "a.example")? == "two");
        }
        let _one = service::named(&lab.home, lab.home_at(1001), "one")?;
        state("up")
    })
}

#[test]
fn exit_statuses_are_as_scripts_rely_on() -> Result<()> {
    case(|lab| {
        let edged = Edged::start(lab, &minimal(lab))?;
        let edgectl = edged.edgectl();
        let home = lab.home_address().to_string();
        for arguments in
            [&["status"][..], &["routes", "list"], &["connections", "list"], &["backends", "list"]]
        {
            edgectl.text(arguments)?;
            edgectl.json(arguments)?;
        }
        let status = edgectl.json(&["status"])?;
        ensure!(status["routes"]["file"] == 1, "{status}");

        // 1: the daemon refused, with a reason.
        edgectl.text(&["routes", "add", "twice.example", &home])?;
        for arguments in [
            &["routes", "remove", "absent.example"][..],
            &["routes", "remove", "file.example"],
            &["routes", "add", "a.example", "no such pool"],
            &["routes", "add", "a.example", &home, "--listener", "absent"],
            &["connections", "close", "999999"],
        ] {
            let complaint = edgectl.refused(1, arguments)?;
            ensure!(!complaint.trim().is_empty(), "{arguments:?} is refused without a reason");
        }
        // 2: wrong usage.
        for arguments in [
            &["routes", "add"][..],
            &["routes", "frobnicate"],
            &["routes", "add", "a..example", &home],
            &["status", "--no-such-option"],
        ] {
            edgectl.refused(2, arguments)?;
        }
        // 3: nobody there.
        let nobody = Edgectl::new(&lab.directory().join("absent.sock"))?;
        let complaint = nobody.refused(3, &["status"])?;
        ensure!(complaint.contains("absent.sock"), "{complaint}");
        Ok(())
    })
}

#[test]
fn the_control_socket_is_for_the_group_only() -> Result<()> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    case(|lab| {
        let edged = Edged::start(lab, &minimal(lab))?;
        let metadata = std::fs::metadata(edged.edgectl().control())?;
        ensure!(metadata.file_type().is_socket());
        ensure!(metadata.permissions().mode() & 0o777 == 0o660, "{:o}", metadata.permissions().mode());
        Ok(())
    })
}

#[test]
fn a_probe_sends_a_real_hello_to_the_backend() -> Result<()> {
    tunnel_case(|lab| {
        let authority = Authority::new(lab)?;
        let _nginx = Nginx::tls(&lab.home, lab.home_at(443), &authority.issue(lab, &["file.example"])?)?;
        let edged = Edged::start(lab, &minimal(lab))?;
        let test = edged.edgectl().json(&["routes", "test", "file.example", "--probe"])?;
        let probe = test["probe"].to_string();
        ensure!(probe.contains("TLS") || probe.contains("ServerHello"), "{test}");
        Ok(())
    })
}

#[test]
fn config_check_needs_no_daemon() -> Result<()> {
    case(|lab| {
        let edgectl = Edgectl::new(&lab.directory().join("absent.sock"))?;
        let good = lab.file("good.toml", minimal(lab))?;
        let bad = lab.file("bad.toml", "[[route]]\nhost = \"a.example\"\nto = \"100.64.0.2\"\nhots = 1\n")?;
        edgectl.text(&["config", "check", &good.to_string_lossy()])?;
        let complaint = edgectl.refused(1, &["config", "check", &bad.to_string_lossy()])?;
        ensure!(complaint.contains("bad.toml:4:1") && complaint.contains("`host`"), "{complaint}");
        Ok(())
    })
}

#[test]
fn a_reload_changes_what_is_new_and_nothing_else() -> Result<()> {
    case(|lab| {
        let _one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let _two = service::named(&lab.home, lab.home_at(1002), "two")?;
        let route = |port| format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_at(port));
        let edged = Edged::start(lab, &route(1001))?;
        let edgectl = edged.edgectl();
        let mut live = greeted(lab, "a.example", "one")?;
        edged.rewrite(&route(1002))?;
        ensure!(greeting(lab, "a.example")? == "one", "the file alone changes nothing");
        edgectl.text(&["reload"])?;
        ensure!(greeting(lab, "a.example")? == "two");

        // A bad file leaves the old configuration and says where it is wrong.
        edged.rewrite(&format!("{}\ndatapth = \"copy\"\n", route(1001)))?;
        let complaint = edgectl.refused(1, &["reload"])?;
        ensure!(complaint.contains("edge.toml:") && complaint.contains("`datapath`"), "{complaint}");
        ensure!(greeting(lab, "a.example")? == "two", "a bad file must leave what runs");
        let status = edgectl.json(&["status"])?;
        ensure!(status["config"]["last_reload"]["successful"] == false, "{status}");

        // SIGHUP does the same.
        edged.rewrite(&route(1001))?;
        edged.signal(lab::Signal::HUP)?;
        wait::until_true("the reload by SIGHUP", SOON, || {
            greeting(lab, "a.example").is_ok_and(|got| got == "one")
        })?;

        // A new listener and one that goes.
        edged.rewrite(&format!(
            "[[listener]]\nname = \"other\"\nbind = [\"[::]:8443\"]\nprotocol = \"tls\"\n{}",
            route(1001)
        ))?;
        edgectl.text(&["config", "reload"])?;
        let hello = lab::hello::ClientHello::new("a.example").records();
        ensure!(crate::answer_to(lab, lab.edge.at(8443), &hello)? == "one");
        // Each worker closes its own socket.
        wait::until_true("the old listener to close", SOON, || lab.edge.refuses(lab.edge.at(443)))?;

        // The first connection has been through all of it.
        let (rest, end) = stream::read_to_end(&mut live)?;
        ensure!(rest.is_empty() && end == End::Fin, "{end:?} after {rest:?}");
        Ok(())
    })
}

#[test]
fn programs_say_their_version_and_usage() -> Result<()> {
    case(|lab| {
        for program in ["edged", "edgectl"] {
            for argument in ["--version", "--help"] {
                let mut command = Command::new(edged::program(program)?);
                command.arg(argument);
                let text = lab.edge.text_of(command)?;
                ensure!(text.contains(program) || text.contains("Usage"), "{program} {argument}: {text}");
            }
        }
        Ok(())
    })
}
