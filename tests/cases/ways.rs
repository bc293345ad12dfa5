//! The ways home: nothing leaves by another, what a diagnosis finds on them, and what being ready on them spares.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use lab::{
    Context, Edged, Lab, Result,
    capture::Capture,
    certificates::Authority,
    ensure,
    hello::ClientHello,
    peers::{Haproxy, Nginx},
    require::{self, Need},
    service, stream,
    topology::Plan,
    wait::{self, SOON},
    wireguard::Tunnel,
};
use serde_json::Value;

use crate::{case, echo_once, greeting};

/// The first byte of a ServerHello's record, which is how nginx answers.
pub(crate) const HANDSHAKE: u8 = 22;

/// Quick checks, so that a case does not take minutes. Their time is enough on a loaded machine, and for a SYN that was
/// lost: it is sent again after a second.
pub(crate) const HEALTH: &str =
    "health = { kind = \"tcp\", interval = \"300ms\", timeout = \"3s\", rise = 2, fall = 2 }";

/// Runs a case in a lab with tunnels, or says why it cannot.
pub(crate) fn with(plan: Plan, body: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
    let all = require::all(&[Need::Namespaces, Need::Tunnel, Need::Program("tcpdump", "tcpdump")]);
    if all { plan.case(body) } else { Ok(()) }
}

/// A backend at home by one of the tunnels.
pub(crate) fn by(tunnel: &Tunnel, port: u16) -> String {
    format!("to = \"{}:{port}\"\ndevice = \"{}\"", tunnel.home_address(), tunnel.edge_device())
}

/// Waits for the state of the first backend of the pool `home`, and gives it.
pub(crate) fn first_is(edged: &Edged, state: &str) -> Result<Value> {
    wait::until_ok(&format!("the first backend to be {state}"), SOON, || {
        let list = edged.edgectl().list("backends")?;
        let first = list.into_iter().find(|backend| backend["pool"] == "home").context("no backends")?;
        // One that is not checked is as good as up.
        let is_unchecked = state == "up" && first["state"] == "unchecked";
        ensure!(first["state"] == state || is_unchecked, "{first}");
        Ok(first)
    })
}

/// Waits until the first backend of the pool `home` is down and `cause` is what is said of it. A check may notice a
/// symptom before its cause is known.
pub(crate) fn first_is_down_because(edged: &Edged, cause: &str) -> Result<()> {
    wait::until_ok(&format!("the first backend to be down because {cause:?}"), SOON, || {
        let first = first_is(edged, "down")?;
        ensure!(first["reason"].as_str().is_some_and(|reason| reason.contains(cause)), "{first}");
        Ok(())
    })
}

#[test]
fn nothing_leaves_by_another_device() -> Result<()> {
    with(Lab::plan().tunnel(), |lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        let home = tunnel.home_address();
        let body = format!(
            "[[pool]]\nname = \"home\"\n{HEALTH}\nwarm = 2\n[[pool.backend]]\n{}\n\
             [[route]]\nhost = \"tied.example\"\nto = \"home\"\n\
             [[route]]\nhost = \"loose.example\"\nto = \"{home}\"\n",
            by(tunnel, 443)
        );
        // The VPS's way to the internet, which takes whatever has no other.
        lab.edge.ip(&["route", "add", "default", "via", &lab.client.v4.to_string(), "dev", "front"])?;
        let service = service::echo(&lab.home, (home, 443).into())?;
        let edged = Edged::start(lab, &body)?;
        let mut live = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut live, &ClientHello::new("tied.example").records())?;
        let filter = format!("host {home}");
        let front = Capture::start(&lab.edge, "front", &filter)?;
        let back = Capture::start(&lab.edge, "back", &filter)?;
        tunnel.edge().kill(&lab.edge)?;
        first_is(&edged, "down")?;
        stream::read_to_end(&mut live)?;
        let began = Instant::now();
        for _ in 0..20 {
            ensure!(greeting(lab, "tied.example")?.starts_with('\u{15}'), "an alert");
        }
        // Waiting for a way each time would take half a minute.
        ensure!(began.elapsed() < Duration::from_secs(20), "20 refusals took {:?}", began.elapsed());
        // Checks and warm connections have had their chance as well.
        wait::until_true("some checks", SOON, || began.elapsed() > Duration::from_secs(1))?;
        for capture in [&front, &back] {
            let packets = capture.packets()?;
            ensure!(packets.is_empty(), "it left by another device: {packets:?}");
        }
        // That the captures would have seen it shows a backend without a device.
        let mut loose = lab.client.connect(lab.edge.at(443))?;
        loose.write_all(&ClientHello::new("loose.example").records())?;
        front.wait_for(&format!("> {home}.443"))?;
        drop(loose);

        let probe = edged.edgectl().run(&["routes", "test", "tied.example", "--probe", "--json"])?;
        ensure!(probe.status.code() == Some(1), "a broken way is no success");
        let probe: Value = serde_json::from_slice(&probe.stdout)?;
        let last = probe["probe"][0]["steps"].as_array().and_then(|steps| steps.last()).cloned();
        let last = last.context("no steps")?;
        ensure!(
            last["name"] == "route"
                && last["message"].as_str().unwrap_or_default().contains("does not exist"),
            "{last}"
        );

        tunnel.edge().bring_up(&lab.edge)?;
        first_is(&edged, "up")?;
        let mut again = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut again, &ClientHello::new("tied.example").records())?;
        drop(service);
        Ok(())
    })
}

