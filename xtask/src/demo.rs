//! `cargo xtask demo`: the main job, end to end, on one machine.
//!
//! A client, a VPS and a home in network namespaces; at home three services that know nothing of the edge; between
//! VPS and home a WireGuard tunnel; real clients.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab::{
    Edged, Host, Lab,
    certificates::Authority,
    clients::Fetch,
    peers::{Caddy, Nginx},
    process::Process,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{run::build, setup};

/// The name of the lab that `--keep` leaves up.
const NAME: &str = "demo";
/// Something that only a decrypted stream would show.
const SECRET: &str = "the-password-is-swordfish";

/// A name that no route has, asked for last.
const LAST: &str = "nobody.example.net";

const CONFIGURATION: &str = r#"
# TLS on 443 by SNI and HTTP on 80 by Host, both to the same port at home.
[[route]]
host = "*.example.com"
to = "100.64.0.2"

# One service on a machine and port of its own.
[[route]]
host = "cloud.example.com"
to = "100.64.0.2:8443"
"#;

#[derive(Args, Default)]
pub(crate) struct Demo {
    /// Leave everything up to play with
    #[arg(long)]
    keep: bool,
    /// Take down what `--keep` left up
    #[arg(long, conflicts_with = "keep")]
    down: bool,
}

impl Demo {
    pub(crate) fn run(&self) -> Result<()> {
        setup::lab()?;
        Lab::remove(NAME);
        if self.down {
            return Ok(());
        }
        say("building edged and edgectl");
        build()?;

        say("making a client, a VPS and a home, and a WireGuard tunnel from the VPS to home");
        let lab = Lab::plan().tunnel().name(NAME).build()?;
        let tunnel = lab.tunnel.as_ref().context("the lab has no tunnel")?;
        let by = if tunnel.in_kernel() { "the kernel" } else { "wireguard-go" };
        println!("   client {}   VPS {}   home {} by {by}", lab.client.v4, lab.edge.v4, lab.home_address());

        say("starting three services at home");
        let mut services = Services::start(&lab)?;
        println!("   Caddy  photos.example.com  TLS   :443   its certificate and key never leave home");
        println!("   nginx  cloud.example.com   TLS   :8443  likewise");
        println!("   nginx  www.example.com     HTTP  :80");

        say("starting edged on the VPS with this configuration");
        for line in CONFIGURATION.trim().lines() {
            println!("   {line}");
        }
        let mut edged = Edged::start(&lab, CONFIGURATION)?;

        say("adding a route at run time");
        let route = ["routes", "add", "wiki.example.org", "100.64.0.2:8443"];
        println!("   edgectl {}", route.join(" "));
        edged.edgectl().text(&route)?;

        let mut wire = Wire::listen(&lab)?;
        requests(&lab, &services.authority)?;
        let captured = wire.stop()?;

        say("what the routes carried");
        indent(&edged.edgectl().text(&["routes", "list"])?);
        say("the access log, a line a connection");
        for record in edged.access_log.records()? {
            println!("   {}", account(&record));
        }

        say("what a spy on the VPS sees");
        ensure!(!captured.is_empty(), "nothing was captured on the VPS");
        let seen =
            |text: &str| captured.windows(text.len()).filter(|found| *found == text.as_bytes()).count();
        println!("   {} bytes passed through, captured on the side of the client", captured.len());
        println!("   server names in clear text: {} times", seen("cloud.example.com"));
        println!("   the secret that the services sent: {} times", seen(SECRET));
        ensure!(seen(SECRET) == 0, "the secret was seen in clear text");

        if self.keep {
            edged.process().detach();
            services.detach();
            keep(lab, &edged);
        } else {
            say("stopping: SIGTERM drains");
            let code = edged.terminate()?;
            println!(
                "   edged ended with {}",
                code.map_or_else(|| "a signal".into(), |code| code.to_string())
            );
        }
        println!("\nDone.");
        Ok(())
    }
}

struct Services {
    authority: Authority,
    caddy: Caddy,
    cloud: Nginx,
    web: Nginx,
}

impl Services {
    fn start(lab: &Lab) -> Result<Self> {
        let authority = Authority::new(lab)?;
        let photos = authority.issue(lab, &["photos.example.com"])?;
        let cloud = authority.issue(lab, &["cloud.example.com", "wiki.example.org"])?;
        let caddy = Caddy::tls(&lab.home, lab.home_at(443), "photos.example.com", &photos)?;
        fs::write(caddy.files.join("index.html"), format!("photos: {SECRET}\n"))?;
        let cloud = Nginx::tls(&lab.home, lab.home_at(8443), &cloud)?;
        fs::write(cloud.files.join("index.html"), format!("cloud: {SECRET}\n"))?;
        let web = Nginx::plain(&lab.home, lab.home_at(80))?;
        fs::write(web.files.join("index.html"), "a plain page, from home\n")?;
        Ok(Self { authority, caddy, cloud, web })
    }

