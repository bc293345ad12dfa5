//! More than TLS on one port: the first bytes tell, and a client that waits for its server is served too.

use std::{io::Write, process::Command, time::Instant};

use lab::{
    Edged, Lab, Result,
    certificates::Authority,
    ensure,
    hello::{ClientHello, UNRECOGNIZED_NAME, expect_alert},
    peers::{Postgres, Sshd},
    require::{self, Need},
    service,
    stream::{self, End},
};

use crate::{answer_to, case, greeting};

/// The first packet of a real OpenVPN client.
const OPENVPN: &[u8] = b"\0\x0e\x38\x1e\x5c\xf1\xf5\xc9\x35\x7c\xcd\0\0\0\0\0";

fn listener(protocols: &str) -> String {
    format!("[[listener]]\nname = \"all\"\nbind = [\"[::]:443\"]\nprotocols = {protocols}\n")
}

fn web(lab: &Lab) -> String {
    format!("[[route]]\nhost = \"*\"\nto = \"{}\"\n", lab.home_at(1001))
}

#[test]
fn the_first_bytes_tell_and_silence_too() -> Result<()> {
    case(|lab| {
        let _services = [(1001, "web"), (1002, "ssh"), (1003, "openvpn")]
            .map(|(port, name)| service::named(&lab.home, lab.home_at(port), name));
        let edged = Edged::start(
            lab,
            &format!(
                "{}silence_timeout = \"3s\"\n{}\
                 [[route]]\nprotocol = [\"ssh\"]\nto = \"{}\"\n[[route]]\nprotocol = [\"openvpn\"]\nto = \"{}\"\n",
                listener(r#"["tls", "http", "ssh", "openvpn"]"#),
                web(lab),
                lab.home_at(1002),
                lab.home_at(1003)
            ),
        )?;
        let edge = lab.edge.at(443);
        for _ in 0..3 {
            ensure!(greeting(lab, "a.example")? == "web");
            for (first, reached) in [
                (&b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"[..], "web"),
                (b"SSH-2.0-OpenSSH_9.2p1\r\n", "ssh"),
                (OPENVPN, "openvpn"),
            ] {
                let got = answer_to(lab, edge, first)?;
                ensure!(got == reached, "{} reached {got:?}", first.escape_ascii());
            }
        }
        let started = Instant::now();
        let got = answer_to(lab, edge, b"")?;
        ensure!(got == "ssh" && started.elapsed().as_secs() >= 3, "{got:?} after {:?}", started.elapsed());
        for protocol in ["tls", "http", "ssh", "openvpn"] {
            let record = edged.access_log.wait_for(protocol, |record| record["protocol"] == protocol)?;
            ensure!(record["close"] == "finished" && record["route"] == "*", "{record}");
        }
        let test = edged.edgectl().json(&["routes", "test", "-", "--protocol", "ssh"])?;
        ensure!(test["route"]["to"] == lab.home_at(1002).to_string(), "{test}");
        Ok(())
    })
}

#[test]
fn what_nothing_else_recognises_has_a_route_too() -> Result<()> {
    case(|lab| {
        let _services = [(1001, "web"), (1002, "ssh"), (1003, "rest")]
            .map(|(port, name)| service::named(&lab.home, lab.home_at(port), name));
        let routes = format!(
            "{}[[route]]\nprotocol = [\"ssh\"]\nto = \"{}\"\n\
             [[route]]\nprotocol = [\"any\"]\nlistener = [\"all\"]\nto = \"{}\"\n\
             [[listener]]\nname = \"strict\"\nbind = [\"[::]:8443\"]\nprotocols = [\"tls\", \"ssh\"]\n",
            web(lab),
            lab.home_at(1002),
            lab.home_at(1003)
        );
        let edged = Edged::start(lab, &format!("{}{routes}", listener(r#"["tls", "ssh"]"#)))?;
        ensure!(greeting(lab, "a.example")? == "web");
        for (first, reached) in [
            (&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], "ssh"),
            (b"EHLO mail.example\r\n", "rest"),
            (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "rest"),
            (b"\x15\x03\x01\0\x02\x01\0", "rest"),
            (OPENVPN, "rest"),
        ] {
            let got = answer_to(lab, lab.edge.at(443), first)?;
            ensure!(got == reached, "{} reached {got:?}", first.escape_ascii());
        }
        let record = edged.access_log.wait_for("the rest", |record| record["protocol"] == "any")?;
        ensure!(
            record["close"] == "finished" && record["backend"] == lab.home_at(1003).to_string(),
            "{record}"
        );
        let strict = answer_to(lab, lab.edge.at(8443), b"EHLO mail.example\r\n")?;
        ensure!(strict.is_empty(), "{strict}");
        let test = edged.edgectl().json(&["routes", "test", "-", "--protocol", "any"])?;
        ensure!(test["route"]["to"] == lab.home_at(1003).to_string(), "{test}");
        Ok(())
    })
}

#[test]
fn what_no_route_names_is_refused_in_its_own_words() -> Result<()> {
    case(|lab| {
        let service = service::named(&lab.home, lab.home_at(1001), "web")?;
        let route = format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_at(1001));
        let all = format!(
            "{route}[[route]]\nhost = \"*\"\nfrom = [\"192.0.2.1\"]\nto = \"{}\"\n",
            lab.home_at(1001)
        );
        let edged =
            Edged::start(lab, &format!("{}{all}", listener(r#"["tls", "http", "ssh", "postgres"]"#)))?;
        let edge = lab.edge.at(443);
        let mut tls = lab.client.connect(edge)?;
        tls.write_all(&ClientHello::new("b.example").records())?;
        expect_alert(&mut tls, UNRECOGNIZED_NAME)?;
        let http = answer_to(lab, edge, b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n")?;
        ensure!(http.starts_with("HTTP/1.1 404 "), "{http}");
        let malformed = answer_to(lab, edge, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")?;
        ensure!(malformed.starts_with("HTTP/1.1 400 "), "{malformed}");
        let session = answer_to(lab, edge, b"\0\0\0\x0f\0\x03\0\0user\0a\0\0")?;
        ensure!(session.starts_with('E') && session.contains("sslmode=require"), "{session:?}");
        for (bytes, close) in [
            // A route for everything is for what web servers speak.
            (&b"SSH-2.0-x\r\n"[..], "no_route"),
            (b"EHLO mail.example\r\n", "unknown_protocol"),
            (b"\0\0\0\x08\x04\xd2\x16\x2f\x16", "malformed"),
        ] {
            let mut stream = lab.client.connect(edge)?;
            stream.write_all(bytes)?;
            let own = stream.local_addr()?.to_string();
            let record = edged.access_log.wait_for(close, |record| record["client"] == own)?;
            ensure!(record["close"] == close, "{record}");
            let (answer, end) = stream::read_to_end(&mut stream)?;
            ensure!(
                close == "malformed" || (answer.is_empty() && end == End::Reset),
                "{close}: {answer:?} {end:?}"
            );
        }
        ensure!(service.accepted() == 0, "a refused client reached the backend");
        let _ssh = service::named(&lab.home, lab.home_at(1002), "ssh")?;
        let to = lab.home_at(1002).to_string();
        edged.edgectl().text(&["routes", "add", "*", &to, "--protocol", "ssh"])?;
        ensure!(answer_to(lab, edge, b"SSH-2.0-x\r\n")? == "ssh");
        Ok(())
    })
}

#[test]
fn a_real_ssh_session_shares_the_port() -> Result<()> {
    if !require::all(&[Need::Program("sshd", "openssh-server"), Need::Program("ssh", "openssh-client")]) {
        return Ok(());
    }
    case(|lab| {
        let sshd = Sshd::start(&lab.home, lab.home_at(22))?;
        let _web = service::named(&lab.home, lab.home_at(1001), "web")?;
        let edged = Edged::start(
            lab,
            &format!(
                "{}{}[[route]]\nprotocol = [\"ssh\"]\nto = \"{}\"\n",
                listener(r#"["tls", "ssh"]"#),
                web(lab),
                lab.home_at(22)
            ),
        )?;
        let said = sshd.run_from(&lab.client, lab.edge.at(443), "echo through the edge")?;
        ensure!(said.trim() == "through the edge", "{said:?}");
        ensure!(greeting(lab, "a.example")? == "web");
        edged
            .access_log
            .wait_for("it", |record| record["protocol"] == "ssh" && record["close"] == "finished")?;
        Ok(())
    })
}

#[test]
fn a_real_postgresql_is_found_by_its_name() -> Result<()> {
    if !require::all(&[Need::Program("psql", "postgresql")]) {
        return Ok(());
    }
    case(|lab| {
        let authority = Authority::new(lab)?;
        let certificate = authority.issue(lab, &["db.example"])?;
        let _postgres = Postgres::start(&lab.home, lab.home_at(5432), &certificate)?;
        let _web = service::named(&lab.home, lab.home_at(1001), "web")?;
        let edged = Edged::start(
            lab,
            &format!(
                "{}{}[[route]]\nhost = \"db.example\"\nprotocol = [\"postgres\"]\nto = \"{}\"\n",
                listener(r#"["tls", "postgres"]"#),
                web(lab),
                lab.home_at(5432)
            ),
        )?;
        let psql = |options: &str| {
            let mut psql = Command::new("psql");
            psql.args(["-X", "-A", "-t", "-c", "select 6 * 7"]).arg(format!(
                "host=db.example hostaddr={} port=443 user=lab dbname=postgres {options}",
                lab.edge.v4
            ));
            psql.env("HOME", lab.directory());
            lab.client.output(psql)
        };
        let output = psql(&format!("sslmode=verify-full sslrootcert={}", authority.file.display()))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.stdout == b"42\n", "{complaint}");
        let record = edged.access_log.wait_for_host("db.example")?;
        ensure!(record["protocol"] == "postgres" && record["route"] == "db.example", "{record}");
        ensure!(record["backend"] == lab.home_at(5432).to_string(), "{record}");

        let plain = psql("sslmode=disable")?;
        let complaint = String::from_utf8_lossy(&plain.stderr);
        ensure!(!plain.status.success() && complaint.contains("reached by TLS only"), "{complaint}");
        ensure!(greeting(lab, "a.example")? == "web");
        Ok(())
    })
}
