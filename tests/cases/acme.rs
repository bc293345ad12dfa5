//! Certificates are issued at home, through the edge and without its knowing: HTTP-01 by Host, TLS-ALPN-01 by SNI or
//! by a route of its own.

use std::{path::Path, process::Command, time::Duration};

use lab::{
    Context, Edged, Lab, Result,
    access_log::AccessLog,
    certificates::Authority,
    ensure,
    peers::{Caddy, Lego, Nginx, Pebble},
    require::{self, Need},
    wait,
};
use serde_json::Value;

const NEEDS: &[Need] = &[
    Need::Namespaces,
    Need::Newer("pebble"),
    Need::Newer("caddy"),
    Need::Program("lego", "lego"),
    Need::Program("nginx", "nginx"),
    Need::Program("curl", "curl"),
];
/// Long enough for several orders on a loaded machine.
const ISSUED: Duration = Duration::from_mins(1);

/// Runs a case in a lab whose home reaches Pebble by way of the edge's host.
fn acme_case(validity: Duration, body: impl FnOnce(&Lab, &Pebble) -> Result<()>) -> Result<()> {
    if !require::all(NEEDS) {
        return Ok(());
    }
    Lab::plan().forwarding().case(|lab| {
        let pebble = Pebble::start(lab, &Authority::new(lab)?, validity)?;
        body(lab, &pebble)
    })
}

/// A page by curl, which trusts only what Pebble issues, and the serial number of the certificate it came with.
fn page(lab: &Lab, root: &Path, name: &str) -> Result<(String, String)> {
    let mut curl = Command::new("curl");
    curl.args(["-sSf", "-w", "\n%{certs}", "--cacert"]).arg(root);
    curl.args(["--connect-to", &format!("::{}", lab.edge.at(443)), &format!("https://{name}/")]);
    let text = lab.client.text_of(curl)?;
    let (page, certificates) = text.split_once('\n').context("curl says no certificates")?;
    let serial = certificates.lines().find_map(|line| line.strip_prefix("Serial Number:"));
    Ok((page.to_owned(), serial.context("no serial number")?.to_owned()))
}

/// The record of a challenge that came through the edge.
fn challenge(log: &AccessLog, name: &str, what: impl Fn(&Value) -> bool) -> Result<Value> {
    log.wait_for(&format!("a challenge of {name}"), |record| record["sni"] == name && what(record))
}

fn offers_acme(record: &Value) -> bool {
    record["alpn"] == serde_json::json!(["acme-tls/1"])
}

#[test]
fn caddy_at_home_obtains_and_renews_by_both_challenges() -> Result<()> {
    const BY_HTTP: &str = "http01.home.example";
    const BY_TLS: &str = "alpn01.home.example";
    // A third of it before the end Caddy renews.
    acme_case(Duration::from_secs(20), |lab, pebble| {
        let route = format!("[[route]]\nhost = \"*.home.example\"\nto = \"{}\"\n", lab.home_address());
        let edged = Edged::start(lab, &route)?;
        let _caddy = Caddy::with_acme(&lab.home, pebble, &[(BY_HTTP, "http"), (BY_TLS, "tlsalpn")])?;
        let root = pebble.root(&lab.client)?;
        for name in [BY_HTTP, BY_TLS] {
            let (text, first) = wait::until_ok("a certificate", ISSUED, || page(lab, &root, name))?;
            ensure!(text == "caddy", "{text}");
            let (text, second) = wait::until_ok("another certificate", ISSUED, || {
                let now = page(lab, &root, name)?;
                ensure!(now.1 != first, "still the first");
                Ok(now)
            })?;
            ensure!(text == "caddy" && second != first);
        }
        challenge(&edged.access_log, BY_HTTP, |record| record["listener"] == "http")?;
        challenge(&edged.access_log, BY_TLS, |record| offers_acme(record) && record["close"] == "finished")?;
        Ok(())
    })
}

#[test]
fn nginx_and_lego_by_webroot_and_by_a_route_of_its_own() -> Result<()> {
    const BY_HTTP: &str = "web.home.example";
    const BY_TLS: &str = "own.home.example";
    acme_case(Duration::from_hours(24), |lab, pebble| {
        let home = lab.home_address();
        let edged = Edged::start(
            lab,
            &format!(
                "[[route]]\nhost = \"*.home.example\"\nto = \"{home}\"\n\
                 [[route]]\nhost = \"*.home.example\"\nalpn = [\"acme-tls/1\"]\nto = \"{home}:10443\"\n"
            ),
        )?;
        let web = Nginx::plain(&lab.home, lab.home_at(80))?;
        let lego = Lego::new(&lab.home, pebble);
        let webroot = web.files.to_string_lossy().into_owned();
        let by_http = ["--http", "--http.webroot", &webroot];
        let by_tls = ["--tls", "--tls.port", ":10443"];
        let root = pebble.root(&lab.client)?;
        for (name, how) in [(BY_HTTP, &by_http[..]), (BY_TLS, &by_tls[..])] {
            let mut serials = Vec::new();
            for renew in [false, true] {
                let certificate = if renew { lego.renew(name, how)? } else { lego.obtain(name, how)? };
                let secure = Nginx::tls(&lab.home, lab.home_at(443), &certificate)?;
                std::fs::write(secure.files.join("index.html"), name)?;
                let (text, serial) = page(lab, &root, name)?;
                ensure!(text == name, "{text}");
                serials.push(serial);
            }
            ensure!(serials[0] != serials[1], "not renewed");
        }
        challenge(&edged.access_log, BY_HTTP, |record| record["listener"] == "http")?;
        let record = challenge(&edged.access_log, BY_TLS, offers_acme)?;
        ensure!(record["backend"] == lab.home_at(10443).to_string(), "{record}");
        Ok(())
    })
}
