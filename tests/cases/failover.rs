//! The effect on clients when a backend, a tunnel or a home router dies, and when it returns.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::{Duration, Instant},
};

use lab::{
    Context, Edged, Lab, Result, Signal,
    certificates::Authority,
    ensure,
    failover::{Visits, visits},
    hello::ClientHello,
    peers::Nginx,
    service,
    stream::{self, End},
    wait::{self, SOON},
    wireguard::Tunnel,
};

use crate::{
    case, echo_once,
    flow::wait_for_flows,
    greeting,
    ways::{HANDSHAKE, HEALTH, by, first_is, first_is_down_because, with},
};

/// A pool whose second backend is used when the first is down.
fn pool(first: &str, second: &str) -> String {
    format!(
        "[[pool]]\nname = \"home\"\n{HEALTH}\n[[pool.backend]]\n{first}\n[[pool.backend]]\n{second}\nbackup = true\n\
         [[route]]\nhost = \"*\"\nto = \"home\"\n"
    )
}

fn at(address: SocketAddr) -> String {
    format!("to = \"{address}\"")
}

/// How often the log says that a backend, named by the end of its name, came into a state for a reason that contains
/// this.
fn changes(edged: &mut Edged, name: &str, state: &str, reason: &str) -> Result<usize> {
    let log = edged.process().whole_log()?;
    let change = format!("{name} state=\"{state}\"");
    let is_one =
        |line: &&str| line.contains("backend changed") && line.contains(&change) && line.contains(reason);
    Ok(log.lines().filter(is_one).count())
}

/// A pool in which an attempt to connect to a backend that does not answer takes many seconds: a client that waited
/// for one shows, even among clients of a loaded machine.
fn patient(pool: &str, health: &str) -> String {
    pool.replace(HEALTH, &format!("{health}\nconnect_timeout = \"40s\""))
}

/// Clients that connected after the failure was visible used the other path, without an attempt on the first.
fn moved_at_once(late: &Visits) -> Result<()> {
    ensure!(late.failed().is_empty(), "{:?} of {}", late.failed().first(), late.all().len());
    ensure!(late.all().iter().all(|visit| visit.answer == Some(b'm')), "somebody went by the first tunnel");
    let took = late.usual().context("nobody went by the other tunnel")?;
    ensure!(took < Duration::from_secs(1), "new connections moved after {took:?}");
    Ok(())
}

#[test]
fn ten_thousand_clients_see_no_killed_backend() -> Result<()> {
    case(|lab| {
        let authority = Authority::new(lab)?;
        let mut nginx = Nginx::tls(&lab.home, lab.home_at(1001), &authority.issue(lab, &["a.example"])?)?;
        let _second = service::named(&lab.home, lab.home_at(1002), "two")?;
        let edged = Edged::start(lab, &pool(&at(lab.home_at(1001)), &at(lab.home_at(1002))))?;
        first_is(&edged, "up")?;
        let (mut killed, mut visible) = (Instant::now(), Instant::now());
        let visits = visits(lab, "a.example", 8, 10_000, || {
            wait::until_true("some clients", SOON, || nginx_served(&edged) > 500)?;
            killed = Instant::now();
            nginx.process().signal(Signal::KILL)?;
            nginx.process().wait(SOON)?;
            // From here on its port refuses, which is all there is to see.
            visible = Instant::now();
            Ok(())
        })?;
        visits.say("kill -9 of a backend", killed, visible);
        ensure!(visits.all().iter().any(|visit| visit.answer == Some(HANDSHAKE)), "nginx answered nobody");
        // Clients that were connected to nginx or waited in its queue are lost with it; no others may be.
        let failed = visits.failed();
        ensure!(failed.len() <= 16, "{} failed", failed.len());
        let late = visits.since(visible).failed();
        ensure!(
            late.is_empty(),
            "{} failed that began when the port refused: {:?}",
            late.len(),
            late.first()
        );
        first_is_down_because(&edged, "refused")
    })
}

