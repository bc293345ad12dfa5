//! Things that are missing when edged starts, as after a reboot: it serves what it can, reports what is
//! missing, and takes it up later.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
};

use lab::{
    Context, Edged, Lab, Result,
    dns::NameServer,
    edged::program,
    ensure,
    hello::ClientHello,
    service,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{answer_to, case, greeting};

const NAME: &str = "boot.example";
/// Addresses that the edge gets only later.
const LATER: &str = "10.99.0.1";
const LATER_V6: &str = "fd99::1";
const LISTENERS: &str = "[[listener]]\nname = \"https\"\nbind = [\"[::]:443\"]\nprotocol = \"tls\"\n";

fn body(lab: &Lab) -> String {
    format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_at(443))
}

/// Gives the edge [`LATER`] on a device that was not there.
fn bring_up(lab: &Lab) -> Result<()> {
    lab.edge.ip(&["link", "add", "later", "type", "veth", "peer", "name", "later-peer"])?;
    lab.edge.ip(&["link", "set", "later", "up"])?;
    lab.edge.ip(&["link", "set", "later-peer", "up"])?;
    lab.edge.ip(&["address", "add", &format!("{LATER}/24"), "dev", "later"])?;
    // With duplicate address detection, as systems have it.
    lab.edge.ip(&["address", "add", &format!("{LATER_V6}/64"), "dev", "later"])
}

/// Status and body of `/healthz`.
fn health(lab: &Lab, admin: &str) -> Result<(u16, String)> {
    let admin: SocketAddr = admin.parse()?;
    let mut stream = lab.edge.run(|| Ok(TcpStream::connect(admin)?))?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, answer.split_once("\r\n\r\n").context("no body")?.1.to_owned()))
}

/// Waits until `/healthz` answers so.
fn wait_for_health(lab: &Lab, admin: &str, wanted: u16) -> Result<String> {
    wait::until_ok(&format!("/healthz to answer {wanted}"), SOON, || {
        let (status, body) = health(lab, admin)?;
        ensure!(status == wanted, "{status}: {body}");
        Ok(body)
    })
}

/// The lines that the status has about troubles.
fn troubles(status: &Value) -> String {
    status["troubles"].to_string()
}

#[test]
fn addresses_that_come_later_are_served_from_then_on() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let inner = format!(
            "[[listener]]\nname = \"inner\"\nbind = [\"{LATER}:8443\", \"[{LATER_V6}]:8443\"]\nprotocol = \"tls\"\n"
        );
        let admin = format!("{LATER}:9464");
        let edged = Edged::plan(lab, &format!("{LISTENERS}{inner}{}", body(lab)))
            .daemon(&format!("admin = \"{admin}\""))
            .start()?;
        ensure!(greeting(lab, NAME)? == "reached", "what can be served is");
        let status = edged.edgectl().json(&["status"])?;
        ensure!(troubles(&status).contains(&format!("{LATER}:8443")), "{status}");
        ensure!(troubles(&status).contains(&format!("[{LATER_V6}]:8443")), "{status}");
        let doctor = edged.edgectl().run(&["doctor", "--json"])?;
        let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
        ensure!(doctor.contains(&format!("address {LATER}:8443 of inner")), "{doctor}");
        edged.wait_for_log("clients are accepted as soon as it appears")?;

        bring_up(lab)?;
        let hello = ClientHello::new(NAME).records();
        for address in [format!("{LATER}:8443"), format!("[{LATER_V6}]:8443")] {
            let address: SocketAddr = address.parse()?;
            let got = wait::until_ok("the new address", SOON, || answer_to(lab, address, &hello))?;
            ensure!(got == "reached", "{address}: {got}");
        }
        let status = edged.edgectl().until(&["status"], |status| {
            ensure!(status["troubles"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        })?;
        // The listener announces the MSS of the path home, like the other listeners.
        let mss = |name: &str| {
            let listeners = status["listeners"].as_array().into_iter().flatten();
            listeners.filter(|one| one["name"] == *name).find_map(|one| one.get("mss").cloned())
        };
        ensure!(mss("inner") == mss("https") && mss("inner").is_some_and(|mss| mss.is_u64()), "{status}");
        ensure!(wait_for_health(lab, &admin, 200)? == "ok\n");

        // Gone again, and back.
        lab.edge.ip(&["address", "del", &format!("{LATER}/24"), "dev", "later"])?;
        edged.edgectl().until(&["status"], |status| {
            ensure!(troubles(status).contains(LATER), "{status}");
            Ok(())
        })?;
        lab.edge.ip(&["address", "add", &format!("{LATER}/24"), "dev", "later"])?;
        let got = wait::until_ok("the address again", SOON, || {
            answer_to(lab, format!("{LATER}:8443").parse()?, &hello)
        })?;
        ensure!(got == "reached", "{got}");
        Ok(())
    })
}