#[test]
fn doctor_finds_a_black_hole_and_says_the_remedy() -> Result<()> {
    with(Lab::plan().tunnel().relayed(), |lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        let authority = Authority::new(lab)?;
        let on = (tunnel.home_address(), 443).into();
        let _nginx = Nginx::tls(&lab.home, on, &authority.issue(lab, &["*.example.com"])?)?;
        let other = (tunnel.home_address(), 8443).into();
        let _other = Nginx::tls(&lab.home, other, &authority.issue(lab, &["b.example.com"])?)?;
        let body = format!(
            "[[pool]]\nname = \"home\"\n[[pool.backend]]\n{}\n[[route]]\nhost = \"a.example.com\"\nto = \"home\"\n\
             [[route]]\nhost = \"b.example.com\"\nto = \"{other}\"\n",
            by(tunnel, 443)
        );
        let edged = Edged::start(lab, &body)?;
        let checks = || -> Result<Vec<Value>> {
            let output = edged.edgectl().run(&["doctor", "--json"])?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            report["checks"].as_array().cloned().context("no checks")
        };
        let find = |checks: &[Value], name: &str| -> Result<Value> {
            let found =
                checks.iter().find(|check| check["name"].as_str().is_some_and(|own| own.starts_with(name)));
            found.cloned().with_context(|| format!("no check {name}: {checks:?}"))
        };
        // A server that is slow for a moment does not answer in the doctor's time.
        let answered = || {
            wait::until_ok("a hello that is answered", SOON, || {
                let checks = checks()?;
                let check = find(&checks, &format!("hello to {on}"))?;
                ensure!(check["status"] == "ok", "{check}");
                Ok(checks)
            })
        };
        let sound = answered()?;
        let hello = format!("hello to {on}");
        ensure!(find(&sound, &hello)?["status"] == "ok", "{}", find(&sound, &hello)?);
        let pipes = find(&sound, "pipes")?;
        ensure!(pipes["status"] == "ok" || !pipes["remedy"].is_null(), "{pipes}");
        let device = find(&sound, &format!("device {}", tunnel.edge_device()))?;
        let message = device["message"].as_str().unwrap_or_default();
        ensure!(message.contains("1420") && message.contains("handshake"), "{device}");
        let listener = find(&sound, "listener https")?;
        ensure!(listener["message"].as_str().unwrap_or_default().contains("1380"), "{listener}");
        let certificate = find(&sound, "certificate of a.example.com")?;
        ensure!(
            certificate["message"].as_str().unwrap_or_default().contains("*.example.com"),
            "{certificate}"
        );
        // The wildcard of the first home covers the name of the second.
        let coalescing = find(&sound, "connection coalescing")?;
        ensure!(
            coalescing["status"] == "warn" && coalescing.to_string().contains("b.example.com"),
            "{coalescing}"
        );

        // The line below the tunnel carries less than the tunnel promises, as mobile lines do.
        tunnel.relay()?.lose_above(1350);
        let broken = find(&checks()?, &hello)?;
        ensure!(broken["status"] == "fail", "{broken}");
        let remedy = broken["remedy"].as_str().unwrap_or_default().to_owned();
        ensure!(remedy.contains(&format!("ip link set {} mtu 1280", tunnel.edge_device())), "{remedy}");
        let walked = edged.edgectl().run(&["routes", "test", "a.example.com", "--probe"])?;
        let text = String::from_utf8_lossy(&walked.stdout).into_owned();
        ensure!(walked.status.code() == Some(1) && text.contains("large hello"), "{text}");

        // The remedy is one.
        lab.edge.ip(&["link", "set", tunnel.edge_device(), "mtu", "1280"])?;
        lab.home.ip(&["link", "set", tunnel.home_device(), "mtu", "1280"])?;
        answered().map(drop)
    })
}

