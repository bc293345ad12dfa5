//! sniproxy: one thread, made for nothing but this job.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Running, System, absent, debian, home, version_of};
use crate::bench::rig::{Rig, TLS, WEB};

/// sniproxy.
pub(super) struct Sniproxy {
    name: String,
    program: PathBuf,
}

impl Sniproxy {
    pub(super) fn debian() -> Self {
        Self { name: "sniproxy".to_owned(), program: "sniproxy".into() }
    }

    /// Another build of it.
    pub(super) fn binary(path: &Path) -> Self {
        Self { name: format!("path:{}", path.display()), program: path.to_owned() }
    }
}

impl System for Sniproxy {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> String {
        "sniproxy".to_owned()
    }

    fn missing(&self, _: &Rig) -> Option<String> {
        if self.program.is_absolute() { absent(&self.program) } else { debian("sniproxy", "sniproxy") }
    }

    fn start<'a>(&self, rig: &'a Rig) -> Result<Running<'a>> {
        let config = rig.lab.file("sniproxy.conf", self.configuration(rig))?;
        let mut command = rig.edge_command(&self.program);
        command.args(["-f", "-n", "19900", "-c"]).arg(config);
        Running::program(rig, "sniproxy", command)
    }

    fn version(&self) -> Option<String> {
        version_of(&self.program, "-V")
    }

    fn configuration(&self, rig: &Rig) -> String {
        let (orders, handshakes) = home(rig);
        let edge = rig.lab.edge.v4;
        let name = |name: &str| format!("^{}$", name.replace('.', "\\\\."));
        format!(
            "user root\npidfile sniproxy.pid\nlisten {edge}:443 {{\n  proto tls\n  table home\n}}\n\
             table home {{\n  {} {orders}\n  {} {handshakes}\n}}\n",
            name(WEB),
            name(TLS)
        )
    }
}
