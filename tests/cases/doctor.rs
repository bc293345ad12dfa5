//! `edgectl doctor`: each cause that keeps clients from home comes with the remedy of that cause.

use std::process::Command;

use lab::{
    Context, Edged, Result, ensure,
    hello::ClientHello,
    require::{self, Need},
    service, stream,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{case, echo_once, tunnel_case};

/// The check of this name in a report made now.
fn check(edged: &Edged, name: &str) -> Result<Value> {
    let output = edged.edgectl().run(&["doctor", "--json"])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let checks = report["checks"].as_array().context("no checks")?;
    let found = checks.iter().find(|check| check["name"].as_str().is_some_and(|own| own.starts_with(name)));
    found.cloned().with_context(|| format!("no check {name}: {report}"))
}

/// The remedy of a check that must have failed.
fn remedy(edged: &Edged, name: &str) -> Result<String> {
    let check = check(edged, name)?;
    ensure!(check["status"] == "fail", "{check}");
    check["remedy"].as_str().map(str::to_owned).with_context(|| format!("no remedy: {check}"))
}

fn route(name: &str, to: &str) -> String {
    format!("[[route]]\nhost = \"{name}.example\"\nto = \"{to}\"\n")
}

#[test]
fn a_refused_and_a_silent_backend_have_remedies_of_their_own() -> Result<()> {
    case(|lab| {
        let silent = service::Service::start(&lab.home, lab.home.at(1443), |mut stream| {
            stream::read_to_end(&mut stream).map(|(read, _)| read)
        })?;
        let nobody = "198.18.2.77:443";
        let body = [
            route("refused", &lab.home.at(443).to_string()),
            route("silent", &lab.home.at(1443).to_string()),
            route("nobody", nobody),
            route("nameless", "no-such-host.invalid:443"),
        ];
        let edged = Edged::start(lab, &body.concat())?;
        let said = remedy(&edged, &format!("backend {}", lab.home.at(443)))?;
        ensure!(said.contains("`ss -ltn sport = :443` at home"), "{said}");
        let said = remedy(&edged, &format!("hello to {}", lab.home.at(1443)))?;
        ensure!(said.contains("a TLS service listens there"), "{said}");
        let said = remedy(&edged, &format!("backend {nobody}"))?;
        ensure!(said.contains("`ping -c 3 198.18.2.77`"), "{said}");
        let said = remedy(&edged, "backend no-such-host.invalid")?;
        ensure!(said.contains("`getent ahosts no-such-host.invalid`"), "{said}");

        // Problems only, and one line that sums up.
        let output = edged.edgectl().run(&["doctor"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(1), "something is broken: {text}");
        ensure!(text.starts_with("fail  ") && !text.contains("\nok "), "{text}");
        let last = text.lines().last().unwrap_or_default();
        ensure!(last.starts_with("something is broken: ") && last.contains(" ok"), "{last}");
        let probe = edged.edgectl().run(&["routes", "test", "refused.example", "--probe"])?;
        let probe = String::from_utf8_lossy(&probe.stdout).into_owned();
        ensure!(probe.contains("-> `ss -ltn sport = :443`"), "{probe}");
        drop(silent);
        Ok(())
    })
}

#[test]
fn the_remedy_of_missing_allowed_ips_can_be_pasted() -> Result<()> {
    const ADDRESS: &str = "10.77.0.9";
    if !require::all(&[Need::Program("wg", "wireguard-tools")]) {
        return Ok(());
    }
    tunnel_case(|lab| {
        let tunnel = lab.tunnel.as_ref().context("no tunnel")?;
        let device = tunnel.edge_device();
        lab.edge.ip(&["route", "add", ADDRESS, "dev", device])?;
        lab.home.ip(&["address", "add", &format!("{ADDRESS}/32"), "dev", "lo"])?;
        let edged = Edged::start(lab, &route("a", &format!("{ADDRESS}:443")))?;
        let name = format!("backend {ADDRESS}:443");
        let said = remedy(&edged, &name)?;
        let command = said.split('`').nth(1).with_context(|| format!("no command: {said}"))?;
        ensure!(command.starts_with(&format!("wg set {device} peer ")), "{command}");
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        lab.edge.text_of(shell)?;
        // The next fault on the same path: nothing listens there.
        wait::until_ok("the path to reach home", SOON, || {
            let said = remedy(&edged, &name)?;
            ensure!(said.contains("`ss -ltn sport = :443` at home"), "{said}");
            Ok(())
        })
    })
}

#[test]
fn a_block_of_our_own_is_named_with_its_removal() -> Result<()> {
    tunnel_case(|lab| {
        let to = lab.home_at(443);
        let _service = service::echo(&lab.home, to)?;
        // The shield spares devices that lead to backends, but not the tunnel's other end.
        let outside = lab.home.v4.to_string();
        let edged = Edged::start(lab, &route("a", &to.to_string()))?;
        edged.edgectl().text(&["block", "add", &outside, "--force"])?;
        // Otherwise the answers are not dropped, and the path stays whole.
        let guard = check(&edged, "shield on back")?;
        ensure!(guard["status"] == "ok", "{guard}");
        let name = format!("backend {to}");
        let said = wait::until_ok("the path to fall silent", SOON, || remedy(&edged, &name))?;
        ensure!(said == format!("`edgectl block remove {outside}/32`"), "{said}");
        edged.edgectl().text(&["block", "remove", &outside])?;
        wait::until_ok("a client to be served again", SOON, || {
            let mut client = lab.client.connect(lab.edge.at(443))?;
            echo_once(&mut client, &ClientHello::new("a.example").records())
        })
    })
}