#[test]
fn a_port_that_another_program_has_is_served_when_it_is_free() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let taken = lab.edge.listen(lab.edge.at(443))?;
        let edged = Edged::plan(lab, &body(lab)).daemon(lab::metrics::ADMIN).start()?;
        ensure!(lab.edge.accepts(lab.edge.at(80)), "the other listener is served");
        let in_use = "[::]:443 is in use by another program";
        edged.wait_for_log(in_use)?;
        let status = edged.edgectl().json(&["status"])?;
        ensure!(troubles(&status).contains(in_use), "{status}");
        // edged may not look into other processes, edgectl of root may.
        let mut shown = Command::new(program("edgectl")?);
        shown.arg("status").arg("--control").arg(edged.edgectl().control());
        let shown = lab.edge.text_of(shown)?;
        let holder = format!("(process {})", std::process::id());
        ensure!(shown.contains(&holder), "no {holder} in {shown}");
        let unwell = wait_for_health(lab, "127.0.0.1:9464", 503)?;
        ensure!(unwell.starts_with("no client can reach https\n"), "{unwell}");

        // A reload is about what it changes, and an address that is new must be free.
        let report = edged.edgectl().json(&["reload"])?;
        ensure!(report["warnings"].to_string().contains(in_use), "{report}");
        let _other = lab.edge.listen(lab.edge.at(8443))?;
        edged.rewrite(&format!(
            "{LISTENERS}[[listener]]\nname = \"new\"\nbind = [\"[::]:8443\"]\nprotocol = \"tls\"\n{}",
            body(lab)
        ))?;
        let refused = edged.edgectl().refused(1, &["reload"])?;
        ensure!(refused.contains("8443 is in use by"), "{refused}");
        ensure!(lab.edge.accepts(lab.edge.at(80)), "nothing has changed");
        edged.rewrite(&body(lab))?;

        drop(taken);
        wait::until_true("the port to be served", SOON, || {
            greeting(lab, NAME).is_ok_and(|got| got == "reached")
        })?;
        wait_for_health(lab, "127.0.0.1:9464", 200)?;
        edged.wait_for_log("clients are accepted now")?;
        Ok(())
    })
}

#[test]
fn with_no_port_at_all_it_waits_and_can_be_asked() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let taken = lab.edge.listen(lab.edge.at(443))?;
        let mut edged =
            Edged::plan(lab, &format!("{LISTENERS}{}", body(lab))).daemon(lab::metrics::ADMIN).start()?;
        wait_for_health(lab, "127.0.0.1:9464", 503)?;
        ensure!(troubles(&edged.edgectl().json(&["status"])?).contains("443"));
        ensure!(edged.process().ended()?.is_none());
        drop(taken);
        wait::until_true("the port to be served", SOON, || {
            greeting(lab, NAME).is_ok_and(|got| got == "reached")
        })
    })
}

#[test]
fn the_admin_address_stops_no_start() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let admin = lab.edge.at(9464);
        let taken = lab.edge.listen(admin)?;
        let edged = Edged::plan(lab, &body(lab)).daemon(&format!("admin = \"{admin}\"")).start()?;
        ensure!(greeting(lab, NAME)? == "reached");
        let status = edged.edgectl().json(&["status"])?;
        ensure!(troubles(&status).contains("admin: ") && troubles(&status).contains("9464"), "{status}");
        drop(taken);
        wait_for_health(lab, &admin.to_string(), 200)?;
        Ok(())
    })
}

