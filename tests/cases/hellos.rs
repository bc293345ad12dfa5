//! The first bytes of a client, in every cut and size that is allowed, and beyond.

use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    service::{self, Service},
    stream::{self, End},
};

use crate::{answer_to, case, expect};

const NAME: &str = "cut.example";

fn edged(lab: &Lab, limits: &str) -> Result<Edged> {
    let body = format!("[limits]\n{limits}\n[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address());
    Edged::start(lab, &body)
}

/// A service that wants exactly these bytes first and then answers `ok`.
fn wants(lab: &Lab, port: u16, bytes: Vec<u8>) -> Result<Service<()>> {
    Service::start(&lab.home, lab.home_at(port), move |mut stream| {
        let mut got = vec![0; bytes.len()];
        stream.read_exact(&mut got)?;
        ensure!(got == bytes, "the bytes were changed");
        Ok(stream.write_all(b"ok")?)
    })
}

#[test]
fn every_cut_of_a_hello_arrives_unchanged() -> Result<()> {
    case(|lab| {
        let edged = edged(lab, "")?;
        let plain = ClientHello::new(NAME);
        let hybrid = ClientHello::new(NAME).post_quantum();
        for (what, bytes) in [
            ("one record", plain.records()),
            ("post-quantum", hybrid.records()),
            ("records of one byte", hybrid.records_of(1)),
            ("records of seven bytes", hybrid.records_of(7)),
            ("60,000 bytes in five records", ClientHello::new(NAME).padding(60_000).records()),
            ("60,000 bytes in records of 100", ClientHello::new(NAME).padding(60_000).records_of(100)),
            ("application data right behind", [plain.records(), vec![23, 3, 3, 0, 1, 0]].concat()),
            ("change cipher spec right behind", [plain.records(), vec![20, 3, 3, 0, 1, 1]].concat()),
        ] {
            let service = wants(lab, 443, bytes.clone())?;
            let answer = answer_to(lab, lab.edge.at(443), &bytes)?;
            ensure!(answer == "ok", "{what}: {answer:?}");
            service.outcome()?;
        }
        drop(edged);
        Ok(())
    })
}

#[test]
fn a_hello_may_come_byte_by_byte() -> Result<()> {
    case(|lab| {
        let _edged = edged(lab, "hello_timeout = \"60s\"")?;
        for bytes in [ClientHello::new(NAME).post_quantum().records(), ClientHello::new(NAME).records_of(1)] {
            let service = wants(lab, 443, bytes.clone())?;
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            // Without delay, each write is a segment of its own.
            for byte in &bytes {
                stream.write_all(&[*byte])?;
                thread::yield_now();
            }
            expect(&mut stream, "ok")?;
            service.outcome()?;
        }
        let request = b"GET / HTTP/1.1\r\nHost: cut.example\r\nX-Filler: 0123456789\r\n\r\n";
        let service = wants(lab, 80, request.to_vec())?;
        let mut stream = lab.client.connect(lab.edge.at(80))?;
        for byte in request {
            stream.write_all(&[*byte])?;
        }
        expect(&mut stream, "ok")?;
        service.outcome()?;
        Ok(())
    })
}

#[test]
fn a_head_of_sixty_four_kilobytes_is_taken_and_a_larger_one_refused() -> Result<()> {
    case(|lab| {
        let _edged = edged(lab, "")?;
        let head = |length: usize| {
            let start = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nX-Filler: ");
            let filler = "x".repeat(length - start.len() - 4);
            format!("{start}{filler}\r\n\r\n").into_bytes()
        };
        let largest = head(65_536);
        let service = wants(lab, 80, largest.clone())?;
        ensure!(answer_to(lab, lab.edge.at(80), &largest)? == "ok");
        service.outcome()?;
        drop(service);
        let service = service::named(&lab.home, lab.home_at(80), "reached")?;
        let answer = answer_to(lab, lab.edge.at(80), &head(70_000))?;
        ensure!(answer.starts_with("HTTP/1.1 4"), "{answer:?}");
        ensure!(service.accepted() == 0, "a refused client reached the backend");
        Ok(())
    })
}

#[test]
fn a_hello_above_the_limit_is_refused() -> Result<()> {
    case(|lab| {
        let service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let edged = edged(lab, "hello_bytes = 4096")?;
        ensure!(crate::greeting(lab, NAME)? == "reached");
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        stream.write_all(&ClientHello::new(NAME).padding(8000).records())?;
        let (answer, end) = stream::read_to_end(&mut stream)?;
        ensure!(answer.first() == Some(&21) && end == End::Fin, "{end:?} after {answer:02x?}");
        ensure!(service.accepted() == 1, "a refused client reached the backend");
        edged.access_log.wait_for("the refusal", |record| record["close"] == "hello_too_large")?;
        Ok(())
    })
}

#[test]
fn a_hello_without_end_stops_at_the_limit() -> Result<()> {
    case(|lab| {
        let edged = edged(lab, "hello_bytes = 16384\nhello_timeout = \"60s\"")?;
        let resident = edged.resident()?;
        let start = Instant::now();
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        // A handshake message that claims 16 MiB, in records of one byte.
        stream.write_all(&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff])?;
        let record = [22, 3, 1, 0, 1, 0].repeat(1000);
        let mut sent = 0_usize;
        while stream.write_all(&record).is_ok() && sent < 100_000_000 {
            sent += record.len();
        }
        ensure!(sent < 100_000_000, "{sent} bytes of a hello were taken");
        ensure!(start.elapsed() < Duration::from_mins(1), "only the timeout ended it");
        let grown = edged.resident()?.saturating_sub(resident);
        ensure!(grown < 8 << 20, "the daemon grew by {grown} bytes");
        edged.access_log.wait_for("the refusal", |record| record["close"] == "hello_too_large")?;
        Ok(())
    })
}

