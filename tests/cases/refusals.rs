//! Clients that cannot be served are told so in their own protocol, and nothing of them reaches a backend.

use std::io::Write;

use lab::{
    Edged, Lab, Result, ensure,
    hello::{self, ClientHello},
    service,
    stream::{self, End},
};

use crate::{answer_to, case, greeting};

fn http(lab: &Lab, request: &str) -> Result<String> {
    answer_to(lab, lab.edge.at(80), request.as_bytes())
}

fn expect_status(answer: &str, status: &str) -> Result<()> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let head = head.to_ascii_lowercase();
    ensure!(head.starts_with(&format!("http/1.1 {status} ")), "{status} expected: {answer:?}");
    ensure!(head.contains("\r\nconnection: close"), "{answer:?}");
    ensure!(head.contains(&format!("\r\ncontent-length: {}", body.len())), "{answer:?}");
    ensure!(!body.trim().is_empty(), "the answer does not say what is wrong: {answer:?}");
    Ok(())
}

#[test]
fn no_route_is_told_in_the_clients_protocol() -> Result<()> {
    case(|lab| {
        let tls = service::named(&lab.home, lab.home_at(443), "tls")?;
        let plain = service::named(&lab.home, lab.home_at(80), "http")?;
        let edged = Edged::start(
            lab,
            &format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_address()),
        )?;
        for hello in
            [ClientHello::new("b.example"), ClientHello::new("x.a.example"), ClientHello::without_name()]
        {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            stream.write_all(&hello.records())?;
            hello::expect_alert(&mut stream, hello::UNRECOGNIZED_NAME)?;
        }
        expect_status(&http(lab, "GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")?, "404")?;
        expect_status(&http(lab, "GET / HTTP/1.0\r\n\r\n")?, "404")?;
        ensure!(tls.accepted() + plain.accepted() == 0, "a refused client reached a backend");
        let records =
            edged.access_log.wait_for_count(5, "refusals", |record| record["close"] == "no_route")?;
        ensure!(records.iter().all(|record| record["backend"].is_null()), "{records:?}");
        ensure!(greeting(lab, "a.example")? == "tls");
        Ok(())
    })
}

#[test]
fn wrong_protocols_are_told_or_reset() -> Result<()> {
    case(|lab| {
        let tls = service::named(&lab.home, lab.home_at(443), "tls")?;
        let plain = service::named(&lab.home, lab.home_at(80), "http")?;
        let edged =
            Edged::start(lab, &format!("[[route]]\nhost = \"*\"\nto = \"{}\"\n", lab.home_address()))?;
        let request = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        let answer = answer_to(lab, lab.edge.at(443), request)?;
        expect_status(&answer, "400")?;
        edged.access_log.wait_for("HTTP on TLS", |record| record["close"] == "http_on_tls")?;
        for (port, bytes) in [(443, &b"\x00\x01\x02\x03 garbage"[..]), (80, b"\x00\x01\x02\x03 garbage")] {
            let mut stream = lab.client.connect(lab.edge.at(port))?;
            stream.write_all(bytes)?;
            let (answer, end) = stream::read_to_end(&mut stream)?;
            ensure!(answer.is_empty() && end == End::Reset, "{port}: {end:?} after {answer:02x?}");
        }
        ensure!(tls.accepted() + plain.accepted() == 0, "a refused client reached a backend");
        Ok(())
    })
}

#[test]
fn requests_that_name_no_host_or_two_are_bad() -> Result<()> {
    case(|lab| {
        let plain = service::named(&lab.home, lab.home_at(80), "http")?;
        let _edged =
            Edged::start(lab, &format!("[[route]]\nhost = \"*\"\nto = \"{}\"\n", lab.home_address()))?;
        for request in [
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b.example\r\n\r\n",
            "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a.example\r\n\r\n",
        ] {
            let answer = http(lab, request)?;
            expect_status(&answer, "400").map_err(|error| error.context(format!("{request:?}")))?;
        }
        ensure!(plain.accepted() == 0, "a refused client reached the backend");
        Ok(())
    })
}

#[test]
fn a_backend_that_refuses_is_told_in_the_clients_protocol() -> Result<()> {
    case(|lab| {
        // Nothing listens at home.
        let edged = Edged::start(
            lab,
            &format!(
                "[[listener]]\nname = \"https\"\nbind = [\"[::]:443\"]\nprotocol = \"tls\"\n\
                 [[listener]]\nname = \"http\"\nbind = [\"[::]:80\"]\nprotocol = \"http\"\n\
                 [[listener]]\nname = \"raw\"\nbind = [\"[::]:5000\"]\nprotocol = \"tcp\"\nto = \"{home}:5000\"\n\
                 [[route]]\nhost = \"*\"\nto = \"{home}\"\n",
                home = lab.home_address()
            ),
        )?;
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        stream.write_all(&ClientHello::new("a.example").records())?;
        hello::expect_alert(&mut stream, hello::INTERNAL_ERROR)?;
        expect_status(&http(lab, "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")?, "502")?;
        let (answer, end) = stream::read_to_end_of(lab.client.connect(lab.edge.at(5000)))?;
        ensure!(answer.is_empty() && end == End::Reset, "{end:?} after {answer:02x?}");
        edged.access_log.wait_for_count(3, "refusals", |record| record["close"] == "connect_failed")?;
        Ok(())
    })
}

#[test]
fn a_backend_that_is_silent_ends_at_the_connect_timeout() -> Result<()> {
    case(|lab| {
        // An address at home that nobody has: neighbour discovery fails, or nothing answers at all.
        let edged = Edged::start(
            lab,
            "[[pool]]\nname = \"silent\"\nconnect_timeout = \"1s\"\nhealth = { kind = \"off\" }\n\
             [[pool.backend]]\nto = \"198.18.2.77:443\"\n[[route]]\nhost = \"*\"\nto = \"silent\"\n",
        )?;
        let start = std::time::Instant::now();
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        stream.write_all(&ClientHello::new("a.example").records())?;
        hello::expect_alert(&mut stream, hello::INTERNAL_ERROR)?;
        ensure!(start.elapsed().as_secs() < 8, "it took {:?}", start.elapsed());
        edged.access_log.wait_for("the failure", |record| record["close"] == "connect_failed")?;
        Ok(())
    })
}

#[test]
fn a_tcp_listener_carries_whatever_comes() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(50_001))?;
        let edged = Edged::start(
            lab,
            &format!(
                "[[listener]]\nname = \"electrum\"\nbind = [\"[::]:50001\"]\nprotocol = \"tcp\"\nto = \"{}:50001\"\n",
                lab.home_address()
            ),
        )?;
        let mut stream = lab.client.connect(lab.edge.at(50_001))?;
        crate::echo_once(&mut stream, b"{\"method\": \"server.version\"}\n")?;
        drop(stream);
        let record = edged.access_log.wait_for("it", |record| record["listener"] == "electrum")?;
        ensure!(
            record["sni"].is_null() && record["bytes_up"] == 29 && record["bytes_down"] == 29,
            "{record}"
        );
        Ok(())
    })
}
