//! HAProxy: as Debian has it with nothing tuned, and tuned for this job, which is the real rival.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Running, System, absent, debian, home, version_of};
use crate::bench::rig::{Rig, TLS, WEB};

/// HAProxy.
pub(super) struct Haproxy {
    name: String,
    program: PathBuf,
    tuned: bool,
}

impl Haproxy {
    pub(super) fn defaults() -> Self {
        Self { name: "haproxy".to_owned(), program: "haproxy".into(), tuned: false }
    }

    pub(super) fn tuned() -> Self {
        Self { name: "haproxy-tuned".to_owned(), program: "haproxy".into(), tuned: true }
    }

    /// Another build of it, untuned.
    pub(super) fn binary(path: &Path) -> Self {
        Self { name: format!("path:{}", path.display()), program: path.to_owned(), tuned: false }
    }
}

impl System for Haproxy {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> String {
        if self.tuned {
            "HAProxy with large buffers and pipes and forced splicing".to_owned()
        } else {
            "HAProxy, TCP mode with SNI, defaults".to_owned()
        }
    }

    fn missing(&self, _: &Rig) -> Option<String> {
        if self.program.is_absolute() { absent(&self.program) } else { debian("haproxy", "haproxy") }
    }

    fn start<'a>(&self, rig: &'a Rig) -> Result<Running<'a>> {
        let stem = self.name.replace('/', "-");
        let config = rig.lab.file(&format!("{stem}.cfg"), self.configuration(rig))?;
        let mut command = rig.edge_command(&self.program);
        command.arg("-db").arg("-f").arg(config);
        Running::program(rig, &stem, command)
    }

    fn version(&self) -> Option<String> {
        version_of(&self.program, "-v")
    }

    fn configuration(&self, rig: &Rig) -> String {
        let (orders, handshakes) = home(rig);
        let edge = rig.lab.edge.v4;
        // nbthread is the number of processors by itself since 2.5.
        let (global, options) = if self.tuned {
            (
                "  tune.bufsize 65536\n  tune.pipesize 1048576\n",
                "  option splice-request\n  option splice-response\n",
            )
        } else {
            ("", "")
        };
        format!(
            "global\n{global}\
             defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n{options}\
             frontend edge\n  bind {edge}:443\n  tcp-request inspect-delay 5s\n  \
             tcp-request content accept if {{ req.ssl_hello_type 1 }}\n  \
             use_backend web if {{ req.ssl_sni -i {WEB} }}\n  use_backend tls if {{ req.ssl_sni -i {TLS} }}\n\
             backend web\n  server home {orders}\nbackend tls\n  server home {handshakes}\n"
        )
    }
}
