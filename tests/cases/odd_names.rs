//! Clients whose names, lists and formats are none that a browser sends: what can be routed reaches `*`, and the log says
//! what was asked for.

use std::io::{Read, Write};

use lab::{
    Edged, Lab, Result, ensure,
    hello::{self, ClientHello},
    service, stream,
};

use crate::{answer_to, case, echo_once};

/// An SNI that can be no host name, and how the log has it.
fn odd_names() -> Vec<(String, String)> {
    let as_it_is = [
        "",
        ".",
        "a.example..",
        "a..example",
        "a.example:443",
        "[::1]",
        "192.0.2.1",
        "2001:db8::1",
        "a b",
        "a/b",
    ];
    let mut names: Vec<_> = as_it_is.map(|name| (name.to_owned(), name.to_owned())).into();
    for (name, logged) in
        [("b\u{fc}cher.example", r"b\xc3\xbccher.example"), ("a\0.example", r"a\x00.example")]
    {
        names.push((name.to_owned(), logged.to_owned()));
    }
    names.push(("a".repeat(64), "a".repeat(64)));
    names.push(("a.".repeat(500), format!("{}...", "a.".repeat(64))));
    names
}

fn to_home(lab: &Lab, tier: &str) -> Result<Edged> {
    let routes = format!(
        "[[route]]\nhost = \"*\"\nto = \"{}\"\n[[route]]\nhost = \"a.example\"\nto = \"192.0.2.99\"\n",
        lab.home_address()
    );
    Edged::plan(lab, &routes).daemon(&format!("datapath = \"{tier}\"")).start()
}

fn reach_the_wildcard_by(tier: &str) -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let edged = to_home(lab, tier)?;
        let mut by_tier = 0;
        for (name, logged) in odd_names() {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            let own = stream.local_addr()?;
            let hello = ClientHello::new(&name).records();
            echo_once(&mut stream, &hello).map_err(|error| error.context(format!("{name:?}")))?;
            if tier == "flow" {
                edged.edgectl().until(&["connections", "list"], |list| {
                    let mut all = list.as_array().into_iter().flatten();
                    let is_flow = |one: &serde_json::Value| {
                        one["client"] == own.to_string() && one["datapath"] == "flow"
                    };
                    ensure!(all.any(is_flow), "{list}");
                    Ok(())
                })?;
            }
            drop(stream);
            let record = edged.access_log.wait_for_client(own)?;
            ensure!(record["sni_raw"] == *logged && record["sni"].is_null(), "{name:?}: {record}");
            ensure!(record["route"] == "*" && record["close"] != "malformed", "{name:?}: {record}");
            by_tier += usize::from(record["datapath"] == tier);
        }
        ensure!(by_tier > 0 || tier == "splice", "none was carried by {tier}");
        // A name that is one has no such field, nor has a client without a name.
        for hello in [ClientHello::new("b.example"), ClientHello::without_name()] {
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            let own = stream.local_addr()?;
            echo_once(&mut stream, &hello.records())?;
            drop(stream);
            let record = edged.access_log.wait_for_client(own)?;
            ensure!(record.get("sni_raw").is_none(), "{record}");
        }
        Ok(())
    })
}

#[test]
fn names_that_are_none_reach_the_wildcard_by_copy() -> Result<()> {
    reach_the_wildcard_by("copy")
}

#[test]
fn names_that_are_none_reach_the_wildcard_by_splice() -> Result<()> {
    reach_the_wildcard_by("splice")
}

#[test]
fn names_that_are_none_reach_the_wildcard_by_sockmap() -> Result<()> {
    reach_the_wildcard_by("sockmap")
}

#[test]
fn names_that_are_none_reach_the_wildcard_by_flow() -> Result<()> {
    reach_the_wildcard_by("flow")
}

