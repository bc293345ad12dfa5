//! Real TLS clients, one for each common TLS library. Each fetches a path from a host name that resolves to
//! the edge, verifies the certificate, and returns the bytes of the body.

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{Host, certificates::Authority, wait::SOON};

/// Chromium starts slowly on a loaded machine.
const BROWSER: Duration = Duration::from_secs(90);

/// A fetch: the client, the server and the URL.
#[derive(Clone, Copy)]
pub struct Fetch<'a> {
    /// The client's host.
    pub from: &'a Host,
    /// The edge.
    pub edge: SocketAddr,
    /// The name asked for.
    pub name: &'a str,
    /// The path asked for.
    pub path: &'a str,
    /// Whom the client trusts.
    pub authority: &'a Authority,
}

impl Fetch<'_> {
    /// curl (OpenSSL), with the options given, like `--http2`.
    pub fn curl(&self, options: &[&str]) -> Result<Vec<u8>> {
        let resolve = format!("{}:{}:{}", self.name, self.edge.port(), bracketed(self.edge));
        let url = format!("https://{}:{}{}", self.name, self.edge.port(), self.path);
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail", "--resolve", &resolve, "--cacert"]);
        curl.arg(&self.authority.file).args(options).arg(url);
        self.run(curl, b"")
    }

    /// `openssl s_client`, with the options given, like `-tls1_2`.
    pub fn openssl(&self, options: &[&str]) -> Result<Vec<u8>> {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname", self.name]);
        openssl.args(["-servername", self.name, "-connect", &self.edge.to_string(), "-CAfile"]);
        openssl.arg(&self.authority.file).args(options);
        body(&self.run(openssl, self.request().as_bytes())?)
    }

    /// `gnutls-cli`.
    pub fn gnutls(&self) -> Result<Vec<u8>> {
        let mut gnutls = Command::new("gnutls-cli");
        gnutls.args(["--logfile", "/dev/null", "--sni-hostname", self.name, "--verify-hostname", self.name]);
        gnutls.arg("--x509cafile").arg(&self.authority.file).arg("--port").arg(self.edge.port().to_string());
        gnutls.arg(self.edge.ip().to_string());
        body(&self.run(gnutls, self.request().as_bytes())?)
    }

    /// Python's `ssl` module.
    pub fn python(&self) -> Result<Vec<u8>> {
        const SCRIPT: &str = "
import socket, ssl, sys
name, address, port, authority = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
with socket.create_connection((address, int(port)), timeout=30) as plain:
    with context.wrap_socket(plain, server_hostname=name) as tls:
        tls.sendall(sys.stdin.buffer.read())
        while piece := tls.recv(65536):
            sys.stdout.buffer.write(piece)
";
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", SCRIPT, self.name]).arg(self.edge.ip().to_string());
        python.arg(self.edge.port().to_string()).arg(&self.authority.file);
        body(&self.run(python, self.request().as_bytes())?)
    }

    /// NSS, Firefox's library, by its test client.
    pub fn nss(&self) -> Result<Vec<u8>> {
        let database = self.from.directory().join("nss");
        trust(self.from, &database, &self.authority.file)?;
        let mut tstclnt = Command::new("tstclnt");
        tstclnt.args(["-4", "-h", &self.edge.ip().to_string(), "-p", &self.edge.port().to_string()]);
        tstclnt.args(["-a", self.name, "-d", &format!("sql:{}", database.display())]);
        let request = self.from.directory().join("nss-request");
        std::fs::write(&request, self.request())?;
        tstclnt.arg("-A").arg(request);
        body(&self.run(tstclnt, b"")?)
    }

    /// Loads the page in Chromium as a person's browser would; returns the document after its scripts ran.
    pub fn chromium(&self) -> Result<String> {
        let home = self.from.directory().join("chromium");
        trust(self.from, &home.join(".pki/nssdb"), &self.authority.file)?;
        let mut chromium = Command::new("chromium");
        chromium.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]);
        chromium.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        chromium.arg(format!("--user-data-dir={}", home.join("profile").display()));
        chromium.arg(format!("--host-resolver-rules=MAP {} {}", self.name, bracketed(self.edge)));
        chromium.args(["--virtual-time-budget=10000", "--dump-dom"]);
        chromium.arg(format!("https://{}:{}{}", self.name, self.edge.port(), self.path));
        chromium.env("HOME", &home);
        let output = self.from.output_of(chromium, b"", BROWSER)?;
        ensure!(output.status.success(), "chromium: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A request whose answer ends with the connection.
    fn request(&self) -> String {
        format!("GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.path, self.name)
    }

    fn run(&self, command: Command, input: &[u8]) -> Result<Vec<u8>> {
        let program = command.get_program().to_string_lossy().into_owned();
        let output = self.from.output_of(command, input, SOON)?;
        ensure!(
            output.status.success(),
            "{program}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }
}

/// An address as URLs and resolver rules want it.
fn bracketed(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}

/// The body of an answer, behind its head.
fn body(answer: &[u8]) -> Result<Vec<u8>> {
    let start = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let start = start.with_context(|| format!("no HTTP answer: {}", String::from_utf8_lossy(answer)))?;
    Ok(answer[start + 4..].to_vec())
}

/// Makes an NSS database that trusts the authority.
fn trust(host: &Host, database: &Path, authority: &Path) -> Result<()> {
    if database.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(database)?;
    let database = format!("sql:{}", database.display());
    for arguments in [
        &["-N", "--empty-password", "-d", &database][..],
        &["-A", "-n", "lab", "-t", "C,,", "-d", &database, "-i", &authority.to_string_lossy()],
    ] {
        let mut certutil = Command::new("certutil");
        certutil.args(arguments);
        host.text_of(certutil)?;
    }
    Ok(())
}
