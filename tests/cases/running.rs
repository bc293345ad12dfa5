//! The daemon as a service: how it starts, tells the service manager, and ends.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use lab::{
    Context, Edged, EdgedPlan, Lab, Result, Signal, ensure,
    hello::ClientHello,
    service, stream,
    wait::{self, SOON},
};

use crate::{case, echo_once, greeting};

const NAME: &str = "run.example";

fn body(lab: &Lab) -> String {
    format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address())
}

/// Connections that cannot go on without the daemon.
fn on_sockets(lab: &Lab) -> EdgedPlan<'_> {
    Edged::plan(lab, &body(lab)).daemon("datapath = \"splice\"")
}

#[test]
fn sigterm_lets_connections_finish() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let mut edged = on_sockets(lab).start()?;
        let mut live = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut live, &ClientHello::new(NAME).records())?;
        edged.signal(Signal::TERM)?;
        wait::until_true("the listeners to close", SOON, || lab.edge.refuses(lab.edge.at(443)))?;
        echo_once(&mut live, b"still there")?;
        ensure!(edged.process().ended()?.is_none(), "it did not wait for the connection");
        drop(live);
        let status = edged.process().wait(SOON)?;
        ensure!(status.code() == Some(0), "{status}");
        // Its line is in the log although the daemon is gone.
        edged.access_log.wait_for_host(NAME)?;
        ensure!(!edged.edgectl().control().exists(), "the control socket is left");
        Ok(())
    })
}

#[test]
fn a_second_sigterm_ends_at_once() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let mut edged = on_sockets(lab).start()?;
        let mut live = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut live, &ClientHello::new(NAME).records())?;
        edged.signal(Signal::TERM)?;
        wait::until_true("the listeners to close", SOON, || lab.edge.refuses(lab.edge.at(443)))?;
        let start = Instant::now();
        edged.signal(Signal::TERM)?;
        edged.process().wait(SOON)?;
        ensure!(start.elapsed() < Duration::from_secs(15), "it took {:?}", start.elapsed());
        stream::read_to_end(&mut live)?;
        Ok(())
    })
}

#[test]
fn draining_has_an_end() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let mut edged = on_sockets(lab).daemon("drain_timeout = \"1s\"").start()?;
        let mut live = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut live, &ClientHello::new(NAME).records())?;
        ensure!(edged.terminate()? == Some(0));
        stream::read_to_end(&mut live)?;
        edged.access_log.wait_for("it", |record| record["close"] == "shutdown")?;
        Ok(())
    })
}

#[test]
fn the_service_manager_is_told() -> Result<()> {
    case(|lab| {
        let path = lab.directory().join("notify.sock");
        let socket = UnixDatagram::bind(&path)?;
        // As systemd's own is.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        socket.set_read_timeout(Some(SOON))?;
        let seen = std::cell::RefCell::new(String::new());
        let told = || -> Result<String> {
            let mut buffer = [0; 4096];
            let length = socket.recv(&mut buffer).context("waiting for a notification")?;
            let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
            seen.borrow_mut().extend([message.as_str(), "\n"]);
            Ok(message)
        };
        let wait_for = |wanted: &str| -> Result<String> {
            loop {
                let message = told()?;
                if message.lines().any(|line| line == wanted) {
                    return Ok(message);
                }
            }
        };
        let plan = Edged::plan(lab, &body(lab))
            .environment("NOTIFY_SOCKET", &path.to_string_lossy())
            .environment("WATCHDOG_USEC", "1000000");
        let mut edged = plan.start()?;
        wait_for("READY=1")?;
        ensure!(!lab.edge.refuses(lab.edge.at(443)), "it said that it is ready before it was");
        wait_for("WATCHDOG=1")?;
        wait_for("WATCHDOG=1")?;
        edged.signal(Signal::HUP)?;
        let reloading = wait_for("RELOADING=1")?;
        ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
        wait_for("READY=1")?;
        edged.signal(Signal::TERM)?;
        wait_for("STOPPING=1")?;
        ensure!(edged.process().wait(SOON)?.code() == Some(0));
        let seen = seen.borrow();
        let at = |status: &str| seen.find(status).with_context(|| format!("no {status} in {seen}"));
        ensure!(at("STATUS=starting: ")? < at("STATUS=serving; ")?, "{seen}");
        ensure!(at("STATUS=serving; ")? < at("STATUS=draining")?, "{seen}");
        Ok(())
    })
}

#[test]
fn sockets_of_the_service_manager_are_used() -> Result<()> {
    // As systemd does it: the listening socket is descriptor 3, and LISTEN_PID is who may use it.
    const ACTIVATE: &str = "
import os, socket, sys
listener = socket.socket(socket.AF_INET6)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('::', 443))
listener.listen(64)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='https')
os.execv(sys.argv[1], sys.argv[1:])
";
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let edged = Edged::plan(lab, &body(lab)).by(&["/usr/bin/python3", "-c", ACTIVATE]).start()?;
        ensure!(greeting(lab, NAME)? == "reached");
        // One listening socket for the port: the inherited one, not one of its own beside it.
        let mut ss = std::process::Command::new("ss");
        ss.args(["-tlnH", "sport", "=", ":443"]);
        let sockets = lab.edge.text_of(ss)?;
        ensure!(sockets.lines().count() == 1, "{sockets}");
        drop(edged);
        Ok(())
    })
}

