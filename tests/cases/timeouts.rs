//! Times and rates: per listener, per route, and for connections that are closed on one side only.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, TcpStream},
};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    service::{self, Service},
    stream::{self, End},
    topology::CLIENT_SECOND,
    wait::{self, SOON},
};

use crate::{case, echo_once, expect};

fn live(lab: &Lab, port: u16, name: &str) -> Result<TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(port))?;
    echo_once(&mut stream, &ClientHello::new(name).records())?;
    Ok(stream)
}

#[test]
fn the_route_then_the_listener_then_the_limit_says_how_long_nothing_may_move() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let route = |host: &str, more: &str| {
            format!("[[route]]\nhost = \"{host}\"\nto = \"{}\"\n{more}\n", lab.home_at(443))
        };
        let listener = |name: &str, port: u16, more: &str| {
            format!("[[listener]]\nname = \"{name}\"\nbind = [\"[::]:{port}\"]\n{more}\n")
        };
        let edged = Edged::start(
            lab,
            &[
                "[limits]\nidle_timeout = \"2s\"\n".to_owned(),
                listener("short", 443, ""),
                listener("long", 8443, "idle_timeout = \"1h\""),
                listener("never", 9443, "idle_timeout = 0"),
                route("plain.example", ""),
                route("own.example", "idle_timeout = \"2s\""),
                route("never.example", "idle_timeout = \"0s\""),
            ]
            .concat(),
        )?;
        let mut stay = [
            live(lab, 443, "never.example")?,
            live(lab, 8443, "plain.example")?,
            live(lab, 9443, "plain.example")?,
            live(lab, 9443, "never.example")?,
        ];
        for (port, name) in [(443, "plain.example"), (8443, "own.example"), (9443, "own.example")] {
            let mut stream = live(lab, port, name)?;
            let own = stream.local_addr()?;
            ensure!(stream::read_to_end(&mut stream)?.1 == End::Fin);
            let record = edged.access_log.wait_for_client(own)?;
            ensure!(record["close"] == "idle_timeout", "{record}");
        }
        // Each of those took longer than what would have ended these.
        for stream in &mut stay {
            echo_once(stream, b"still there")?;
        }
        Ok(())
    })
}

#[test]
fn a_shell_may_be_silent_for_hours() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let home = lab.home_at(443);
        let edged = Edged::start(
            lab,
            &format!(
                "[limits]\nidle_timeout = \"2s\"\n\
                 [[listener]]\nname = \"all\"\nbind = [\"[::]:443\"]\nprotocols = [\"tls\", \"ssh\"]\n\
                 [[route]]\nhost = \"plain.example\"\nto = \"{home}\"\n\
                 [[route]]\nprotocol = [\"ssh\"]\nto = \"{home}\"\n"
            ),
        )?;
        let mut shell = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut shell, b"SSH-2.0-OpenSSH_9.2p1\r\n")?;
        let mut page = live(lab, 443, "plain.example")?;
        ensure!(stream::read_to_end(&mut page)?.1 == End::Fin);
        edged.access_log.wait_for("the page", |record| record["close"] == "idle_timeout")?;
        echo_once(&mut shell, b"still there")
    })
}

#[test]
fn half_closed_connections_end_too() -> Result<()> {
    case(|lab| {
        // A service that never closes.
        let service = Service::start(&lab.home, lab.home_at(443), |mut stream| {
            Ok((stream::read_to_end(&mut stream)?, stream))
        })?;
        let edged = Edged::start(
            lab,
            &format!(
                "[limits]\nidle_timeout = \"2s\"\n[[route]]\nhost = \"*\"\nto = \"{}\"\n",
                lab.home_address()
            ),
        )?;
        let hello = ClientHello::new("a.example").records();
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        stream.write_all(&hello)?;
        stream.shutdown(Shutdown::Write)?;
        let ((got, end), _open) = service.outcome()?;
        ensure!(got == hello && end == End::Fin);
        stream::read_to_end(&mut stream)?;
        let record = edged.access_log.wait_for_host("a.example")?;
        ensure!(record["close"] == "idle_timeout", "{record}");
        Ok(())
    })
}

#[test]
fn a_listener_has_a_time_for_hellos_and_a_route_one_to_connect() -> Result<()> {
    case(|lab| {
        // Packets to it leave, and nothing comes back.
        let nowhere = "198.18.2.77";
        lab.edge.ip(&[
            "neigh",
            "add",
            nowhere,
            "lladdr",
            "02:00:00:00:00:77",
            "dev",
            "back",
            "nud",
            "permanent",
        ])?;
        let edged = Edged::start(
            lab,
            &format!(
                "[limits]\nhello_timeout = \"1h\"\n\
                 [[listener]]\nname = \"quick\"\nbind = [\"[::]:443\"]\nhello_timeout = \"2s\"\n\
                 [[listener]]\nname = \"raw\"\nbind = [\"[::]:5000\"]\nprotocol = \"tcp\"\nto = \"{nowhere}:1\"\n\
                 connect_timeout = \"400ms\"\n\
                 [[route]]\nhost = \"*\"\nto = \"{nowhere}\"\nconnect_timeout = \"300ms\"\n"
            ),
        )?;
        let mut silent = lab.client.connect(lab.edge.at(443))?;
        ensure!(stream::read_to_end(&mut silent)?.1 == End::Fin);
        edged.edgectl().until(&["status"], |status| {
            ensure!(status["rejected"]["hello_timeout"] == 1, "{}", status["rejected"]);
            Ok(())
        })?;
        let mut lost = lab.client.connect(lab.edge.at(443))?;
        lost.write_all(&ClientHello::new("a.example").records())?;
        stream::read_to_end(&mut lost)?;
        stream::read_to_end_of(lab.client.connect(lab.edge.at(5000)))?;
        edged.access_log.wait_for_count(2, "both", |record| record["close"] == "connect_failed")?;
        for time in ["within 300 ms", "within 400 ms"] {
            edged.wait_for_log(time)?;
        }
        Ok(())
    })
}