/// Bytes that the first backend sent so far tell whether anybody got there.
fn nginx_served(edged: &Edged) -> u64 {
    let list = edged.edgectl().list("backends").unwrap_or_default();
    list.first().and_then(|first| first["bytes_down"].as_u64()).unwrap_or(0) / 1000
}

#[test]
fn a_dead_tunnel_moves_clients_to_the_other_and_back() -> Result<()> {
    with(Lab::plan().two_tunnels(), |lab| {
        let [fibre, mobile] = lab.tunnels()?;
        let _first = service::named(&lab.home, (fibre.home_address(), 443).into(), "fibre")?;
        let _second = service::named(&lab.home, (mobile.home_address(), 443).into(), "mobile")?;
        let _echo = service::echo(&lab.home, (fibre.home_address(), 444).into())?;
        let echo = format!(
            "[[pool]]\nname = \"echo\"\nhealth = {{ kind = \"tcp\" }}\n[[pool.backend]]\n{}\n[[route]]\nhost = \"echo.example\"\nto = \"echo\"\n",
            by(fibre, 444)
        );
        let body = format!("{}{echo}", pool(&by(fibre, 443), &by(mobile, 443)));
        let mut edged = Edged::start(lab, &body)?;
        first_is(&edged, "up")?;
        ensure!(greeting(lab, "a.example")? == "fibre");
        let mut live = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut live, &ClientHello::new("echo.example").records())?;
        let listed = edged.wait_for_connections(1)?;
        ensure!(
            listed[0]["device"] == fibre.edge_device() && listed[0]["backend_state"] == "up",
            "{}",
            listed[0]
        );

        let (mut killed, mut visible) = (Instant::now(), Instant::now());
        let gone = visits(lab, "a.example", 8, 2_000, || {
            killed = Instant::now();
            fibre.edge().kill(&lab.edge)?;
            first_is(&edged, "down")?;
            visible = Instant::now();
            first_is_down_because(&edged, "does not exist")
        })?;
        gone.say("kill -9 of a tunnel", killed, visible);
        moved_at_once(&gone.since(visible))?;
        // Connections through a vanished device cannot recover: their clients are reset at once.
        let own = live.local_addr()?;
        let (_, end) = stream::read_to_end(&mut live)?;
        ensure!(end == End::Reset, "{end:?}");
        let record = edged.access_log.wait_for_client(own)?;
        ensure!(record["close"] == "tunnel_gone", "{record}");

        fibre.edge().bring_up(&lab.edge)?;
        let up = first_is(&edged, "up")?;
        ensure!(up["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{up}");
        wait::until_true("new connections by the first tunnel", SOON, || {
            greeting(lab, "a.example").is_ok_and(|got| got == "fibre")
        })?;
        // Of both its backends.
        let said = changes(&mut edged, &format!("by {}", fibre.edge_device()), "down", "")?;
        ensure!(said <= 2, "each change is said once, not {said} times of two backends");
        Ok(())
    })
}

