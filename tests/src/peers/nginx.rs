//! nginx: a web server over TLS or in clear text.

use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::words_after;
use crate::{Host, certificates::Certificate, process::Process, wait::SOON};

/// A running nginx. Every answer carries `X-Service: nginx` and the host asked for as `X-Host`.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    /// The directory that it serves.
    pub files: PathBuf,
}

impl Nginx {
    /// Serves over TLS at `on`: HTTP/1.1 and HTTP/2, TLS 1.2 and 1.3.
    pub fn tls(host: &Host, on: SocketAddr, certificate: &Certificate) -> Result<Self> {
        let listen = format!(
            "listen {on} ssl http2;\n    ssl_certificate {};\n    ssl_certificate_key {};\n    \
             ssl_protocols TLSv1.2 TLSv1.3;",
            certificate.certificate.display(),
            certificate.key.display()
        );
        Self::start(host, on, &listen)
    }

    /// Serves plain HTTP/1.1 at `on`.
    pub fn plain(host: &Host, on: SocketAddr) -> Result<Self> {
        Self::start(host, on, &format!("listen {on};"))
    }

    /// Serves over TLS at each of `on`, where a PROXY header must come first; see [`Nginx::clients`].
    pub fn behind_proxy(host: &Host, on: &[SocketAddr], certificate: &Certificate) -> Result<Self> {
        let first = *on.first().context("no address")?;
        let mut listen = String::new();
        for on in on {
            write!(listen, "listen {on} ssl http2 proxy_protocol;\n    ")?;
        }
        write!(
            listen,
            "ssl_certificate {};\n    ssl_certificate_key {};\n    real_ip_header proxy_protocol;\n    \
             set_real_ip_from 0.0.0.0/0;\n    set_real_ip_from ::/0;\n    access_log /dev/stdout clients;",
            certificate.certificate.display(),
            certificate.key.display()
        )?;
        let mut nginx = Self::start(host, first, &listen)?;
        nginx.process.wait_ready(SOON, || on.iter().all(|on| host.accepts(*on)))?;
        Ok(nginx)
    }

    /// Serves over TLS at the Unix socket `path`, where a PROXY header must come first, and in clear text at `on`; see
    /// [`Nginx::clients`].
    pub fn on_unix_socket(
        host: &Host,
        on: SocketAddr,
        path: &Path,
        certificate: &Certificate,
    ) -> Result<Self> {
        let listen = format!(
            "listen {on};\n    listen unix:{} ssl http2 proxy_protocol;\n    ssl_certificate {};\n    \
             ssl_certificate_key {};\n    real_ip_header proxy_protocol;\n    set_real_ip_from unix:;\n    \
             access_log /dev/stdout clients;",
            path.display(),
            certificate.certificate.display(),
            certificate.key.display()
        );
        Self::start(host, on, &listen)
    }

    /// Each request in the log of [`Nginx::behind_proxy`] and [`Nginx::on_unix_socket`]: the path, the client and the address that it
    /// connected to.
    pub fn clients(&self) -> Result<Vec<[String; 3]>> {
        words_after(&self.process.whole_log()?, "client-log ")
    }

    fn start(host: &Host, on: SocketAddr, listen: &str) -> Result<Self> {
        let directory = host.directory().join(format!("nginx-{}", on.port()));
        let files = directory.join("files");
        for wanted in [&directory, &files] {
            std::fs::create_dir_all(wanted)?;
        }
        let config = directory.join("nginx.conf");
        let text = format!(
            "user root;\ndaemon off;\nmaster_process off;\nworker_rlimit_nofile 8192;\nerror_log stderr warn;\n\
             pid {dir}/pid;\nevents {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  \
             log_format clients 'client-log $request_uri [$remote_addr]:$remote_port \
             [$proxy_protocol_server_addr]:$proxy_protocol_server_port';\n  default_type application/octet-stream;\n  types {{ text/html html; }}\n  \
             client_max_body_size 0;\n  client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  \
             fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n  \
             server {{\n    {listen}\n    root {files};\n    add_header X-Service nginx always;\n    \
             add_header X-Host $host always;\n  }}\n}}\n",
            dir = directory.display(),
            files = files.display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&config).arg("-p").arg(&directory).args(["-e", "stderr"]);
        let mut process = host.spawn(&format!("nginx-{}", on.port()), command)?;
        process.wait_ready(SOON, || host.accepts(on))?;
        Ok(Self { process, files })
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
