//! lego: an ACME client that is run for each certificate, as beside a web server without one.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use super::Pebble;
use crate::{Host, certificates::Certificate, wait::SOON};

/// The ACME client of one host, with its account.
#[derive(Debug)]
pub struct Lego<'a> {
    host: &'a Host,
    authority: &'a Pebble,
    folder: PathBuf,
}

impl<'a> Lego<'a> {
    /// On `host`, with an account at `authority`.
    pub fn new(host: &'a Host, authority: &'a Pebble) -> Self {
        Self { host, authority, folder: host.directory().join("lego") }
    }

    /// Obtains a certificate for `name`; `challenge` is how, like `--tls --tls.port :10443`.
    pub fn obtain(&self, name: &str, challenge: &[&str]) -> Result<Certificate> {
        self.run(name, challenge, &["run"])
    }

    /// Renews it, however long it would still be valid.
    pub fn renew(&self, name: &str, challenge: &[&str]) -> Result<Certificate> {
        self.run(name, challenge, &["renew", "--days", "36500", "--no-random-sleep"])
    }

    fn run(&self, name: &str, challenge: &[&str], action: &[&str]) -> Result<Certificate> {
        let mut lego = Command::new("lego");
        lego.args(["--accept-tos", "--email", "home@home.example", "--domains", name]);
        lego.args(["--server", &self.authority.directory()]).arg("--path").arg(&self.folder);
        lego.env("LEGO_CA_CERTIFICATES", &self.authority.trust).args(challenge).args(action);
        self.host.text_within(lego, 4 * SOON)?;
        let file = |extension| self.folder.join("certificates").join(format!("{name}.{extension}"));
        Ok(Certificate { certificate: file("crt"), key: file("key") })
    }
}
