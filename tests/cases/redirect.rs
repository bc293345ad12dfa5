//! `redirect = "https"`: requests in clear text get the https address, ACME challenges go home.

use std::{io::Write, process::Command};

use lab::{
    Edged, Lab, Result, ensure,
    require::{self, Need},
    service, stream,
};

use crate::{answer_to, case, greeting};

const CHALLENGE: &str = "/.well-known/acme-challenge/abc-DEF_1";

/// `a.example`, everything below it, and addresses are redirected.
fn edged(lab: &Lab) -> Result<Edged> {
    let (home, client) = (lab.home_address(), lab.client.v4);
    Edged::start(
        lab,
        &format!(
            "[[listener]]\nname = \"https\"\nbind = [\"[::]:443\"]\nprotocol = \"tls\"\n\
             [[listener]]\nname = \"http\"\nbind = [\"[::]:80\"]\nprotocol = \"http\"\n\
             [[listener]]\nname = \"mixed\"\nbind = [\"[::]:8443\"]\nprotocols = [\"tls\", \"http\", \"ssh\"]\n\
             [[route]]\nhost = [\".a.example\", \"*\"]\nto = \"{home}\"\nredirect = \"https\"\n\
             [[route]]\nhost = \"denied.a.example\"\nto = \"{home}\"\nredirect = \"https\"\ndeny = [\"{client}\"]\n\
             [[route]]\nhost = \"plain.a.example\"\nto = \"{home}\"\n"
        ),
    )
}

fn expect_redirect(answer: &str, location: &str) -> Result<()> {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, "no end of the head"));
    let mut lines = head.split("\r\n");
    ensure!(lines.next() == Some("HTTP/1.1 308 Permanent Redirect"), "{answer:?}");
    let fields: Vec<_> = lines.collect();
    let expected = [&format!("Location: {location}")[..], "Content-Length: 0", "Connection: close"];
    ensure!(fields == expected && body.is_empty(), "{answer:?}, not {location}");
    Ok(())
}