/// Restarts edged whenever it ends, with the sockets that it left here: what systemd does with `FileDescriptorStoreMax`.
const MANAGER: &str = "
import array, ctypes, os, select, signal, socket, sys
PR_SET_PDEATHSIG = 1
path = os.environ['EDGE_MANAGER']
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(path)
# As systemd's own is.
os.chmod(path, 0o777)
kept = {}
while True:
    sockets = [fd for fds in kept.values() for fd in fds]
    def become(sockets=sockets):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Out of the way first.
        high = [os.dup2(fd, 100 + n) for n, fd in enumerate(sockets)]
        for n, fd in enumerate(high):
            os.dup2(fd, 3 + n)
            os.set_inheritable(3 + n, True)
        if high:
            os.environ.update(LISTEN_FDS=str(len(high)), LISTEN_PID=str(os.getpid()))
        os.environ['NOTIFY_SOCKET'] = path
        os.execv(sys.argv[1], sys.argv[1:])
    child = os.fork()
    if child == 0:
        become()
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG) is None:
        if not select.select([notify], [], [], 0.02)[0]:
            continue
        text, control, _, _ = notify.recvmsg(4096, socket.CMSG_SPACE(64))
        lines = dict(line.split('=', 1) for line in text.decode().splitlines())
        if lines.get('FDSTOREREMOVE') == '1':
            for fd in kept.pop(lines['FDNAME'], []):
                os.close(fd)
        fds = array.array('i')
        for _, _, data in control:
            fds.frombytes(data)
        if lines.get('FDSTORE') == '1':
            kept.setdefault(lines['FDNAME'], []).extend(fds)
";

#[test]
fn an_upgrade_refuses_nobody() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let _echo = service::echo(&lab.home, lab.home_at(444))?;
        let echo = format!("[[route]]\nhost = \"echo.example\"\nto = \"{}\"\n", lab.home_at(444));
        let manager = lab.directory().join("manager.sock");
        let mut edged = Edged::plan(lab, &format!("{}{echo}", body(lab)))
            .environment("EDGE_MANAGER", &manager.to_string_lossy())
            .by(&["/usr/bin/python3", "-c", MANAGER])
            .start()?;
        let mut live = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut live, &ClientHello::new("echo.example").records())?;
        let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            let got = greeting(lab, NAME)?;
                            ensure!(got == "reached", "{got:?}");
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            let restarted = (1..=3).try_for_each(|restart| {
                let mut pkill = std::process::Command::new("pkill");
                pkill.args(["-TERM", "-P", &edged.process().pid().to_string()]);
                lab.edge.text_of(pkill)?;
                wait::until_true("the next edged", SOON, || {
                    edged
                        .process()
                        .whole_log()
                        .is_ok_and(|log| log.matches("serving version").count() > restart)
                })?;
                let before = served.load(Ordering::Relaxed);
                wait::until_true("its clients", SOON, || served.load(Ordering::Relaxed) > before + 20)?;
                echo_once(&mut live, b"young as it was, it became a flow and goes on")
            });
            over.store(true, Ordering::Relaxed);
            for client in clients {
                client.join().unwrap_or_else(|_| lab::bail!("a client panicked"))?;
            }
            restarted
        })?;
        Ok(())
    })
}

#[test]
fn the_access_log_tells_all_of_a_connection() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, &body(lab))?;
        let hello = ClientHello::new(NAME).alpn(&["h2", "http/1.1"]).records();
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        let client = stream.local_addr()?.to_string();
        echo_once(&mut stream, &hello)?;
        echo_once(&mut stream, &[7; 1000])?;
        drop(stream);
        let record = edged.access_log.wait_for_host(NAME)?;
        let bytes = hello.len() + 1000;
        for (field, expected) in [
            ("client", client.into()),
            ("listener", "https".into()),
            ("sni", NAME.into()),
            ("alpn", serde_json::json!(["h2", "http/1.1"])),
            ("ech", false.into()),
            ("route", NAME.into()),
            ("backend", lab.home_at(443).to_string().into()),
            ("bytes_up", bytes.into()),
            ("bytes_down", bytes.into()),
            ("close", "finished".into()),
        ] {
            ensure!(record[field] == expected, "{field} is not {expected}: {record}");
        }
        ensure!(record["id"].is_u64() && record["datapath"].is_string(), "{record}");
        ensure!(record["duration_ms"].as_f64() >= record["connect_ms"].as_f64(), "{record}");
        ensure!(record["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{record}");
        Ok(())
    })
}

#[test]
fn the_access_log_is_reopened_on_reload() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let edged = Edged::start(lab, &body(lab))?;
        greeting(lab, NAME)?;
        edged.access_log.wait_for_host(NAME)?;
        let old = lab.directory().join("access-log.old");
        fs::rename(edged.access_log.path(), &old)?;
        edged.edgectl().text(&["reload"])?;
        greeting(lab, NAME)?;
        edged.access_log.wait_for_host(NAME)?;
        ensure!(fs::read_to_string(old)?.lines().count() == 1, "the old file still grew");
        Ok(())
    })
}

/// As on a disk that is full.
#[test]
fn a_log_that_cannot_be_written_stops_nothing() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "one")?;
        let mut edged =
            Edged::plan(lab, &body(lab)).by(&["/bin/sh", "-c", "exec \"$0\" \"$@\" 2>/dev/full"]).start()?;
        ensure!(greeting(lab, NAME)? == "one");
        edged.edgectl().text(&["reload"])?;
        ensure!(greeting(lab, NAME)? == "one");
        ensure!(edged.terminate()? == Some(0), "it ended badly");
        Ok(())
    })
}
