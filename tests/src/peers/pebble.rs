//! Pebble: a certificate authority that speaks ACME (RFC 8555), made for tests.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{Host, Lab, certificates::Authority, process::Process, require::newer, wait::SOON};

const PORT: u16 = 14000;
const MANAGEMENT: u16 = 15000;
const NAMES_MANAGEMENT: u16 = 8055;

/// A running Pebble that challenges at ports 80 and 443, as the public authorities do.
#[derive(Debug)]
pub struct Pebble {
    _process: Process,
    _names: Process,
    address: IpAddr,
    /// The authority behind its own HTTPS certificate (PEM), for ACME clients to trust.
    pub trust: PathBuf,
}

impl Pebble {
    /// Runs on the client's host as if on the internet, resolves every name to the edge, and issues
    /// certificates that are valid for `validity`. Needs [`Need::Newer`](crate::require::Need::Newer).
    pub fn start(lab: &Lab, authority: &Authority, validity: Duration) -> Result<Self> {
        let host = &lab.client;
        let address = IpAddr::from(host.v4);
        let names = SocketAddr::new(address, 53);
        let mut command = Command::new(newer("pebble-challtestsrv").context("no name server of Pebble's")?);
        command.args(["-dnsserver", &names.to_string(), "-defaultIPv4", &lab.edge.v4.to_string()]);
        // Everything else that it does.
        for part in ["-defaultIPv6", "-http01", "-https01", "-tlsalpn01", "-doh"] {
            command.args([part, ""]);
        }
        command.args(["-management", &SocketAddr::new(address, NAMES_MANAGEMENT).to_string()]);
        let mut name_server = host.spawn("pebble-names", command)?;
        name_server.wait_ready(SOON, || host.accepts(names))?;
        let own = authority.issue(lab, &[&address.to_string()])?;
        let on = |port| SocketAddr::new(address, port).to_string();
        let config = json!({ "pebble": {
            "listenAddress": on(PORT),
            "managementListenAddress": on(MANAGEMENT),
            "certificate": own.certificate,
            "privateKey": own.key,
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "retryAfter": { "authz": 1, "order": 1 },
            "keyAlgorithm": "ecdsa",
            "profiles": { "default": { "description": "the lab's", "validityPeriod": validity.as_secs() } },
        }});
        let config = lab.file("pebble.json", config.to_string())?;
        let mut command = Command::new(newer("pebble").context("no Pebble")?);
        command.arg("-config").arg(config).args(["-dnsserver", &names.to_string()]);
        // Without these it waits up to 15 seconds before a challenge, and rejects some requests on purpose.
        command.envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "0")]);
        let mut process = host.spawn("pebble", command)?;
        process.wait_ready(SOON, || {
            [PORT, MANAGEMENT].into_iter().all(|port| host.accepts(SocketAddr::new(address, port)))
        })?;
        Ok(Self { _process: process, _names: name_server, address, trust: authority.file.clone() })
    }

    /// The URL that ACME clients are given.
    pub fn directory(&self) -> String {
        format!("https://{}/dir", SocketAddr::new(self.address, PORT))
    }

    /// The root of what it issues, as a file (PEM); `host` is where Pebble runs.
    pub fn root(&self, host: &Host) -> Result<PathBuf> {
        let file = host.directory().join("pebble-root.pem");
        let mut curl = Command::new("curl");
        curl.args(["-sSf", "--cacert"]).arg(&self.trust).arg("-o").arg(&file);
        curl.arg(format!("https://{}/roots/0", SocketAddr::new(self.address, MANAGEMENT)));
        host.text_of(curl)?;
        Ok(file)
    }
}