    fn detach(&mut self) {
        self.caddy.process().detach();
        self.cloud.process().detach();
        self.web.process().detach();
    }
}

fn requests(lab: &Lab, authority: &Authority) -> Result<()> {
    say("real clients ask");
    let fetch = |name, edge| Fetch { from: &lab.client, edge, name, path: "/index.html", authority };
    let (v4, v6) = (lab.edge.at(443), lab.edge.at_v6(443));
    answered("curl, HTTP/2, photos.example.com", &fetch("photos.example.com", v4).curl(&["--http2"])?)?;
    answered("curl over IPv6, cloud.example.com", &fetch("cloud.example.com", v6).curl(&[])?)?;
    answered("openssl, TLS 1.2, cloud.example.com", &fetch("cloud.example.com", v4).openssl(&["-tls1_2"])?)?;
    answered("openssl, TLS 1.3, wiki.example.org", &fetch("wiki.example.org", v4).openssl(&["-tls1_3"])?)?;

    let mut plain = Command::new("curl");
    plain.args(["--silent", "--show-error", "--fail", "--header", "Host: www.example.com"]);
    plain.arg(format!("http://{}/index.html", lab.edge.v4));
    answered("curl, plain HTTP by Host, www.example.com", lab.client.text_of(plain)?.as_bytes())?;

    let refused = fetch(LAST, v4).curl(&[]).err().context("a name without a route was served")?;
    let reason = refused.to_string();
    println!("   {:45} refused: {}", format!("curl, {LAST}"), reason.lines().last().unwrap_or_default());
    Ok(())
}

fn answered(what: &str, body: &[u8]) -> Result<()> {
    let body = String::from_utf8_lossy(body);
    ensure!(!body.trim().is_empty(), "{what}: an empty answer");
    println!("   {what:45} {}", body.trim());
    Ok(())
}

/// One line of the access log, for people.
fn account(record: &Value) -> String {
    let text = |key: &str| match &record[key] {
        Value::String(text) => text.clone(),
        Value::Null => "–".into(),
        other => other.to_string(),
    };
    format!(
        "{:20} → {:18} {:7} up {:>6} B  down {:>6} B  {:>8} ms  {}",
        text("sni"),
        text("backend"),
        text("datapath"),
        text("bytes_up"),
        text("bytes_down"),
        text("duration_ms"),
        text("close")
    )
}

/// The packets on the VPS's link to clients, as tcpdump there shows them.
struct Wire {
    tcpdump: Process,
    file: PathBuf,
}

impl Wire {
    fn listen(lab: &Lab) -> Result<Self> {
        let file = lab.directory().join("wire.pcap");
        let mut command = Command::new("tcpdump");
        command
            .args(["-i", "any", "-U", "-s", "0", "-Z", "root", "-w"])
            .arg(&file)
            .args(["tcp", "port", "443"]);
        let mut tcpdump = lab.edge.spawn("tcpdump", command)?;
        // tcpdump writes the head of the file once it listens.
        tcpdump.wait_ready(SOON, || fs::metadata(&file).is_ok_and(|file| file.len() > 0))?;
        Ok(Self { tcpdump, file })
    }

    fn stop(&mut self) -> Result<Vec<u8>> {
        // The name of the last request is the last thing that it has to show.
        wait::until_true("the capture", SOON, || {
            fs::read(&self.file).is_ok_and(|captured| count(&captured, LAST) > 0)
        })?;
        self.tcpdump.signal(rustix::process::Signal::TERM)?;
        self.tcpdump.wait(SOON)?;
        Ok(fs::read(&self.file)?)
    }
}

/// How often a text is in what was captured.
fn count(captured: &[u8], text: &str) -> usize {
    captured.windows(text.len()).filter(|found| *found == text.as_bytes()).count()
}

fn keep(lab: Lab, edged: &Edged) {
    let show = |host: &Host| host.namespace().name().to_owned();
    say("left up");
    println!("   a shell at the client:  ip netns exec {} bash", show(&lab.client));
    println!("   a shell at home:        ip netns exec {} bash", show(&lab.home));
    println!("   steer the daemon:       edgectl --control {} status", edged.edgectl().control().display());
    println!("   its configuration:      {}", edged.config().display());
    println!("   take it down:           cargo xtask demo --down");
    lab.keep();
}

fn say(what: &str) {
    println!("\n== {what}");
}

fn indent(text: &str) {
    for line in text.lines() {
        println!("   {line}");
    }
}
