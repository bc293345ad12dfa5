//! Health checks as home meets them: what asks for a port is seen by nobody there, what speaks is understood.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use lab::{
    Context, Edged, Host, Lab, Result,
    certificates::Authority,
    ensure,
    peers::{Apache, Mariadb, Nginx, Postfix, Postgres, Sshd},
    require::{self, Need},
    service::{self, Service},
    stream,
    topology::EDGE_INSIDE,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{case, tunnel_case};

/// Checks that are waited for: more than any peer here puts up with in a row.
const CHECKS: u64 = 20;

/// A pool that is checked often, and a tcp listener on `port` that leads to it.
fn pool(name: &str, port: u16, to: SocketAddr, settings: &str) -> String {
    format!(
        "[[pool]]\nname = \"{name}\"\n{settings}\n[[pool.backend]]\nto = \"{to}\"\n\
         [[listener]]\nname = \"{name}\"\nbind = [\"[::]:{port}\"]\nprotocol = \"tcp\"\nto = \"{name}\"\n"
    )
}

fn often(kind: &str) -> String {
    format!("health = {{ kind = \"{kind}\", interval = \"100ms\", rise = 1, fall = 2 }}")
}

/// Connections that this host's kernel gave up half open (`TcpAttemptFails`).
fn half_open(host: &Host) -> Result<u64> {
    host.run(|| {
        let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
        let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let names = tcp.next().context("no names")?.split_whitespace();
        let values = tcp.next().context("no values")?.split_whitespace();
        let found = names.zip(values).find(|(name, _)| *name == "AttemptFails").context("no AttemptFails")?;
        Ok(found.1.parse()?)
    })
}

/// Waits until home's kernel has seen so many checks more, none of which it finished.
fn checked(lab: &Lab, more: u64) -> Result<()> {
    let before = half_open(&lab.home)?;
    wait::until_ok("checks", SOON, || {
        let seen = half_open(&lab.home)? - before;
        ensure!(seen >= more, "{seen} of {more} checks");
        Ok(())
    })
}

fn backend(edged: &Edged, pool: &str) -> Result<Value> {
    let backends = edged.edgectl().list("backends")?;
    backends.into_iter().find(|backend| backend["pool"] == pool).with_context(|| format!("no pool {pool}"))
}

fn until_state(edged: &Edged, pool: &str, state: &str) -> Result<Value> {
    wait::until_ok(&format!("{pool} to be {state}"), SOON, || {
        let backend = backend(edged, pool)?;
        ensure!(backend["state"] == state, "{backend}");
        Ok(backend)
    })
}

fn seen_by_the_kernel_alone(lab: &Lab) -> Result<()> {
    let settings = [("plain", ""), ("v1", "proxy_protocol = \"v1\""), ("v2", "proxy_protocol = \"v2\"")];
    let services = (0..3).map(|at| service::named(&lab.home, lab.home_at(7001 + at), "home"));
    let mut services = services.collect::<Result<Vec<_>>>()?;
    let body: String = (7001..)
        .zip(settings)
        .map(|(port, (name, more))| {
            pool(name, port, lab.home_at(port), &format!("{more}\n{}", often("auto")))
        })
        .collect();
    let edged = Edged::start(lab, &body)?;
    checked(lab, 3 * CHECKS)?;
    let accepted: Vec<_> = services.iter().map(Service::accepted).collect();
    ensure!(accepted == [0, 0, 0], "{accepted:?} connections were accepted");
    for (name, _) in settings {
        let backend = until_state(&edged, name, "up")?;
        ensure!(!backend["last_success_at"].is_null() && !backend["rtt_ms"].is_null(), "{backend}");
    }
    drop(services.remove(0));
    let down = until_state(&edged, "plain", "down")?;
    ensure!(down["reason"].as_str().is_some_and(|reason| reason.contains("refused")), "{down}");
    let _again = service::named(&lab.home, lab.home_at(7001), "home")?;
    until_state(&edged, "plain", "up")?;
    Ok(())
}