#[test]
fn requests_in_clear_text_get_the_https_address() -> Result<()> {
    case(|lab| {
        let tls = service::named(&lab.home, lab.home_at(443), "tls")?;
        let plain = service::named(&lab.home, lab.home_at(80), "http")?;
        let edged = edged(lab)?;
        let mut redirected = 0;
        for (request, location) in [
            ("GET /x?y=z HTTP/1.1\r\nHost: A.example:80\r\n\r\n", "https://a.example/x?y=z"),
            ("GET / HTTP/1.0\r\nHost: b.a.example\r\n\r\n", "https://b.a.example/"),
            ("HEAD /x HTTP/1.1\r\nHost: a.example\r\n\r\n", "https://a.example/x"),
            ("GET http://a.example/x#f HTTP/1.1\r\nHost: a.example\r\n\r\n", "https://a.example/x"),
            ("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "https://a.example/"),
            ("GET /../%0d%0aA:b HTTP/1.1\r\nHost: a.example\r\n\r\n", "https://a.example/../%0d%0aA:b"),
            ("GET //evil.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "https://a.example//evil.example/"),
            ("GET /x HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", "https://[2001:db8::1]/x"),
            ("GET /x HTTP/1.1\r\nHost: a.example\r\nUpgrade: h2c\r\n\r\n", "https://a.example/x"),
            (
                "GET /.well-known/acme-challenge/../x HTTP/1.1\r\nHost: a.example\r\n\r\n",
                "https://a.example/.well-known/acme-challenge/../x",
            ),
            // A second request is not answered: the connection ends with the first answer.
            (
                "GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.example\r\n\r\n",
                "https://a.example/1",
            ),
        ] {
            for port in [80, 8443] {
                let answer = answer_to(lab, lab.edge.at(port), request.as_bytes())?;
                expect_redirect(&answer, location)
                    .map_err(|error| error.context(format!("{request:?} on {port}")))?;
                redirected += 1;
            }
        }
        // A request of no such route is answered as before.
        for (request, status) in [
            ("GET / HTTP/1.0\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nHost: a b.example\r\n\r\n", "400"),
            ("GET / HTTP/1.1\r\nHost: denied.a.example\r\n\r\n", "404"),
        ] {
            let answer = answer_to(lab, lab.edge.at(80), request.as_bytes())?;
            ensure!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer:?}");
        }
        let long = format!("GET /{} HTTP/1.1\r\nHost: a.example\r\n\r\n", "x".repeat(9000));
        let answer = answer_to(lab, lab.edge.at(80), long.as_bytes())?;
        ensure!(answer.starts_with("HTTP/1.1 431 "), "{answer:?}");
        ensure!(tls.accepted() + plain.accepted() == 0, "a redirected client reached a backend");

        ensure!(greeting(lab, "a.example")? == "tls" && greeting(lab, "192.0.2.1")? == "tls");
        let request = b"GET / HTTP/1.1\r\nHost: plain.a.example\r\n\r\n";
        ensure!(answer_to(lab, lab.edge.at(80), request)? == "http", "a route without redirect");

        let records = edged
            .access_log
            .wait_for_count(redirected, "the redirects", |record| record["close"] == "redirected")?;
        let is_told = |record: &serde_json::Value| {
            record["protocol"] == "http"
                && record["backend"].is_null()
                && record.get("error").is_none()
                && record.get("attempts").is_none()
        };
        ensure!(records.iter().all(is_told), "{records:?}");
        ensure!(records.iter().any(|record| record["route"] == "*.a.example"), "{records:?}");
        let edgectl = edged.edgectl();
        let rejected = &edgectl.json(&["status"])?["rejected"];
        ensure!(rejected.get("redirected").is_none() && rejected["denied"] == 1, "{rejected}");
        let said = edgectl.text(&["routes", "test", "a.example", "--listener", "http"])?;
        ensure!(said.contains("redirected to https by its route: the client gets a 308"), "{said}");
        let said = edgectl.text(&["routes", "test", "a.example"])?;
        ensure!(said.contains("goes to") && !said.contains("308"), "{said}");
        Ok(())
    })
}

#[test]
fn a_challenge_goes_home_and_so_does_what_follows_it() -> Result<()> {
    case(|lab| {
        let plain = service::echo(&lab.home, lab.home_at(80))?;
        let edged = edged(lab)?;
        for target in [CHALLENGE, &format!("http://a.example{CHALLENGE}")] {
            let mut stream = lab.client.connect(lab.edge.at(80))?;
            let challenge = format!("GET {target} HTTP/1.1\r\nHost: a.example\r\n\r\n");
            crate::echo_once(&mut stream, challenge.as_bytes())?;
            crate::echo_once(&mut stream, b"GET /later HTTP/1.1\r\nHost: a.example\r\n\r\n")?;
        }
        ensure!(plain.accepted() == 2);
        edged.access_log.wait_for_count(2, "the challenges", |record| {
            record["route"] == "a.example" && record["close"] == "finished"
        })?;
        Ok(())
    })
}

/// Bytes behind the head are drained, so that no reset overtakes the answer.
#[test]
fn a_post_gets_the_answer_and_an_end() -> Result<()> {
    case(|lab| {
        let _edged = edged(lab)?;
        let mut stream = lab.client.connect(lab.edge.at(80))?;
        let head = "POST /form HTTP/1.1\r\nHost: a.example\r\nContent-Length: 100000\r\n\r\n";
        stream.write_all(head.as_bytes())?;
        stream.write_all(&vec![b'x'; 100_000])?;
        let (answer, end) = stream::read_to_end(&mut stream)?;
        ensure!(end == stream::End::Fin, "{end:?}");
        expect_redirect(&String::from_utf8_lossy(&answer), "https://a.example/form")
    })
}

#[test]
fn curl_follows_it() -> Result<()> {
    if !require::all(&[Need::Program("curl", "curl")]) {
        return Ok(());
    }
    case(|lab| {
        let _edged = edged(lab)?;
        let asks = |arguments: &[&str]| {
            let mut curl = Command::new("curl");
            let format = "%{http_code} %{redirect_url} %{size_download}";
            curl.args(["-sS", "--max-time", "10", "-o", "/dev/null", "-w", format]);
            curl.args(["--connect-to", &format!("::{}", lab.edge.at(80))]).args(arguments);
            lab.client.text_of(curl)
        };
        for (arguments, url) in [
            (&["http://a.example/x?y=%20"][..], "https://a.example/x?y=%20"),
            (&["--http1.0", "http://b.a.example/"], "https://b.a.example/"),
            (&["-I", "http://a.example/x"], "https://a.example/x"),
            (&["--http2", "http://a.example/x"], "https://a.example/x"),
            (&["-d", "a=b", "http://a.example/form"], "https://a.example/form"),
            (&["-H", "Expect: 100-continue", "-d", "a=b", "http://a.example/form"], "https://a.example/form"),
        ] {
            let said = asks(arguments)?;
            ensure!(said.trim() == format!("308 {url} 0"), "{arguments:?}: {said}");
        }
        Ok(())
    })
}

#[test]
fn it_is_added_shown_and_kept_at_run_time() -> Result<()> {
    case(|lab| {
        let home = lab.home_address().to_string();
        let mut edged = Edged::start(lab, "")?;
        let edgectl = edged.edgectl();
        edgectl.text(&["routes", "add", ".a.example", &home, "--redirect", "https"])?;
        edgectl.refused(
            1,
            &["routes", "add", "b.example", &home, "--redirect", "https", "--listener", "https"],
        )?;
        let list = edgectl.text(&["routes", "list"])?;
        ensure!(list.contains("REDIRECT"), "{list}");
        edged.terminate()?;
        drop(edged);
        let _edged = Edged::start(lab, "")?;
        let request = b"GET /x HTTP/1.1\r\nHost: b.a.example\r\n\r\n";
        expect_redirect(&answer_to(lab, lab.edge.at(80), request)?, "https://b.a.example/x")
    })
}