#[test]
fn flows_end_with_their_tunnel_and_the_others_go_on() -> Result<()> {
    with(Lab::plan().two_tunnels(), |lab| {
        let tunnels = lab.tunnels()?;
        let (mut echoes, mut pools) = (Vec::new(), Vec::new());
        for (tunnel, name) in tunnels.iter().zip(["fibre", "mobile"]) {
            echoes.push(service::echo(&lab.home, (tunnel.home_address(), 443).into())?);
            pools.push(format!(
                "[[pool]]\nname = \"{name}\"\n{HEALTH}\n[[pool.backend]]\n{}\n\
                 [[route]]\nhost = \"{name}.example\"\nto = \"{name}\"\n",
                by(tunnel, 443)
            ));
        }
        let start = || Edged::plan(lab, &pools.concat()).daemon("datapath = \"flow\"").start();
        let gone = |edged: &Edged, name: &str, stream: &mut TcpStream| -> Result<()> {
            let (_, end) = stream::read_to_end(stream)?;
            ensure!(end == End::Reset, "{end:?}");
            let record = edged.access_log.wait_for_host(&format!("{name}.example"))?;
            ensure!(record["close"] == "tunnel_gone" && record["datapath"] == "flow", "{record}");
            Ok(())
        };
        let edged = start()?;
        let by_tunnel = |name: &str| -> Result<TcpStream> {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            echo_once(&mut stream, &ClientHello::new(&format!("{name}.example")).records())?;
            Ok(stream)
        };
        let (mut fibre, mut mobile) = (by_tunnel("fibre")?, by_tunnel("mobile")?);
        wait_for_flows(&edged, 2)?;
        tunnels[0].edge().kill(&lab.edge)?;
        gone(&edged, "fibre", &mut fibre)?;
        echo_once(&mut mobile, b"by the other tunnel")?;
        let [flow] = &*wait_for_flows(&edged, 1)? else { lab::bail!("one flow") };
        ensure!(flow["device"] == tunnels[1].edge_device(), "{flow}");
        // A tunnel that goes while there is no daemon is missed by the next one.
        edged.kill()?;
        tunnels[1].edge().kill(&lab.edge)?;
        let edged = start()?;
        gone(&edged, "mobile", &mut mobile)?;
        wait_for_flows(&edged, 0).map(drop)
    })
}

#[test]
fn a_home_router_that_falls_silent_is_noticed() -> Result<()> {
    with(Lab::plan().two_tunnels().relayed(), |lab| {
        let [fibre, mobile] = lab.tunnels()?;
        let _first = service::named(&lab.home, (fibre.home_address(), 443).into(), "fibre")?;
        let _second = service::named(&lab.home, (mobile.home_address(), 443).into(), "mobile")?;
        let _echo = service::echo(&lab.home, (fibre.home_address(), 444).into())?;
        let body = format!("{}{}", pool(&by(fibre, 443), &by(mobile, 443)), echoes(fibre, 444));
        let edged = Edged::start(lab, &body)?;
        first_is(&edged, "up")?;
        let mut live = both_kinds(lab, &edged)?;

        let (mut cut, mut visible) = (Instant::now(), Instant::now());
        let silent = visits(lab, "a.example", 4, 500, || {
            cut = Instant::now();
            fibre.relay()?.cut(true);
            first_is(&edged, "down")?;
            visible = Instant::now();
            first_is_down_because(&edged, "answer")
        })?;
        silent.say("a home router without a word", cut, visible);
        moved_at_once(&silent.since(visible))?;

        // The line comes back, and with it what was on it.
        fibre.relay()?.cut(false);
        first_is(&edged, "up")?;
        ensure!(greeting(lab, "a.example")? == "fibre");
        live.iter_mut().try_for_each(|live| echo_once(live, b"after the line came back"))
    })
}

/// An echo service by a tunnel, once for sockets and once for flows.
fn echoes(tunnel: &Tunnel, port: u16) -> String {
    format!(
        "[[pool]]\nname = \"echo\"\nhealth = {{ kind = \"off\" }}\n[[pool.backend]]\n{}\n\
         [[route]]\nhost = \"socket.example\"\nto = \"echo\"\ndatapath = \"copy\"\n\
         [[route]]\nhost = \"flow.example\"\nto = \"echo\"\ndatapath = \"flow\"\n",
        by(tunnel, port)
    )
}

/// A connection on sockets and one that is a flow, to [`echoes`].
fn both_kinds(lab: &Lab, edged: &Edged) -> Result<[TcpStream; 2]> {
    let connect = |name: &str| -> Result<TcpStream> {
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut stream, &ClientHello::new(name).records())?;
        Ok(stream)
    };
    let both = [connect("socket.example")?, connect("flow.example")?];
    wait_for_flows(edged, 1)?;
    Ok(both)
}