#[test]
fn a_warm_connection_spares_the_way_home() -> Result<()> {
    const ROUNDS: usize = 25;
    const WARM_UP: usize = 3;
    /// One way; twice that is the round trip of a fibre line across a country.
    const DELAY: Duration = Duration::from_millis(20);
    with(Lab::plan().tunnel().relayed(), |lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        let authority = Authority::new(lab)?;
        let home: SocketAddr = (tunnel.home_address(), 443).into();
        let _nginx = Nginx::tls(&lab.home, home, &authority.issue(lab, &["a.example"])?)?;
        let pool = |name: &str, warm: &str| {
            format!(
                "[[pool]]\nname = \"{name}\"\nwarm = {warm}\n[[pool.backend]]\nto = \"{home}\"\n\
                 [[route]]\nhost = \"{name}.example\"\nto = \"{name}\"\n"
            )
        };
        let body = [pool("cold", "0"), pool("warm", "4"), pool("auto", "\"auto\"")].concat();
        let _edged = Edged::start(lab, &body)?;
        let rival: SocketAddr = lab.edge.at(8443);
        let _haproxy = Haproxy::sni(&lab.edge, rival, &[("cold.example", home)], "")?;
        tunnel.relay()?.delay(DELAY);
        let ways = [
            (lab.edge.at(443), "cold.example"),
            (lab.edge.at(443), "warm.example"),
            (lab.edge.at(443), "auto.example"),
            (rival, "cold.example"),
        ];
        let mut times = [const { Vec::new() }; 4];
        for round in 0..ROUNDS + WARM_UP {
            for ((edge, name), times) in ways.iter().zip(&mut times) {
                let took = server_hello(lab, *edge, name)?;
                // The first clients are what the stock begins with.
                if round >= WARM_UP {
                    times.push(took);
                }
            }
        }
        let [cold, warm, auto, haproxy] = times.map(|mut times| {
            times.sort();
            times[times.len() / 2]
        });
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        let _ = writeln!(
            std::io::stderr(),
            "time to ServerHello over a line of {} ms both ways, median of {}: cold {:.1} ms, warm {:.1} ms, \
             auto {:.1} ms, HAProxy {:.1} ms",
            (DELAY * 2).as_millis(),
            ROUNDS,
            millis(cold),
            millis(warm),
            millis(auto),
            millis(haproxy),
        );
        ensure!(cold >= DELAY * 4, "the line is not that long: {cold:?}");
        for spared in [warm, auto] {
            ensure!(spared + DELAY < cold, "nothing is spared: {spared:?} against {cold:?}");
        }
        Ok(())
    })
}

/// From connecting to the first bytes of the ServerHello.
fn server_hello(lab: &Lab, edge: SocketAddr, name: &str) -> Result<Duration> {
    let began = Instant::now();
    let mut stream = lab.client.connect(edge)?;
    stream.write_all(&ClientHello::new(name).records())?;
    let mut first = [0; 6];
    stream.read_exact(&mut first)?;
    ensure!(first[0] == HANDSHAKE && first[5] == 2, "no ServerHello: {first:?}");
    Ok(began.elapsed())
}

#[test]
fn thousands_of_backends_cost_next_to_nothing() -> Result<()> {
    const BACKENDS: usize = 5_000;
    const WATCHED: Duration = Duration::from_secs(6);
    case(|lab| {
        // Each an address of its own, all of them home.
        lab.home.ip(&["route", "add", "local", "10.77.0.0/16", "dev", "lo"])?;
        lab.edge.ip(&["route", "add", "10.77.0.0/16", "via", &lab.home.v4.to_string()])?;
        let _home = service::Service::start(&lab.home, "0.0.0.0:443".parse()?, |_| Ok(()))?;
        let backends: Vec<_> = (0..BACKENDS)
            .map(|n| format!("[[pool.backend]]\nto = \"10.77.{}.{}\"\n", n / 250, n % 250 + 1))
            .collect();
        let backends = backends.concat();
        let pool = format!(
            "[[pool]]\nname = \"many\"\nhealth = {{ kind = \"tcp\" }}\n{backends}[[route]]\nhost = \"*\"\nto = \"many\"\n"
        );
        let mut edged = Edged::start(lab, &pool)?;
        // One of so many checks may be late on a loaded machine, until the next one.
        let all_up = |status: &Value| {
            ensure!(status["backends"]["up"] == BACKENDS, "{}", status["backends"]);
            Ok(())
        };
        edged.edgectl().until(&["status"], all_up)?;
        let before = edged.process().cpu_time()?;
        let since = Instant::now();
        wait::until_true("the time to be over", SOON, || since.elapsed() >= WATCHED)?;
        let used =
            edged.process().cpu_time()?.saturating_sub(before).as_secs_f64() / since.elapsed().as_secs_f64();
        let resident = edged.resident()?;
        let _ = writeln!(
            std::io::stderr(),
            "{BACKENDS} backends, each checked every 5 s: {:.1} % of a processor, {} MiB resident",
            used * 100.0,
            resident >> 20
        );
        ensure!(used < 0.5 && resident < 128 << 20, "{used} of a processor, {resident} bytes");
        edged.edgectl().until(&["status"], all_up).map(drop)
    })
}