#[test]
fn long_lists_and_many_fields_are_routed_and_too_many_are_a_431() -> Result<()> {
    case(|lab| {
        let _tls = service::echo(&lab.home, lab.home_at(443))?;
        let plain = service::named(&lab.home, lab.home_at(80), "http")?;
        let edged = Edged::start(
            lab,
            &format!(
                "[[route]]\nhost = \"a.example\"\nalpn = [\"last\"]\nto = \"{}\"\n\
                      [[route]]\nhost = \"b.example\"\nto = \"{}\"\n",
                lab.home_address(),
                lab.home_address()
            ),
        )?;
        // The route is for the last of them.
        let mut protocols: Vec<String> = (0..2000).map(|number| format!("p{number}")).collect();
        protocols.push("last".to_owned());
        let protocols: Vec<&str> = protocols.iter().map(String::as_str).collect();
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        echo_once(&mut stream, &ClientHello::new("a.example").alpn(&protocols).records())?;
        drop(stream);
        let record = edged.access_log.wait_for_host("a.example")?;
        let logged = record["alpn"].as_array().map_or(0, Vec::len);
        ensure!(logged == 64, "{logged} protocols are in the log");

        let head = |fields: usize| {
            format!("GET / HTTP/1.1\r\nHost: b.example\r\n{}\r\n", "X-Field: value\r\n".repeat(fields))
        };
        for fields in [200, 1000] {
            ensure!(answer_to(lab, lab.edge.at(80), head(fields).as_bytes())? == "http", "{fields} fields");
        }
        let accepted = plain.accepted();
        for head in
            [head(3000), format!("GET / HTTP/1.1\r\nHost: b.example\r\nX: {}\r\n\r\n", "x".repeat(66_000))]
        {
            let answer = answer_to(lab, lab.edge.at(80), head.as_bytes())?;
            ensure!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
        }
        ensure!(plain.accepted() == accepted, "a refused client reached the backend");
        edged.access_log.wait_for("the refusal", |record| record["close"] == "too_many_fields")?;
        Ok(())
    })
}

#[test]
fn hellos_in_the_format_of_ssl_2_reach_the_wildcard() -> Result<()> {
    case(|lab| {
        let _echo = service::echo(&lab.home, lab.home_at(443))?;
        let edged = to_home(lab, "copy")?;
        for version in [[3, 0], [3, 1], [3, 3], [0, 2]] {
            let fixed = [&[0x80, 46, 1][..], &version, &[0, 21, 0, 0, 0, 16]].concat();
            let hello = [&fixed[..], &[5; 21], &[7; 16]].concat();
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            // In two pieces, the first of which is all of the header.
            stream.write_all(&hello[..7])?;
            stream.write_all(&hello[7..])?;
            let mut back = vec![0; hello.len()];
            stream.read_exact(&mut back)?;
            ensure!(back == hello, "the hello was changed");
        }
        edged.edgectl().text(&["routes", "list"])?;
        Ok(())
    })
}

#[test]
fn alerts_have_a_version_that_clients_take() -> Result<()> {
    case(|lab| {
        let _edged = Edged::start(
            lab,
            &format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_address()),
        )?;
        // No route; then a hello that is cut: a list that reaches out of it.
        let whole = ClientHello::new("b.example").records();
        let mut stream = lab.client.connect(lab.edge.at(443))?;
        stream.write_all(&whole)?;
        hello::expect_alert(&mut stream, hello::UNRECOGNIZED_NAME)?;
        for (minor, told) in [(0, 3), (1, 1), (2, 2), (3, 3), (4, 3)] {
            let mut cut = ClientHello::new("a.example").message();
            cut.truncate(60);
            cut[3] = 56;
            let bytes = [&[22, 3, minor, 0, 60][..], &cut].concat();
            let mut stream = lab.client.connect(lab.edge.at(443))?;
            stream.write_all(&bytes)?;
            let (answer, _) = stream::read_to_end(&mut stream)?;
            ensure!(answer.starts_with(&[21, 3, told, 0, 2, 2]), "{minor}: {answer:02x?}");
        }
        Ok(())
    })
}

#[test]
fn other_versions_than_http_1_are_for_home_to_judge() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(80), "home")?;
        let _edged = Edged::start(
            lab,
            &format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_address()),
        )?;
        for head in [
            "SOURCE /radio.ogg ICE/1.0\r\nHost: a.example:8000\r\n\r\n",
            "DESCRIBE rtsp://a.example:554/1 RTSP/1.0\r\nCSeq: 1\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a.example\r\n\r\n",
        ] {
            let answer = answer_to(lab, lab.edge.at(80), head.as_bytes())?;
            ensure!(answer == "home", "{head:?}: {answer:?}");
        }
        for head in
            ["OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n", "GET / ICE/1.0\r\nHost: a.example\r\nHost: b\r\n\r\n"]
        {
            let answer = answer_to(lab, lab.edge.at(80), head.as_bytes())?;
            ensure!(answer.starts_with("HTTP/1.1 400 "), "{head:?}: {answer:?}");
        }
        Ok(())
    })
}
