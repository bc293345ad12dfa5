//! Limits hold: connections, connections of one source, sources that are kept out, and file descriptors.

use std::{net::IpAddr, time::Duration};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    service, stream,
    topology::CLIENT_SECOND,
    wait::{self, SOON},
};

use crate::{case, echo_once};

const NAME: &str = "limit.example";

fn body(lab: &Lab, extra: &str) -> String {
    format!("{extra}\n[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address())
}

fn hello() -> Vec<u8> {
    ClientHello::new(NAME).records()
}

/// A connection through which an echo has passed.
fn echoed(lab: &Lab) -> Result<std::net::TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    echo_once(&mut stream, &hello())?;
    Ok(stream)
}

#[test]
fn no_more_connections_than_allowed_at_once() -> Result<()> {
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let _edged = Edged::start(lab, &body(lab, "[limits]\nconnections = 3\n"))?;
        let mut live = (0..3).map(|_| echoed(lab)).collect::<Result<Vec<_>>>()?;
        // One more waits in the kernel's queue or is closed; it must not be served while the three are.
        let mut more = lab.client.connect(lab.edge.at(443))?;
        more.set_read_timeout(Some(Duration::from_millis(500)))?;
        ensure!(echo_once(&mut more, &hello()).is_err(), "a fourth connection was served");
        ensure!(service.accepted() == 3);
        drop(more);
        live.pop();
        wait::until_ok("a place to become free", SOON, || {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            echo_once(&mut stream, &hello())
        })?;
        for stream in &mut live {
            echo_once(stream, b"still there")?;
        }
        Ok(())
    })
}

#[test]
fn no_more_connections_of_one_source_than_allowed() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, &body(lab, "[limits]\nconnections_per_source = 2\n"))?;
        let mut live = vec![echoed(lab)?, echoed(lab)?];
        // The reset may come as early as at the end of connecting.
        ensure!(echoed(lab).is_err(), "a third connection of the source was served");
        edged.access_log.wait_for("the refusal", |record| record["close"] == "source_limit")?;
        for other in [IpAddr::from(CLIENT_SECOND), lab.client.v6.into()] {
            let edge = if other.is_ipv4() { lab.edge.at(443) } else { lab.edge.at_v6(443) };
            let mut stream = lab.client.connect_from(other, edge)?;
            echo_once(&mut stream, &hello())?;
        }
        live.pop();
        wait::until_ok("a place to become free", SOON, || echoed(lab).map(drop))
    })
}

#[test]
fn sources_are_kept_out_by_deny_and_allow() -> Result<()> {
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let listener = |lists: &str| {
            body(
                lab,
                &format!("[[listener]]\nname = \"l\"\nbind = [\"[::]:443\"]\nprotocol = \"tls\"\n{lists}\n"),
            )
        };
        let first = lab.client.v4;
        let tries = |sources: &[(IpAddr, bool)]| -> Result<()> {
            for &(source, admitted) in sources {
                // The reset may come as early as at the end of connecting.
                let stream = lab.client.connect_from(source, lab.edge.at(443));
                let echoed = stream.and_then(|mut stream| echo_once(&mut stream, &hello()));
                ensure!(echoed.is_ok() == admitted, "from {source}: {echoed:?}");
            }
            Ok(())
        };
        let edged = Edged::start(lab, &listener(&format!("deny = [\"{first}\"]")))?;
        tries(&[(first.into(), false), (CLIENT_SECOND.into(), true)])?;
        edged.access_log.wait_for("the refusal", |record| record["close"] == "denied")?;
        drop(edged);
        let edged = Edged::start(lab, &listener(&format!("allow = [\"{first}/32\"]")))?;
        tries(&[(first.into(), true), (CLIENT_SECOND.into(), false)])?;
        drop(edged);
        let both = format!("allow = [\"198.18.1.0/24\"]\ndeny = [\"{first}\"]");
        let _edged = Edged::start(lab, &listener(&both))?;
        tries(&[(first.into(), false), (CLIENT_SECOND.into(), true)])?;
        ensure!(service.accepted() == 3, "a refused client reached the backend");
        Ok(())
    })
}

#[test]
fn out_of_file_descriptors_is_a_pause() -> Result<()> {
    const DESCRIPTORS: &str = "64";
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let limit = format!("--nofile={DESCRIPTORS}");
        // More than the daemon would allow itself by its limit: the descriptors are what runs out.
        let body = body(lab, "[limits]\nconnections = 1000\nhello_timeout = \"60s\"\n");
        let mut edged = Edged::plan(lab, &body).by(&["prlimit", &limit]).start()?;
        let mut streams =
            (0..100).map(|_| lab.client.connect(lab.edge.at(443))).collect::<Result<Vec<_>>>()?;
        for stream in &mut streams {
            std::io::Write::write_all(stream, &hello())?;
        }
        let most: usize = DESCRIPTORS.parse()?;
        wait::until_true("the descriptors to run out", SOON, || {
            edged.process().descriptors().is_ok_and(|open| open + 2 >= most)
        })?;
        // Paused, not spinning: the processor is not used, once those that got in are served.
        wait::until_ok("the daemon to rest", SOON, || {
            let before = edged.process().cpu_time()?;
            std::thread::sleep(Duration::from_secs(1));
            let used = edged.process().cpu_time()?.saturating_sub(before);
            ensure!(used < Duration::from_millis(300), "{used:?} of processor time in a second without work");
            Ok(())
        })?;
        ensure!(edged.process().ended()?.is_none(), "the daemon is gone");
        drop(streams);
        wait::until_ok("the daemon to accept again", SOON, || {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            echo_once(&mut stream, &hello())
        })
    })
}

#[test]
fn refused_clients_do_not_pile_up() -> Result<()> {
    case(|lab| {
        let mut edged = Edged::start(lab, &body(lab, ""))?;
        let refused = || -> Result<()> {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            std::io::Write::write_all(&mut stream, &ClientHello::new("unknown.example").records())?;
            stream::read_to_end(&mut stream).map(drop)
        };
        // Descriptors that the first client causes to be opened are no leak.
        refused()?;
        let before = edged.process().descriptors()?;
        (0..300).try_for_each(|_| refused())?;
        wait::until_true("the descriptors to be given back", SOON, || {
            edged.process().descriptors().is_ok_and(|open| open <= before + 2)
        })
    })
}