#[test]
fn no_more_connections_a_second_of_one_source_than_allowed() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(
            lab,
            &format!(
                "[limits]\nconnection_rate_per_source = 2\n[[route]]\nhost = \"*\"\nto = \"{}\"\n",
                lab.home_address()
            ),
        )?;
        let started = std::time::Instant::now();
        let tries = 40;
        let served = (0..tries).filter(|_| live(lab, 443, "a.example").is_ok()).count();
        let most = 2 + 2 * (usize::try_from(started.elapsed().as_secs())? + 1);
        ensure!((1..=most).contains(&served), "{served} of {tries} were served, not {most}");
        let limited = |record: &serde_json::Value| record["close"] == "source_rate";
        edged.access_log.wait_for_count(tries - served, "the others", limited)?;
        edged.edgectl().until(&["status"], |status| {
            let rejected = status["rejected"]["source_rate"].as_u64().unwrap_or(0);
            ensure!(rejected == (tries - served) as u64, "{}", status["rejected"]);
            Ok(())
        })?;
        for other in [IpAddr::from(CLIENT_SECOND), lab.client.v6.into()] {
            let edge = if other.is_ipv4() { lab.edge.at(443) } else { lab.edge.at_v6(443) };
            let mut stream = lab.client.connect_from(other, edge)?;
            echo_once(&mut stream, &ClientHello::new("a.example").records())?;
        }
        wait::until_ok("the source to be served again", SOON, || live(lab, 443, "a.example").map(drop))
    })
}

/// An Electrum server: lines over TCP and over TLS, connections that are idle for hours, and a banner first.
#[test]
fn a_tcp_listener_has_a_pool_and_keeps_idle_connections_alive() -> Result<()> {
    case(|lab| {
        let talk = |banner: &'static str| {
            move |mut stream: TcpStream| {
                stream.write_all(banner.as_bytes())?;
                while stream.read(&mut [0])? > 0 {
                    stream.write_all(b".")?;
                }
                Ok(())
            }
        };
        let first = Service::start(&lab.home, lab.home_at(50001), talk("first\n"))?;
        let _second = Service::start(&lab.home, lab.home_at(50011), talk("second\n"))?;
        let _tls = service::named(&lab.home, lab.home_at(50002), "tls")?;
        // As a flow it would have no sockets.
        let edged = Edged::plan(
            lab,
            &format!(
                "[limits]\nidle_timeout = \"3s\"\n\
                 [[listener]]\nname = \"electrum\"\nbind = [\"[::]:50001\"]\nprotocol = \"tcp\"\nto = \"electrs\"\n\
                 [[listener]]\nname = \"electrum-tls\"\nbind = [\"[::]:50002\"]\n\
                 [[pool]]\nname = \"electrs\"\nhealth = {{ kind = \"tcp\", interval = \"200ms\", fall = 2 }}\n\
                 [[pool.backend]]\nto = \"{}\"\n[[pool.backend]]\nto = \"{}\"\nbackup = true\n\
                 [[route]]\nhost = \"electrum.example\"\nto = \"{}\"\n",
                lab.home_at(50001),
                lab.home_at(50011),
                lab.home_address()
            ),
        )
        .daemon("datapath = \"splice\"")
        .start()?;
        let mut line = lab.client.connect(lab.edge.at(50001))?;
        expect(&mut line, "first\n")?;
        let sockets = || {
            let mut ss = std::process::Command::new("ss");
            ss.args(["-tnoH", "state", "established"]);
            lab.edge.text_of(ss)
        };
        let is_kept = |text: &str, port: &str| {
            text.lines().any(|line| line.contains(port) && line.contains("timer:(keepalive"))
        };
        // Only what is ten seconds old is worth it.
        wait::until_ok("both sockets to be kept alive", 2 * SOON, || {
            let text = sockets()?;
            ensure!(is_kept(&text, ":50001 ") && is_kept(&text, &lab.home_at(50001).to_string()), "{text}");
            Ok(())
        })?;
        let mut tls = lab.client.connect(lab.edge.at(50002))?;
        tls.write_all(&ClientHello::new("electrum.example").records())?;
        expect(&mut tls, "tls")?;
        // That one is closed while the other, which is as idle, stays.
        stream::read_to_end(&mut tls)?;
        edged.access_log.wait_for("it", |record| record["listener"] == "electrum-tls")?;
        line.write_all(b"x")?;
        expect(&mut line, ".")?;
        drop(first);
        wait::until_ok("the backup", SOON, || {
            let mut other = lab.client.connect(lab.edge.at(50001))?;
            expect(&mut other, "second\n")
        })
    })
}
