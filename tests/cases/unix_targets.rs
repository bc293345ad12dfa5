//! `to = "unix:/…"`: a program on the edge's own machine that listens on a Unix socket.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use lab::{
    Context, Edged, Lab, Result,
    certificates::Authority,
    ensure,
    hello::ClientHello,
    metrics::{ADMIN, Metrics},
    peers::Nginx,
    require::{self, Need},
    service,
    stream::{End, Pace, Pattern},
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{answer_to, case, greeting};

/// Bytes either way: enough for every tier to show itself.
const LENGTH: u64 = 32 << 20;

/// Listens on a Unix socket that everybody may connect to.
fn listen(path: &Path) -> Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves one connection after another until the process ends.
fn serve(listener: UnixListener, with: impl Fn(UnixStream) -> Result<()> + Send + 'static) {
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            if let Err(error) = with(stream) {
                eprintln!("the service on a Unix socket: {error:#}");
            }
        }
    });
}

/// Writes its name to every client, then reads to the end.
fn named(path: &Path, name: &'static str) -> Result<()> {
    serve(listen(path)?, move |mut stream| {
        stream.write_all(name.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new())?;
        Ok(())
    });
    Ok(())
}

/// Sends back what it gets, and the end of the stream for the end.
fn echo(path: &Path) -> Result<()> {
    serve(listen(path)?, |mut stream| {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match stream.read(&mut buffer)? {
                0 => return Ok(stream.shutdown(Shutdown::Write)?),
                length => stream.write_all(&buffer[..length])?,
            }
        }
    });
    Ok(())
}

fn socket(lab: &Lab, name: &str) -> (PathBuf, String) {
    let path = lab.directory().join(name);
    let to = format!("unix:{}", path.display());
    (path, to)
}

fn backend(edged: &Edged, to: &str) -> Result<Value> {
    let backends = edged.edgectl().list("backends")?;
    backends.into_iter().find(|backend| backend["to"] == to).with_context(|| format!("no backend {to}"))
}

#[test]
fn nginx_on_a_unix_socket_logs_the_client() -> Result<()> {
    if !require::all(&[Need::Program("nginx", "nginx"), Need::Program("curl", "curl")]) {
        return Ok(());
    }
    case(|lab| {
        let authority = Authority::new(lab)?;
        let certificate = authority.issue(lab, &["a.example"])?;
        let (path, to) = socket(lab, "nginx.sock");
        let nginx = Nginx::on_unix_socket(&lab.home, lab.home_at(1080), &path, &certificate)?;
        fs::write(nginx.files.join("index.html"), "from a socket")?;
        for version in ["v1", "v2"] {
            let edged = Edged::plan(
                lab,
                &format!("[[route]]\nhost = \"a.example\"\nto = \"{to}\"\nproxy_protocol = \"{version}\"\n"),
            )
            .daemon(ADMIN)
            .start()?;
            let mut curl = Command::new("curl");
            curl.args(["-sS", "-w", " %{local_ip} %{local_port}", "--cacert"]).arg(&authority.file);
            curl.args(["--connect-to", &format!("::{}", lab.edge.at(443)), "https://a.example/index.html"]);
            let answer = lab.client.text_of(curl)?;
            let came_from = answer.strip_prefix("from a socket ").with_context(|| answer.clone())?;
            let (address, port) = came_from.split_once(' ').context("curl says no address")?;
            let client = format!("[{address}]:{port}");
            let seen = wait::until_ok("nginx's log", SOON, || {
                nginx.clients()?.into_iter().find(|entry| entry[1] == client).with_context(|| client.clone())
            })?;
            ensure!(seen[2] == format!("[{}]:443", lab.edge.v4), "{seen:?}");
            let record = edged.access_log.wait_for_host("a.example")?;
            ensure!(record["backend"] == *to && record["close"] == "finished", "{record}");
            ensure!(record["datapath"] == "copy" || record["datapath"] == "splice", "{record}");
            let listed = backend(&edged, &to)?;
            ensure!(listed["pool"] == *to && listed["address"].is_null(), "{listed}");
            let reached =
                format!("edge_backend_last_success_timestamp_seconds{{pool=\"{to}\",backend=\"{to}\"}}");
            ensure!(Metrics::read(&lab.edge)?.find(&reached).is_some(), "{reached}");
            drop(edged);
            fs::remove_file(lab.directory().join("access-log.json"))?;
        }
        Ok(())
    })
}

