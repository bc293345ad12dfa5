//! PostgreSQL's `CancelRequest`: it names no server, and has to reach the one whose session it is about.

use std::{
    io::{Read, Write},
    process::Command,
    time::Duration,
};

use lab::{
    Edged, Lab, Result, Signal,
    certificates::Authority,
    ensure,
    hello::ClientHello,
    peers::Postgres,
    require::{self, Need},
    service::Service,
    stream::{self, End},
    wait::{self, SOON},
};

use crate::case;

const SSL_REQUEST: &[u8] = b"\0\0\0\x08\x04\xd2\x16\x2f";

/// A `CancelRequest` with a secret of this length.
fn cancel(secret: u8) -> Vec<u8> {
    [&[0, 0, 0, 12 + secret, 0x04, 0xd2, 0x16, 0x2e, 0, 0, 0, 1][..], &vec![7; secret.into()]].concat()
}

fn listener() -> String {
    "[[listener]]\nname = \"all\"\nbind = [\"[::]:443\"]\nprotocols = [\"tls\", \"postgres\"]\n".to_owned()
}

fn route(lab: &Lab, host: &str, port: u16, more: &str) -> String {
    let to = lab.home_at(port);
    format!("[[route]]\nhost = \"{host}\"\nprotocol = [\"postgres\"]\nto = \"{to}\"\n{more}\n")
}

/// A database that agrees to TLS and echoes the hello, or keeps the cancel request that it got.
fn database(lab: &Lab, port: u16) -> Result<Service<Vec<u8>>> {
    Service::start(&lab.home, lab.home_at(port), |mut stream| {
        let mut first = [0; 8];
        stream.read_exact(&mut first)?;
        if first != SSL_REQUEST {
            let mut rest = vec![0; usize::from(first[3]) - 8];
            stream.read_exact(&mut rest)?;
            return Ok([&first[..], &rest].concat());
        }
        stream.write_all(b"S")?;
        lab::service::send_back(stream)?;
        Ok(Vec::new())
    })
}

/// A session with the database of this name that has come through.
fn session(lab: &Lab, name: &str) -> Result<std::net::TcpStream> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    stream.write_all(SSL_REQUEST)?;
    let mut yes = [0];
    stream.read_exact(&mut yes)?;
    crate::echo_once(&mut stream, &ClientHello::new(name).records())?;
    Ok(stream)
}

fn send(lab: &Lab, request: &[u8]) -> Result<std::net::SocketAddr> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    let own = stream.local_addr()?;
    stream.write_all(request)?;
    let (answer, end) = stream::read_to_end(&mut stream)?;
    ensure!(answer.is_empty() && end == End::Fin, "{end:?} after {answer:02x?}");
    Ok(own)
}

#[test]
fn a_cancel_request_reaches_the_backends_of_its_source_only() -> Result<()> {
    for tier in ["copy", "splice", "sockmap", "flow"] {
        case(|lab| {
            let (one, other) = (database(lab, 5432)?, database(lab, 5433)?);
            let routes =
                [route(lab, "one.example", 5432, ""), route(lab, "other.example", 5433, "")].concat();
            let plan = Edged::plan(lab, &[listener(), routes].concat());
            let edged = plan.daemon(&format!("datapath = \"{tier}\"")).start()?;
            let session = session(lab, "one.example")?;
            for secret in [4, 32] {
                let own = send(lab, &cancel(secret))?;
                let record = edged.access_log.wait_for_client(own)?;
                let fits = record["close"] == "finished" && record["protocol"] == "postgres";
                ensure!(fits && record["backend"] == lab.home_at(5432).to_string(), "{record}");
                ensure!(record["route"] == "one.example" && record["bytes_up"] == 12 + secret, "{record}");
            }
            ensure!(
                (one.accepted(), other.accepted()) == (3, 0),
                "{} and {}",
                one.accepted(),
                other.accepted()
            );
            ensure!(one.outcome()? == cancel(4), "the request was changed");
            drop(session);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn without_a_known_session_all_that_may_be_meant_are_told() -> Result<()> {
    case(|lab| {
        let (one, other) = (database(lab, 5432)?, database(lab, 5433)?);
        let (hidden, denied) = (database(lab, 5434)?, database(lab, 5435)?);
        let routes = [
            route(lab, "one.example", 5432, ""),
            route(lab, "other.example", 5433, ""),
            route(lab, "hidden.example", 5434, "from = [\"192.0.2.1\"]"),
            route(lab, "denied.example", 5435, "allow = [\"192.0.2.1\"]"),
        ];
        let _edged = Edged::start(lab, &[listener(), routes.concat()].concat())?;
        send(lab, &cancel(4))?;
        ensure!(one.outcome()? == cancel(4) && other.outcome()? == cancel(4), "a request was changed");
        ensure!(
            hidden.accepted() + denied.accepted() == 0,
            "a database that the client may not use was told"
        );
        // A message with bytes behind its stated length is no CancelRequest.
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        stream.write_all(&[&cancel(4)[..], b"x"].concat())?;
        stream::read_to_end(&mut stream)?;
        ensure!(one.accepted() == 1, "bytes behind a request were passed on");
        Ok(())
    })
}

#[test]
fn ctrl_c_in_a_real_psql_ends_the_query() -> Result<()> {
    if !require::all(&[Need::Program("psql", "postgresql")]) {
        return Ok(());
    }
    case(|lab| {
        let authority = Authority::new(lab)?;
        let certificate = authority.issue(lab, &["db.example"])?;
        let _postgres = Postgres::start(&lab.home, lab.home_at(5432), &certificate)?;
        let routes = [route(lab, "db.example", 5432, ""), route(lab, "other.example", 5433, "")].concat();
        let _edged = Edged::start(lab, &[listener(), routes].concat())?;
        let mut psql = Command::new("psql");
        psql.args(["-X", "-c", "select 'begun'", "-c", "select pg_sleep(60)"]).arg(format!(
            "host=db.example hostaddr={} port=443 user=lab dbname=postgres sslmode=require",
            lab.edge.v4
        ));
        psql.env("HOME", lab.directory());
        let mut psql = lab.client.spawn("psql", psql)?;
        // Before its first query psql has no handler for the signal.
        wait::until_true("the session", SOON, || psql.log().contains("begun"))?;
        wait::until_ok("psql to be cancelled", SOON, || {
            psql.signal(Signal::INT)?;
            wait::until_true("the complaint", Duration::from_secs(1), || {
                psql.log().contains("canceling statement due to user request")
            })
        })?;
        let ended = psql.wait(SOON)?;
        ensure!(!ended.success(), "{ended:?}");
        Ok(())
    })
}