#[test]
fn a_check_of_a_port_is_accepted_by_nobody() -> Result<()> {
    case(seen_by_the_kernel_alone)
}

#[test]
fn nor_by_anybody_behind_a_tunnel() -> Result<()> {
    tunnel_case(seen_by_the_kernel_alone)
}

#[test]
fn mariadb_does_not_shut_the_edge_out() -> Result<()> {
    const MOST: u32 = 3;
    if !require::all(&[Need::Program("mariadbd", "mariadb-server-core")]) {
        return Ok(());
    }
    case(|lab| {
        let _mariadb = Mariadb::start(&lab.home, lab.home_at(3306), EDGE_INSIDE.into(), MOST)?;
        let edged = Edged::start(lab, &pool("db", 3306, lab.home_at(3306), &often("tcp")))?;
        until_state(&edged, "db", "up")?;
        checked(lab, CHECKS)?;
        let mut client = lab.client.connect(lab.edge.at(3306))?;
        let greeting = Mariadb::first_packet(&mut client)?;
        ensure!(greeting.contains("MariaDB") && !greeting.contains("blocked"), "{greeting}");
        drop(client);
        // Checks with complete connections would have led to this.
        wait::until_ok("the edge to be shut out", SOON, || {
            let mut own = lab.edge.connect(lab.home_at(3306))?;
            let answer = Mariadb::first_packet(&mut own)?;
            stream::reset(own)?;
            ensure!(answer.contains("blocked"), "{answer}");
            Ok(())
        })
    })
}

/// A server's log stays as it is under checks of its port, and has more in it after a connection that breaks off.
fn unnoticed(
    lab: &Lab,
    to: SocketAddr,
    break_off: fn(TcpStream) -> Result<()>,
    log: impl Fn() -> Result<String>,
) -> Result<()> {
    // The log line of the lab's own look at the port is written by then.
    let control = |what: &str| -> Result<String> {
        let before = log()?.len();
        break_off(lab.edge.connect(to)?)?;
        wait::until_ok(what, SOON, || {
            let now = log()?;
            ensure!(now.len() > before, "the log is {now:?}");
            Ok(now)
        })
    };
    control("a line about a connection that broke off")?;
    let edged = Edged::start(lab, &pool("home", 7001, to, &often("tcp")))?;
    until_state(&edged, "home", "up")?;
    let before = log()?;
    checked(lab, CHECKS)?;
    let after = log()?;
    ensure!(before == after, "checks left lines: {:?}", after.get(before.len()..));
    drop(edged);
    control("another such line")?;
    Ok(())
}

#[test]
fn postgresql_writes_nothing_about_a_check_of_its_port() -> Result<()> {
    if !require::all(&[Need::Program("psql", "postgresql")]) {
        return Ok(());
    }
    case(|lab| {
        let certificate = Authority::new(lab)?.issue(lab, &["db.example"])?;
        let postgres = Postgres::start(&lab.home, lab.home_at(5432), &certificate)?;
        unnoticed(lab, lab.home_at(5432), stream::reset, || postgres.log())
    })
}

#[test]
fn nor_does_sshd() -> Result<()> {
    if !require::all(&[Need::Program("sshd", "openssh-server")]) {
        return Ok(());
    }
    case(|lab| {
        let sshd = Sshd::start(&lab.home, lab.home_at(22))?;
        let close = |stream| {
            drop(stream);
            Ok(())
        };
        unnoticed(lab, lab.home_at(22), close, || sshd.log())
    })
}

