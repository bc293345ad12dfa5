//! Caddy: a web server whose TLS is Go's.

use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Pebble;
use crate::{Host, certificates::Certificate, process::Process, require::newer, wait::SOON};

/// A running Caddy. Every answer carries `X-Service: caddy`.
#[derive(Debug)]
pub struct Caddy {
    process: Process,
    /// The directory that it serves.
    pub files: PathBuf,
}

impl Caddy {
    /// Serves `name` over TLS at `on`: HTTP/1.1 and HTTP/2.
    pub fn tls(host: &Host, on: SocketAddr, name: &str, certificate: &Certificate) -> Result<Self> {
        Self::start(host, Path::new("caddy"), on, |files| {
            format!(
                "{{\n\tadmin off\n\tauto_https off\n}}\n\
                 https://{name}:{} {{\n\tbind {}\n\ttls {} {}\n\theader X-Service caddy\n\troot * {}\n\t\
                 file_server\n}}\n",
                on.port(),
                on.ip(),
                certificate.certificate.display(),
                certificate.key.display(),
                files.display()
            )
        })
    }

    /// Serves `name` over TLS at each of `on` (of one port), where a PROXY header must come first; see
    /// [`Caddy::clients`]. Needs [`Need::Newer`](crate::require::Need::Newer).
    pub fn behind_proxy(
        host: &Host,
        on: &[SocketAddr],
        name: &str,
        certificate: &Certificate,
    ) -> Result<Self> {
        let first = *on.first().context("no address")?;
        let addresses: Vec<_> = on.iter().map(|on| on.ip().to_string()).collect();
        let mut caddy = Self::start(host, &newer("caddy").context("no newer Caddy")?, first, |_| {
            format!(
                "{{\n\tadmin off\n\tauto_https off\n\tservers {{\n\t\tlistener_wrappers {{\n\t\t\t\
                 proxy_protocol {{\n\t\t\t\tallow 0.0.0.0/0 ::/0\n\t\t\t\tfallback_policy reject\n\t\t\t}}\n\t\t\t\
                 tls\n\t\t}}\n\t}}\n}}\n\
                 https://{name}:{} {{\n\tbind {}\n\ttls {} {}\n\tlog {{\n\t\toutput stdout\n\t\tformat json\n\t}}\n\t\
                 respond served\n}}\n",
                first.port(),
                addresses.join(" "),
                certificate.certificate.display(),
                certificate.key.display(),
            )
        })?;
        caddy.process.wait_ready(SOON, || on.iter().all(|on| host.accepts(*on)))?;
        Ok(caddy)
    }

    /// A Caddy at home as its users run it: ports 80 and 443, and certificates from `authority` for each
    /// name, obtained by the single challenge listed with the name (`http` or `tlsalpn`). Every answer is
    /// `caddy`.
    pub fn with_acme(host: &Host, authority: &Pebble, names: &[(&str, &str)]) -> Result<Self> {
        let on = host.at(443);
        let mut text = format!(
            "{{\n\tadmin off\n\trenew_interval 1s\n\tacme_ca {}\n\tacme_ca_root {}\n\tdefault_bind {}\n}}\n",
            authority.directory(),
            authority.trust.display(),
            on.ip(),
        );
        for (name, challenge) in names {
            let other = if *challenge == "http" { "tlsalpn" } else { "http" };
            write!(
                text,
                "{name} {{\n\ttls {{\n\t\tissuer acme {{\n\t\t\tdisable_{other}_challenge\n\t\t}}\n\t}}\n\t\
                 respond caddy\n}}\n"
            )?;
        }
        Self::start(host, &newer("caddy").context("no newer Caddy")?, on, |_| text)
    }

    /// The path and client of each request, from the log of [`Caddy::behind_proxy`].
    pub fn clients(&self) -> Result<Vec<[String; 2]>> {
        let log = self.process.whole_log()?;
        let requests =
            log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()?.get("request").cloned());
        let client = |request: Value| {
            let text = |name: &str| request[name].as_str().unwrap_or_default().to_owned();
            [text("uri"), format!("[{}]:{}", text("remote_ip"), text("remote_port"))]
        };
        Ok(requests.map(client).collect())
    }

    fn start(
        host: &Host,
        program: &Path,
        on: SocketAddr,
        text: impl FnOnce(&Path) -> String,
    ) -> Result<Self> {
        let home = host.directory().join(format!("caddy-{}", on.port()));
        let files = home.join("files");
        for wanted in [&home, &files] {
            std::fs::create_dir_all(wanted)?;
        }
        let config = home.join("Caddyfile");
        std::fs::write(&config, text(&files))?;
        let mut command = Command::new(program);
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config);
        command.env("HOME", &home).env("XDG_DATA_HOME", &home).env("XDG_CONFIG_HOME", &home);
        let mut process = host.spawn(&format!("caddy-{}", on.port()), command)?;
        process.wait_ready(SOON, || host.accepts(on))?;
        Ok(Self { process, files })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