#[test]
fn established_connections_wait_for_a_device_that_is_down() -> Result<()> {
    with(Lab::plan().two_tunnels(), |lab| {
        let [fibre, mobile] = lab.tunnels()?;
        let _first = service::named(&lab.home, (fibre.home_address(), 443).into(), "fibre")?;
        let _second = service::named(&lab.home, (mobile.home_address(), 443).into(), "mobile")?;
        let _echo = service::echo(&lab.home, (fibre.home_address(), 444).into())?;
        let body = format!("{}{}", pool(&by(fibre, 443), &by(mobile, 443)), echoes(fibre, 444));
        let edged = Edged::start(lab, &body)?;
        first_is(&edged, "up")?;
        let mut live = both_kinds(lab, &edged)?;
        lab.edge.ip(&["link", "set", fibre.edge_device(), "down"])?;
        first_is_down_because(&edged, "is down")?;
        ensure!(greeting(lab, "a.example")? == "mobile");
        // Said into the silence, and repeated until somebody hears it.
        live.iter_mut().try_for_each(|live| live.write_all(b"anybody there?"))?;
        wait::until_ok("both to be shown as waiting", SOON, || {
            let list = edged.edgectl().list("connections")?;
            ensure!(list.len() == 2 && list.iter().all(|live| live["backend_state"] == "down"), "{list:?}");
            Ok(())
        })?;
        lab.edge.ip(&["link", "set", fibre.edge_device(), "up"])?;
        first_is(&edged, "up")?;
        live.iter_mut().try_for_each(|live| crate::expect(live, "anybody there?"))
    })
}

#[test]
fn a_peer_that_shakes_no_hands_is_down_before_a_client_fails() -> Result<()> {
    with(Lab::plan().two_tunnels(), |lab| {
        let [fibre, mobile] = lab.tunnels()?;
        let _second = service::named(&lab.home, (mobile.home_address(), 443).into(), "mobile")?;
        let unchecked = patient(&pool(&by(fibre, 443), &by(mobile, 443)), "health = { kind = \"off\" }");
        // Home's end dies: the device on the edge stays as it is, and nobody checks.
        fibre.home().kill(&lab.home)?;
        let edged = Edged::start(lab, &format!("[tunnel]\nhandshake_timeout = \"2s\"\n{unchecked}"))?;
        // Something has to be sent for a tunnel that died to be told from one that sleeps.
        let socket = lab.edge.run(|| Ok(std::net::UdpSocket::bind("0.0.0.0:0")?))?;
        let down = wait::until_ok("the first backend to be down", SOON, || {
            socket.send_to(b"hello", (fibre.home_address(), 9))?;
            let list = edged.edgectl().list("backends")?;
            let first = list.into_iter().next().context("no backends")?;
            ensure!(first["state"] == "down", "{first}");
            Ok(first)
        })?;
        ensure!(down["reason"].as_str().is_some_and(|reason| reason.contains("handshake")), "{down}");
        let began = Instant::now();
        ensure!(greeting(lab, "a.example")? == "mobile");
        ensure!(began.elapsed() < Duration::from_secs(10), "a client waited {:?}", began.elapsed());
        fibre.home().bring_up(&lab.home)?;
        first_is(&edged, "up").map(drop)
    })
}

#[test]
fn all_down_fails_fast_and_recovers_by_itself() -> Result<()> {
    case(|lab| {
        // Packets to the second leave, and nothing comes back.
        let nobody = ["lladdr", "02:00:00:00:00:99", "dev", "back", "nud", "permanent"];
        lab.edge.ip(&[&["neigh", "add", "198.18.2.99"], &nobody[..]].concat())?;
        let pool = pool(&at(lab.home_at(1001)), "to = \"198.18.2.99:443\"");
        let edged = Edged::start(lab, &patient(&pool, HEALTH))?;
        first_is(&edged, "down")?;
        wait::until_true("both to be down", SOON, || {
            edged
                .edgectl()
                .list("backends")
                .is_ok_and(|list| list.iter().all(|backend| backend["state"] == "down"))
        })?;
        let began = Instant::now();
        let mut client = lab.client.connect(lab.edge.at(443))?;
        client.write_all(&ClientHello::new("a.example").records())?;
        lab::hello::expect_alert(&mut client, lab::hello::INTERNAL_ERROR)?;
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(10), "the refusal took {took:?}");
        edged.access_log.wait_for("it", |record| record["close"] == "connect_failed")?;
        let _service = service::named(&lab.home, lab.home_at(1001), "back")?;
        wait::until_true("clients to be served again", SOON, || {
            greeting(lab, "a.example").is_ok_and(|got| got == "back")
        })?;
        first_is(&edged, "up").map(drop)
    })
}

