//! Clients that speak another protocol than their port: each gets an answer that its own program shows.

use std::{io::Write, process::Command};

use lab::{
    Edged, Lab, Result, ensure,
    hello::ClientHello,
    require::{self, Need},
    service,
    stream::{self, End},
};

use crate::{answer_to, case};

/// The preface of HTTP/2 with an empty SETTINGS (RFC 9113 §3.4).
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The default listeners, and one for several protocols at 8443.
fn edged(lab: &Lab, protocols: &str) -> Result<Edged> {
    Edged::start(
        lab,
        &format!(
            "[[listener]]\nname = \"https\"\nbind = [\"[::]:443\"]\nprotocol = \"tls\"\n\
             [[listener]]\nname = \"http\"\nbind = [\"[::]:80\"]\nprotocol = \"http\"\n\
             [[listener]]\nname = \"mixed\"\nbind = [\"[::]:8443\"]\nprotocols = {protocols}\n\
             [[route]]\nhost = \"*\"\nto = \"{}\"\n",
            lab.home_at(1001)
        ),
    )
}

/// curl's error; an HTTP error status counts as one.
fn curl(lab: &Lab, arguments: &[&str]) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "10", "-w", "%{http_code}"]).args(arguments);
    let output = lab.client.output(curl)?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn http_on_a_port_of_tls_is_told_to_use_https() -> Result<()> {
    if !require::all(&[Need::Program("curl", "curl")]) {
        return Ok(());
    }
    case(|lab| {
        let service = service::named(&lab.home, lab.home_at(1001), "reached")?;
        let edged = edged(lab, r#"["tls", "ssh"]"#)?;
        for request in [
            "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "MKCALENDAR /c HTTP/1.1\r\nHost: a.example\r\n\r\n",
            "CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        ] {
            for port in [443, 8443] {
                let answer = answer_to(lab, lab.edge.at(port), request.as_bytes())?;
                let fits = answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://");
                ensure!(fits, "{request:?} on {port}: {answer:?}");
            }
        }
        let said = curl(lab, &[&format!("http://{}/", lab.edge.at(443))])?;
        ensure!(said.contains("https://") && said.contains("400"), "{said}");
        ensure!(service.accepted() == 0, "a refused client reached the backend");
        edged.access_log.wait_for_count(9, "the refusals", |record| record["close"] == "http_on_tls")?;
        Ok(())
    })
}

#[test]
fn http2_in_clear_text_is_told_to_use_http_1() -> Result<()> {
    if !require::all(&[Need::Program("curl", "curl")]) {
        return Ok(());
    }
    case(|lab| {
        let service = service::named(&lab.home, lab.home_at(1001), "reached")?;
        let edged = edged(lab, r#"["tls", "http", "ssh"]"#)?;
        for port in [80, 443, 8443] {
            let mut stream = lab.client.connect(lab.edge.at(port))?;
            stream.write_all(HTTP2)?;
            let (answer, end) = stream::read_to_end(&mut stream)?;
            // An empty SETTINGS, then GOAWAY with HTTP_1_1_REQUIRED (RFC 9113 §6.8, §7).
            let goaway = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0d";
            let frames = answer.strip_prefix(b"\0\0\0\x04\0\0\0\0\0");
            ensure!(frames == Some(goaway) && end == End::Fin, "{port}: {end:?} after {answer:02x?}");
        }
        // The curl of Debian 12 says more than "Error in the HTTP2 framing layer" with `-v` only.
        let said = curl(lab, &["-v", "--http2-prior-knowledge", &format!("http://{}/", lab.edge.at(80))])?;
        ensure!(said.contains("GOAWAY, error=13") || said.contains("HTTP_1_1_REQUIRED"), "{said}");
        ensure!(service.accepted() == 0, "a refused client reached the backend");
        edged.access_log.wait_for_count(4, "the refusals", |record| record["close"] == "http2_preface")?;
        Ok(())
    })
}

#[test]
fn tls_on_a_port_of_http_gets_an_alert() -> Result<()> {
    let needs = [
        Need::Program("curl", "curl"),
        Need::Program("openssl", "openssl"),
        Need::Program("gnutls-cli", "gnutls-bin"),
    ];
    if !require::all(&needs) {
        return Ok(());
    }
    case(|lab| {
        let service = service::named(&lab.home, lab.home_at(1001), "reached")?;
        let edged = edged(lab, r#"["http", "ssh"]"#)?;
        for port in [80, 8443] {
            let mut hello = ClientHello::new("a.example").records();
            for (minor, told) in [(1, 1), (3, 3), (0, 3)] {
                hello[2] = minor;
                let mut stream = lab.client.connect(lab.edge.at(port))?;
                stream.write_all(&hello)?;
                let (answer, end) = stream::read_to_end(&mut stream)?;
                ensure!(
                    answer == [21, 3, told, 0, 2, 2, 40] && end == End::Fin,
                    "{port}: {end:?} after {answer:02x?}"
                );
            }
        }
        let edge = lab.edge.at(80);
        let said = curl(lab, &["-k", &format!("https://{edge}/")])?;
        ensure!(said.contains("handshake failure"), "{said}");
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &edge.to_string(), "-servername", "a.example"]);
        let mut gnutls = Command::new("gnutls-cli");
        gnutls.args(["--insecure", "--port", "80", &edge.ip().to_string()]);
        for command in [openssl, gnutls] {
            let output = lab.client.output(command)?;
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).to_lowercase();
            ensure!(said.contains("handshake fail"), "{said}");
        }
        ensure!(service.accepted() == 0, "a refused client reached the backend");
        edged.access_log.wait_for_count(9, "the refusals", |record| record["close"] == "tls_on_http")?;
        Ok(())
    })
}

#[test]
fn any_method_is_http_on_a_port_of_several_protocols() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(1001), "reached")?;
        let _edged = edged(lab, r#"["tls", "http", "ssh", "openvpn", "postgres"]"#)?;
        for method in
            ["GET", "MKCALENDAR", "ACL", "MERGE", "SOURCE", "M-SEARCH", "BASELINE-CONTROL", "get", "X!"]
        {
            for port in [80, 8443] {
                for before in ["", "\r\n"] {
                    let request = format!("{before}{method} /c HTTP/1.1\r\nHost: a.example\r\n\r\n");
                    let answer = answer_to(lab, lab.edge.at(port), request.as_bytes())?;
                    ensure!(answer == "reached", "{request:?} on {port}: {answer:?}");
                }
            }
        }
        let connect = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";
        ensure!(answer_to(lab, lab.edge.at(8443), connect)? == "reached");
        Ok(())
    })
}
