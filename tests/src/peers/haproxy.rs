//! HAProxy as an SNI edge: the daemon is compared with it, and it shows that a case's peers work. It also
//! reads and writes PROXY headers independently of our code.

use std::{fmt::Write, net::SocketAddr, process::Command};

use anyhow::{Context, Result};

use super::words_after;
use crate::{Host, certificates::Certificate, process::Process, wait::SOON};

/// A running HAProxy.
#[derive(Debug)]
pub struct Haproxy {
    process: Process,
}

impl Haproxy {
    /// Listens at `on` and sends each host name to its backend. `global` is added to the global section.
    pub fn sni(host: &Host, on: SocketAddr, routes: &[(&str, SocketAddr)], global: &str) -> Result<Self> {
        let mut text = format!(
            "global\n  maxconn 8000\n{global}\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  \
             timeout server 1h\nfrontend edge\n  bind {on}\n  tcp-request inspect-delay 5s\n  \
             tcp-request content accept if {{ req.ssl_hello_type 1 }}\n"
        );
        for (index, (name, _)) in routes.iter().enumerate() {
            writeln!(text, "  use_backend b{index} if {{ req.ssl_sni -i {name} }}")?;
        }
        for (index, (_, backend)) in routes.iter().enumerate() {
            writeln!(text, "backend b{index}\n  server s {backend}")?;
        }
        Self::start(host, on, &text)
    }

    /// Serves over TLS at each of `on`, where a PROXY header must come first. The answer to every request has
    /// the contents of the header; see [`Haproxy::clients`].
    pub fn behind_proxy(host: &Host, on: &[SocketAddr], certificate: &Certificate) -> Result<Self> {
        let first = *on.first().context("no address")?;
        // One file with both is what it wants.
        let whole = host.directory().join(format!("haproxy-{}.pem", first.port()));
        std::fs::write(
            &whole,
            [std::fs::read(&certificate.certificate)?, std::fs::read(&certificate.key)?].concat(),
        )?;
        let mut text = String::from(
            "global\n  log stdout format raw local0\ndefaults\n  mode http\n  log global\n  timeout client 1m\n  \
             timeout connect 5s\n  timeout server 1m\nfrontend web\n  \
             log-format \"client-log %[var(txn.path)] [%ci]:%cp [%[dst]]:%[dst_port] %[var(txn.name)] %[var(txn.id)]\"\n  \
             http-request set-var(txn.path) path\n  \
             http-request set-var(txn.name) fc_pp_authority\n  http-request set-var(txn.id) fc_pp_unique_id\n  \
             http-request return status 200 content-type text/plain string served\n",
        );
        for on in on {
            writeln!(text, "  bind {on} accept-proxy ssl crt {} alpn h2,http/1.1", whole.display())?;
        }
        let mut haproxy = Self::start(host, first, &text)?;
        haproxy.process.wait_ready(SOON, || on.iter().all(|on| host.accepts(*on)))?;
        Ok(haproxy)
    }

    /// Runs in front of an edge: forwards connections from `on` to `edge`, with a version 2 PROXY header that
    /// names the client and gives it an id.
    pub fn before_edge(host: &Host, on: SocketAddr, edge: SocketAddr) -> Result<Self> {
        let text = format!(
            "global\n  maxconn 100\ndefaults\n  mode tcp\n  timeout client 1m\n  timeout connect 5s\n  \
             timeout server 1m\nfrontend front\n  bind {on}\n  unique-id-format front-%ci-%cp\n  \
             default_backend edge\nbackend edge\n  \
             server edge {edge} send-proxy-v2 proxy-v2-options unique-id,crc32c\n"
        );
        Self::start(host, on, &text)
    }

    /// Each request in the log of [`Haproxy::behind_proxy`]: the path, the client, the address that it
    /// connected to, and the TLVs AUTHORITY and `UNIQUE_ID`.
    pub fn clients(&self) -> Result<Vec<[String; 5]>> {
        words_after(&self.process.whole_log()?, "client-log ")
    }

    fn start(host: &Host, on: SocketAddr, text: &str) -> Result<Self> {
        let config = host.directory().join(format!("haproxy-{}.cfg", on.port()));
        std::fs::write(&config, text)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&config);
        let mut process = host.spawn(&format!("haproxy-{}", on.port()), command)?;
        process.wait_ready(SOON, || host.accepts(on))?;
        Ok(Self { process })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
