//! How connections end: RST goes on as RST, idle ones are closed, the operator may close any.

use std::io::Write;

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    service::Service,
    stream::{self, End},
};

use crate::{case, expect};

const NAME: &str = "end.example";

fn edged(lab: &Lab, extra: &str) -> Result<Edged> {
    Edged::start(lab, &format!("{extra}\n[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address()))
}

#[test]
fn a_reset_by_the_client_reaches_the_backend_as_reset() -> Result<()> {
    case(|lab| {
        let service = Service::start(&lab.home, lab.home_at(443), |mut stream| {
            stream.write_all(b"ready")?;
            Ok(stream::read_to_end(&mut stream)?.1)
        })?;
        let edged = edged(lab, "")?;
        let stream = crate::greeted(lab, NAME, "ready")?;
        stream::reset(stream)?;
        ensure!(service.outcome()? == End::Reset);
        let record = edged.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "client_reset", "{record}");
        Ok(())
    })
}

#[test]
fn a_reset_by_the_backend_reaches_the_client_as_reset() -> Result<()> {
    case(|lab| {
        let hello = ClientHello::new(NAME).records();
        let length = hello.len();
        let _service = Service::start(&lab.home, lab.home_at(443), move |mut stream| {
            std::io::Read::read_exact(&mut stream, &mut vec![0; length])?;
            stream.write_all(b"ready")?;
            expect(&mut stream, "go")?;
            stream::reset(stream)
        })?;
        let edged = edged(lab, "")?;
        let mut stream = crate::greeted(lab, NAME, "ready")?;
        stream.write_all(b"go")?;
        let (rest, end) = stream::read_to_end(&mut stream)?;
        ensure!(rest.is_empty() && end == End::Reset, "{end:?} after {rest:?}");
        let record = edged.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "backend_reset", "{record}");
        Ok(())
    })
}

#[test]
fn a_reset_in_the_midst_of_bulk_ends_both_sides() -> Result<()> {
    case(|lab| {
        let service = Service::start(&lab.home, lab.home_at(443), |mut stream| {
            let piece = vec![7; 64 * 1024];
            let mut written = 0_u64;
            loop {
                match stream.write_all(&piece) {
                    Ok(()) => written += piece.len() as u64,
                    Err(error) => return Ok((written, error.kind())),
                }
            }
        })?;
        let edged = edged(lab, "")?;
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        stream.write_all(&ClientHello::new(NAME).records())?;
        std::io::Read::read_exact(&mut stream, &mut vec![0; 8 << 20])?;
        stream::reset(stream)?;
        let (written, kind) = service.outcome()?;
        let ended = matches!(kind, std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe);
        ensure!(ended, "{kind:?} after {written} bytes");
        let record = edged.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "client_reset", "{record}");
        Ok(())
    })
}

#[test]
fn an_idle_connection_is_closed() -> Result<()> {
    case(|lab| {
        let service = lab::service::named(&lab.home, lab.home_at(443), "ready")?;
        let edged = edged(lab, "[limits]\nidle_timeout = \"2s\"\n")?;
        let mut stream = crate::greeted(lab, NAME, "ready")?;
        // The service has sent FIN; nothing more moves until the edge loses patience.
        stream::read_to_end(&mut stream)?;
        service.outcome()?;
        let record = edged.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "idle_timeout", "{record}");
        let duration = record["duration_ms"].as_f64().unwrap_or_default();
        ensure!((1900.0..20_000.0).contains(&duration), "{record}");
        Ok(())
    })
}

#[test]
fn a_busy_connection_outlives_the_idle_timeout() -> Result<()> {
    case(|lab| {
        let _service = lab::service::echo(&lab.home, lab.home_at(443))?;
        // A machine may stand still for longer than a second, but hardly for three.
        let edged = edged(lab, "[limits]\nidle_timeout = \"3s\"\n")?;
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        crate::echo_once(&mut stream, &ClientHello::new(NAME).records())?;
        let start = std::time::Instant::now();
        // The pace of the traffic is what the case is about.
        while start.elapsed().as_secs() < 7 {
            std::thread::sleep(std::time::Duration::from_millis(200));
            crate::echo_once(&mut stream, b"tick")?;
        }
        drop(stream);
        let record = edged.access_log.wait_for_host(NAME)?;
        ensure!(record["close"] == "finished", "{record}");
        Ok(())
    })
}