#[test]
fn postfix_behind_proxy_headers_neither_notices_nor_stops_to_greet() -> Result<()> {
    if !require::all(&[Need::Program("postfix", "postfix")]) {
        return Ok(());
    }
    for version in ["v1", "v2"] {
        case(|lab| {
            let to = lab.home_at(25);
            let postfix = Postfix::start(&lab.home, to)?;
            let settings = format!("proxy_protocol = \"{version}\"\n{}", often("auto"));
            let edged = Edged::start(lab, &pool("mail", 25, to, &settings))?;
            until_state(&edged, "mail", "up")?;
            checked(lab, CHECKS)?;
            ensure!(!postfix.log()?.contains("smtpd"), "{version}: {}", postfix.log()?);
            let mut client = lab.client.connect(lab.edge.at(25))?;
            let mut greeting = [0; 4];
            std::io::Read::read_exact(&mut client, &mut greeting)?;
            ensure!(&greeting == b"220 ", "{version}: {:?}", greeting.escape_ascii().to_string());
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn apache_behind_proxy_headers_sees_clients_and_no_check_of_its_port() -> Result<()> {
    if !require::all(&[Need::Program("apache2", "apache2-bin"), Need::Program("curl", "curl")]) {
        return Ok(());
    }
    for version in ["v1", "v2"] {
        case(|lab| {
            let authority = Authority::new(lab)?;
            let certificate = authority.issue(lab, &["web.example"])?;
            let to = lab.home_at(1443);
            let apache = Apache::behind_proxy(&lab.home, to, &certificate)?;
            let pool = |kind: &str| {
                format!(
                    "[[pool]]\nname = \"web\"\nproxy_protocol = \"{version}\"\n{}\n[[pool.backend]]\nto = \"{to}\"\n\
                     [[route]]\nhost = \"web.example\"\nto = \"web\"\n",
                    often(kind)
                )
            };
            let edged = Edged::start(lab, &pool("tcp"))?;
            until_state(&edged, "web", "up")?;
            let quiet = apache.log()?;
            checked(lab, CHECKS)?;
            ensure!(apache.log()? == quiet, "{version}: {}", apache.log()?);
            // A check that speaks is a client to it, with a header that it takes.
            edged.rewrite(&pool("auto"))?;
            edged.edgectl().text(&["reload"])?;
            let before = until_state(&edged, "web", "up")?;
            wait::until_ok("a check in TLS", SOON, || {
                let backend = backend(&edged, "web")?;
                ensure!(backend["last_success_at"] != before["last_success_at"], "{backend}");
                Ok(())
            })?;
            ensure!(backend(&edged, "web")?["last_error"].is_null(), "{}", backend(&edged, "web")?);
            let mut curl = std::process::Command::new("curl");
            curl.args(["-sS", "-w", " %{local_ip}", "--cacert"]).arg(&authority.file);
            curl.args(["--connect-to", &format!("::{}", lab.edge.at(443)), "https://web.example/index.html"]);
            let answer = lab.client.text_of(curl)?;
            let client = answer.strip_prefix("from Apache ").with_context(|| answer.clone())?;
            let seen =
                wait::until_ok("Apache's log", SOON, || apache.clients()?.pop().context("no request"))?;
            ensure!(seen == ["/index.html", client, &EDGE_INSIDE.to_string()], "{version}: {seen:?}");
            ensure!(!apache.log()?.contains("remoteip:error"), "{version}: {}", apache.log()?);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn auto_speaks_what_the_routes_speak() -> Result<()> {
    if !require::all(&[
        Need::Program("nginx", "nginx"),
        Need::Program("sshd", "openssh-server"),
        Need::Program("psql", "postgresql"),
    ]) {
        return Ok(());
    }
    case(|lab| {
        let certificate = Authority::new(lab)?.issue(lab, &["web.example"])?;
        let _tls = Nginx::tls(&lab.home, lab.home_at(1001), &certificate)?;
        let _http = Nginx::plain(&lab.home, lab.home_at(1002))?;
        let _sshd = Sshd::start(&lab.home, lab.home_at(1003))?;
        let _postgres = Postgres::start(&lab.home, lab.home_at(5432), &certificate)?;
        let _silent = Service::start(&lab.home, lab.home_at(1005), |mut stream| {
            Ok(stream::read_to_end(&mut stream)?.0)
        })?;
        let health = "health = { interval = \"100ms\", timeout = \"500ms\", rise = 1, fall = 2 }";
        let pools: Vec<String> =
            [("tls", 1001), ("http", 1002), ("ssh", 1003), ("postgres", 5432), ("web", 1002)]
                .into_iter()
                .chain([("silent", 1005), ("foreign", 1003)])
                .map(|(name, port)| {
                    let to = lab.home_at(port);
                    format!("[[pool]]\nname = \"{name}\"\n{health}\n[[pool.backend]]\nto = \"{to}\"\n")
                })
                .collect();
        let pools = pools.concat();
        let edged = Edged::start(
            lab,
            &format!(
                "{pools}[[listener]]\nname = \"https\"\nbind = [\"[::]:443\"]\n\
                 [[listener]]\nname = \"http\"\nbind = [\"[::]:80\"]\nprotocol = \"http\"\n\
                 [[listener]]\nname = \"mixed\"\nbind = [\"[::]:8443\"]\nprotocols = [\"ssh\", \"postgres\"]\n\
                 [[route]]\nhost = \"web.example\"\nto = \"tls\"\nlistener = [\"https\"]\n\
                 [[route]]\nhost = \"web.example\"\nto = \"http\"\nlistener = [\"http\"]\n\
                 [[route]]\nprotocol = [\"ssh\"]\nto = \"ssh\"\n\
                 [[route]]\nhost = \"web.example\"\nprotocol = [\"postgres\"]\nto = \"postgres\"\n\
                 [[route]]\nhost = \"both.example\"\nto = \"web\"\n\
                 [[route]]\nhost = \"silent.example\"\nto = \"silent\"\nlistener = [\"https\"]\n\
                 [[route]]\nhost = \"foreign.example\"\nto = \"foreign\"\nlistener = [\"https\"]\n"
            ),
        )?;
        for name in ["tls", "http", "ssh", "postgres", "web"] {
            wait::until_ok(&format!("a check of {name}"), SOON, || {
                let backend = backend(&edged, name)?;
                let passed = backend["state"] == "up" && !backend["last_success_at"].is_null();
                ensure!(passed, "{backend}");
                Ok(())
            })?;
        }
        for (name, reason) in [("silent", "did not answer the ClientHello"), ("foreign", "not TLS")] {
            let down = until_state(&edged, name, "down")?;
            ensure!(down["reason"].as_str().is_some_and(|said| said.contains(reason)), "{down}");
            ensure!(down["last_error"] == down["reason"] && down["last_success_at"].is_null(), "{down}");
        }
        Ok(())
    })
}

#[test]
fn a_check_that_speaks_says_where_it_comes_from() -> Result<()> {
    if !require::all(&[Need::Program("nginx", "nginx")]) {
        return Ok(());
    }
    case(|lab| {
        let certificate = Authority::new(lab)?.issue(lab, &["web.example"])?;
        let _nginx = Nginx::behind_proxy(&lab.home, &[lab.home_at(1001)], &certificate)?;
        for version in ["v1", "v2"] {
            let edged = Edged::start(
                lab,
                &format!(
                    "[[pool]]\nname = \"web\"\nproxy_protocol = \"{version}\"\n{}\n[[pool.backend]]\nto = \"{}\"\n\
                     [[route]]\nhost = \"web.example\"\nto = \"web\"\nlistener = [\"https\"]\n",
                    often("auto"),
                    lab.home_at(1001)
                ),
            )?;
            wait::until_ok("a check", Duration::from_secs(20), || {
                let backend = backend(&edged, "web")?;
                ensure!(!backend["last_success_at"].is_null(), "{version}: {backend}");
                Ok(())
            })?;
            ensure!(backend(&edged, "web")?["state"] == "up");
        }
        Ok(())
    })
}