#[test]
fn a_flapping_backend_costs_no_client() -> Result<()> {
    case(|lab| {
        let _second = service::named(&lab.home, lab.home_at(1002), "two")?;
        let mut edged = Edged::start(lab, &pool(&at(lab.home_at(1001)), &at(lab.home_at(1002))))?;
        first_is(&edged, "down")?;
        let began = Instant::now();
        let visits = visits(lab, "a.example", 4, 0, || {
            for _ in 0..3 {
                let first = service::named(&lab.home, lab.home_at(1001), "one")?;
                first_is(&edged, "up")?;
                ensure!(greeting(lab, "a.example")? == "one", "the backup is for when the first is down");
                drop(first);
                first_is(&edged, "down")?;
            }
            Ok(())
        })?;
        visits.say("a flapping backend", began, began);
        ensure!(visits.all().iter().any(|visit| visit.answer == Some(b't')), "the backup served nobody");
        // A listener that closes resets whom it had not accepted yet; nobody else may fail.
        let failed = visits.failed();
        ensure!(failed.len() <= 3 * 4, "{} of {} failed", failed.len(), visits.all().len());
        let name = lab.home_at(1001).to_string();
        let mut said = |state: &str, reason: &str| changes(&mut edged, &name, state, reason);
        let (up, down) = (said("up", "")?, said("down", "")?);
        // A machine that stood still lets checks fail too.
        let late = said("down", "did not answer")?;
        ensure!(
            down - late == 4 && up == down - 1,
            "each change is said once, not {up} up and {down} down, {late} of them late"
        );
        Ok(())
    })
}

#[test]
fn two_tunnels_to_the_same_address_are_two_backends() -> Result<()> {
    with(Lab::plan().two_tunnels(), |lab| {
        let [fibre, mobile] = lab.tunnels()?;
        let home = fibre.home_address();
        // The home is one address; the second tunnel leads there as well.
        let mut wg = Command::new("wg");
        let key = lab.edge.text_of({
            let mut show = Command::new("wg");
            show.args(["show", mobile.edge_device(), "peers"]);
            show
        })?;
        let allowed = format!("{home}/32,{}/32", mobile.home_address());
        wg.args(["set", mobile.edge_device(), "peer", key.trim(), "allowed-ips", &allowed]);
        lab.edge.text_of(wg)?;
        lab.edge.ip(&["route", "add", &format!("{home}/32"), "dev", mobile.edge_device(), "metric", "99"])?;
        // The answers must find back by either tunnel, so that the edge's addresses are its own in both.
        let _service = service::named(&lab.home, (home, 443).into(), "home")?;
        let second = format!("to = \"{home}:443\"\ndevice = \"{}\"", mobile.edge_device());
        let edged = Edged::start(lab, &pool(&by(fibre, 443), &second))?;
        let list = edged.edgectl().list("backends")?;
        ensure!(list.len() == 2 && list[0]["to"] == list[1]["to"], "{list:?}");
        first_is(&edged, "up")?;
        ensure!(greeting(lab, "a.example")? == "home");
        fibre.edge().kill(&lab.edge)?;
        first_is(&edged, "down")?;
        ensure!(greeting(lab, "a.example")? == "home", "the same home by the other tunnel");
        Ok(())
    })
}