#[test]
fn every_byte_and_both_ends_pass_on_every_tier() -> Result<()> {
    case(|lab| {
        let (path, to) = socket(lab, "echo.sock");
        echo(&path)?;
        for (tier, carried) in [
            ("auto", "splice"),
            ("flow", "splice"),
            ("sockmap", "splice"),
            ("splice", "splice"),
            ("copy", "copy"),
        ] {
            let edged = Edged::plan(
                lab,
                &format!(
                    "[[listener]]\nname = \"raw\"\nbind = [\"[::]:7000\"]\nprotocol = \"tcp\"\nto = \"{to}\"\n"
                ),
            )
            .daemon(&format!("datapath = \"{tier}\""))
            .start()?;
            let mut stream = lab.client.connect(lab.edge.at(7000))?;
            let pattern = Pattern::new(11);
            let mut sending = stream.try_clone()?;
            let sender = thread::spawn(move || -> Result<()> {
                pattern.send(&mut sending, LENGTH, Pace::Steady)?;
                Ok(sending.shutdown(Shutdown::Write)?)
            });
            let (received, end) = pattern.receive(&mut stream, Pace::Uneven)?;
            sender.join().ok().context("the sender panicked")??;
            ensure!((received, end) == (LENGTH, End::Fin), "{tier}: {received} bytes, then {end:?}");
            let record = edged.access_log.wait_for(tier, |record| record["listener"] == "raw")?;
            ensure!(record["bytes_up"] == LENGTH && record["bytes_down"] == LENGTH, "{record}");
            ensure!(record["datapath"] == carried && record["backend"] == *to, "{tier}: {record}");
            drop(edged);
            fs::remove_file(lab.directory().join("access-log.json"))?;
        }
        Ok(())
    })
}

#[test]
fn a_socket_that_is_not_there_is_named_with_its_remedy() -> Result<()> {
    case(|lab| {
        let (path, to) = socket(lab, "late.sock");
        let route = format!("[[route]]\nhost = \"a.example\"\nto = \"{to}\"\n");
        let edged = Edged::plan(lab, &route).start()?;
        let failed = |expected: &str| {
            answer_to(lab, lab.edge.at(443), &ClientHello::new("a.example").records())?;
            let told =
                |record: &Value| record["error"].as_str().is_some_and(|error| error.contains(expected));
            let record = edged.access_log.wait_for(expected, told)?;
            ensure!(record["close"] == "connect_failed" && record["backend"] == *to, "{record}");
            ensure!(record["error"].as_str().is_some_and(|error| error.starts_with(&to)), "{record}");
            fs::write(edged.access_log.path(), "")?;
            Ok(())
        };
        failed("is its program running")?;
        // Left behind by a program that has ended.
        drop(listen(&path)?);
        failed("no program listens on it")?;
        fs::remove_file(&path)?;
        fs::write(&path, "")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        failed("no program listens on it")?;
        fs::remove_file(&path)?;
        let kept = listen(&path)?;
        let is_root_mighty = !require::all(&[Need::User("edge")]);
        if !is_root_mighty {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            failed("needs write permission on the socket")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        }
        drop(kept);
        fs::remove_file(&path)?;
        named(&path, "late")?;
        ensure!(greeting(lab, "a.example")? == "late", "it is there now");
        Ok(())
    })
}

#[test]
fn a_check_finds_the_program_and_is_not_seen_by_it() -> Result<()> {
    case(|lab| {
        let (path, to) = socket(lab, "checked.sock");
        let _backup = service::named(&lab.home, lab.home_at(1001), "backup")?;
        let edged = Edged::start(
            lab,
            &format!(
                "[[pool]]\nname = \"p\"\nhealth = {{ kind = \"tcp\", interval = \"100ms\", rise = 1, fall = 2 }}\n\
                 [[pool.backend]]\nto = \"{to}\"\n[[pool.backend]]\nto = \"{}\"\nbackup = true\n\
                 [[route]]\nhost = \"a.example\"\nto = \"p\"\n",
                lab.home_at(1001)
            ),
        )?;
        let until = |state: &str| {
            wait::until_ok(&format!("{to} to be {state}"), SOON, || {
                let backend = backend(&edged, &to)?;
                ensure!(backend["state"] == state, "{backend}");
                Ok(backend)
            })
        };
        let down = until("down")?;
        ensure!(down["reason"].as_str().is_some_and(|reason| reason.contains("no such file")), "{down}");
        ensure!(greeting(lab, "a.example")? == "backup");
        let listener = listen(&path)?;
        listener.set_nonblocking(true)?;
        let up = until("up")?;
        wait::until_ok("several checks", SOON, || {
            let now = backend(&edged, &to)?;
            ensure!(now["last_success_at"] != up["last_success_at"], "{now}");
            Ok(())
        })?;
        let accepted = listener.accept();
        ensure!(accepted.is_err(), "a check was seen by the program");
        drop(listener);
        until("down")?;
        Ok(())
    })
}

#[test]
fn a_route_at_run_time_may_lead_to_a_unix_socket() -> Result<()> {
    case(|lab| {
        let (path, to) = socket(lab, "added.sock");
        named(&path, "added")?;
        let edged = Edged::start(lab, "")?;
        edged.edgectl().text(&["routes", "add", "a.example", &to])?;
        ensure!(greeting(lab, "a.example")? == "added");
        let test = edged.edgectl().json(&["routes", "test", "a.example"])?;
        ensure!(test["route"]["to"] == *to, "{test}");
        for (bad, expected) in [
            ("unix:@abstract", "no owner"),
            ("unix:run/x.sock", "absolute path"),
            ("/run/x.sock", "unix:/run/x.sock"),
        ] {
            let complaint = edged.edgectl().refused(1, &["routes", "add", "b.example", bad])?;
            ensure!(complaint.contains(expected), "{bad}: {complaint}");
        }
        let complaint =
            edged.edgectl().refused(1, &["routes", "add", "b.example", &to, "--datapath", "flow"])?;
        ensure!(complaint.contains("cannot carry a Unix socket"), "{complaint}");
        Ok(())
    })
}