#[test]
fn a_slow_hello_ends_at_its_time() -> Result<()> {
    case(|lab| {
        let service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let edged = edged(lab, "hello_timeout = \"1s\"")?;
        let hello = ClientHello::new(NAME).records();
        for (port, sent) in [(443, &hello[..0]), (443, &hello[..40]), (80, b"GET / HTTP/1.1\r\nHo")] {
            let start = Instant::now();
            let mut stream = lab.client.connect(lab.edge.at(port))?;
            stream.write_all(sent)?;
            let (answer, _) = stream::read_to_end(&mut stream)?;
            let took = start.elapsed();
            ensure!(answer.is_empty(), "{answer:02x?}");
            ensure!(took > Duration::from_millis(900) && took < Duration::from_secs(8), "it took {took:?}");
        }
        // One byte now and then does not prolong it: the clock runs from accept.
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        let start = Instant::now();
        for byte in &hello {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        ensure!(start.elapsed() < Duration::from_secs(8), "dripping went on for {:?}", start.elapsed());
        // The one that sent nothing is counted, and has no line.
        edged.access_log.wait_for_count(3, "the timeouts", |record| record["close"] == "hello_timeout")?;
        edged.edgectl().until(&["status"], |status| {
            ensure!(status["rejected"]["hello_timeout"] == 4, "{}", status["rejected"]);
            Ok(())
        })?;
        ensure!(service.accepted() == 0, "a refused client reached the backend");
        Ok(())
    })
}

#[test]
fn a_client_that_leaves_in_its_hello_is_forgotten() -> Result<()> {
    case(|lab| {
        let edged = edged(lab, "")?;
        let hello = ClientHello::new(NAME).records();
        let mut closed = lab.client.connect(lab.edge.at(443))?;
        closed.write_all(&hello[..50])?;
        drop(closed);
        let mut reset = lab.client.connect(lab.edge.at(443))?;
        reset.write_all(&hello[..50])?;
        stream::reset(reset)?;
        edged.access_log.wait_for_count(2, "both", |record| record["close"] == "client_gone")?;
        Ok(())
    })
}

#[test]
fn tls_that_is_broken_is_answered_by_an_alert() -> Result<()> {
    case(|lab| {
        let service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let body = format!("[[route]]\nhost = \"*\"\nto = \"{}\"\n", lab.home_address());
        let _edged = Edged::start(lab, &body)?;
        let mut cut = ClientHello::new(NAME).message();
        cut.truncate(60);
        cut[3] = 56;
        let cut = [&[22, 3, 1, 0, 60][..], &cut].concat();
        for (what, bytes) in
            [("a list that is cut", cut), ("a message that is no hello", vec![22, 3, 1, 0, 4, 2, 0, 0, 0])]
        {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            stream.write_all(&bytes)?;
            let (answer, end) = stream::read_to_end(&mut stream)?;
            let alert = matches!(answer.as_slice(), [21, 3, _, 0, 2, 2, _]);
            ensure!(alert && end == End::Fin, "{what}: {end:?} after {answer:02x?}");
        }
        ensure!(service.accepted() == 0, "a refused client reached the backend");
        // No name at all, or an address, goes by `*`.
        for hello in [ClientHello::without_name(), ClientHello::new("192.0.2.1")] {
            ensure!(answer_to(lab, lab.edge.at(443), &hello.records())? == "reached");
        }
        Ok(())
    })
}