#[test]
fn files_that_cannot_be_written_stop_no_start() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let to = lab.home_at(443).to_string();
        let edged = Edged::start(lab, &body(lab))?;
        edged.edgectl().text(&["routes", "add", "kept.example", &to])?;
        let (state, log) = (edged.state().to_owned(), edged.access_log.path().to_owned());
        edged.kill()?;

        // A disk that is read-only, with what was kept on it, and something in the access log's place.
        fs::remove_file(&log)?;
        fs::create_dir(&log)?;
        let read_only = format!(
            "mount --bind {0} {0} && mount -o remount,bind,ro {0} && exec \"$@\"",
            state.to_string_lossy()
        );
        let mut edged = Edged::plan(lab, &body(lab))
            .by(&["/usr/bin/unshare", "--mount", "/bin/sh", "-c", &read_only, "edged"])
            .start()?;
        ensure!(greeting(lab, NAME)? == "reached", "what the file says");
        ensure!(greeting(lab, "kept.example")? == "reached", "what was kept");
        let status = edged.edgectl().json(&["status"])?;
        for part in ["state: ", "Read-only", "the access log", "access-log.json"] {
            ensure!(troubles(&status).contains(part), "no {part:?} in {status}");
        }
        let refused = edged.edgectl().refused(1, &["routes", "add", "new.example", &to])?;
        ensure!(refused.contains("nothing was changed") && refused.contains("Read-only"), "{refused}");

        // Both can be written again.
        let pid = edged.process().pid().to_string();
        let mut remount = Command::new("nsenter");
        remount.args(["--target", &pid, "--mount", "mount", "-o", "remount,bind,rw"]).arg(&state);
        lab.edge.text_of(remount)?;
        fs::remove_dir(&log)?;
        edged.edgectl().text(&["routes", "add", "new.example", &to])?;
        ensure!(greeting(lab, "new.example")? == "reached");
        // The log is tried again by itself.
        wait::until_true("the access log", SOON, || {
            let _ = greeting(lab, NAME);
            fs::read_to_string(&log).is_ok_and(|text| text.contains(NAME))
        })?;
        edged.edgectl().until(&["status"], |status| {
            ensure!(status["troubles"].as_array().is_some_and(Vec::is_empty), "{status}");
            Ok(())
        })?;
        Ok(())
    })
}

#[test]
fn name_servers_and_tunnels_may_come_later() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let resolv = lab.file("resolv.conf", "")?;
        let empty = format!("mount --bind {} /etc/resolv.conf && exec \"$@\"", resolv.to_string_lossy());
        let pools = "[[pool]]\nname = \"by-name\"\n[[pool.backend]]\nto = \"home.lab.example:443\"\n\
                     [[pool]]\nname = \"by-tunnel\"\n[[pool.backend]]\nto = \"100.64.9.2:443\"\ndevice = \"wg9\"\n\
                     [[route]]\nhost = \"name.example\"\nto = \"by-name\"\n\
                     [[route]]\nhost = \"tunnel.example\"\nto = \"by-tunnel\"\n";
        let edged = Edged::plan(lab, &format!("{pools}{}", body(lab)))
            .by(&["/usr/bin/unshare", "--mount", "/bin/sh", "-c", &empty, "edged"])
            .start()?;
        ensure!(greeting(lab, NAME)? == "reached");
        edged.edgectl().until(&["backends", "list"], |backends| {
            for (to, reason) in [("home.lab.example:443", "name"), ("100.64.9.2:443", "wg9")] {
                let all = backends.as_array().context("a list")?;
                let backend = all.iter().find(|backend| backend["to"] == to).context("not listed")?;
                let why = backend["reason"].as_str().unwrap_or_default();
                ensure!(backend["state"] == "down" && why.contains(reason), "{backend}");
            }
            Ok(())
        })?;
        let server = NameServer::start(&lab.edge, lab.edge.v4.into(), 1)?;
        server.set("home.lab.example", &[lab.home_address()]);
        fs::write(&resolv, format!("nameserver {}\n", lab.edge.v4))?;
        wait::until_true("the name", SOON, || greeting(lab, "name.example").is_ok_and(|got| got == "reached"))
    })
}

#[test]
fn two_daemons_do_not_share_their_pins() -> Result<()> {
    case(|lab| {
        let mut first = Edged::start(lab, &body(lab))?;
        let config = lab.file(
            "second.toml",
            format!(
                "[daemon]\ncontrol = \"{0}/second.sock\"\nstate_dir = \"{0}/second\"\naccess_log = \"off\"\n\
                 [[listener]]\nname = \"other\"\nbind = [\"[::]:9443\"]\nprotocol = \"tls\"\n",
                lab.directory().display()
            ),
        )?;
        let second = || {
            let mut command = Command::new(program("edged")?);
            command.arg("--config").arg(&config).arg("--pins").arg(lab.pins());
            lab.edge.spawn("second", command)
        };
        let mut refused = second()?;
        let status = refused.wait(SOON)?;
        let log = refused.whole_log()?;
        let named = format!("another edged (process {})", first.process().pid());
        ensure!(
            status.code() == Some(1) && log.contains(&named) && log.contains("--pins"),
            "{status}: {log}"
        );
        first.edgectl().json(&["status"])?;
        // Nothing is left of a daemon that was killed.
        first.kill()?;
        let mut next = second()?;
        next.wait_ready(SOON, || lab.edge.accepts(lab.edge.at(9443)))?;
        Ok(())
    })
}
