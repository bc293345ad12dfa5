//! nginx's stream module with `ssl_preread`.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use lab::require;

use super::{Running, System, absent, debian, home, version_of};
use crate::bench::rig::{Rig, TLS, WEB};

/// Where Debian has the module.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// nginx with buffers of one size.
pub(super) struct Nginx {
    name: String,
    /// `None` for Debian's.
    program: Option<PathBuf>,
    buffer: &'static str,
}

impl Nginx {
    /// `16k` is the default.
    pub(super) fn buffers(buffer: &'static str) -> Self {
        Self { name: format!("nginx-{buffer}"), program: None, buffer }
    }

    /// Another build of it, with the default buffers.
    pub(super) fn binary(path: &Path) -> Self {
        Self { name: format!("path:{}", path.display()), program: Some(path.to_owned()), buffer: "16k" }
    }

    fn program(&self) -> Option<PathBuf> {
        self.program.clone().or_else(|| require::find("nginx"))
    }

    /// Debian has the stream module in a file of its own; others build it in.
    fn has_stream_built_in(&self) -> bool {
        let output = self.program().and_then(|program| Command::new(program).arg("-V").output().ok());
        let text = output.map(|output| output.stderr).unwrap_or_default();
        String::from_utf8_lossy(&text).split_whitespace().any(|word| word == "--with-stream")
    }
}

impl System for Nginx {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> String {
        format!("nginx stream with ssl_preread, {} buffers", self.buffer)
    }

    fn missing(&self, _: &Rig) -> Option<String> {
        let program = match &self.program {
            Some(path) => absent(path),
            None => debian("nginx", "nginx"),
        };
        program.or_else(|| {
            (!self.has_stream_built_in() && !Path::new(MODULE).is_file())
                .then(|| format!("{MODULE} is missing: apt-get install libnginx-mod-stream"))
        })
    }

    fn start<'a>(&self, rig: &'a Rig) -> Result<Running<'a>> {
        let stem = self.name.replace('/', "-");
        let config = rig.lab.file(&format!("{stem}.conf"), self.configuration(rig))?;
        let mut command = rig.edge_command(self.program().context("nginx is gone")?);
        command
            .arg("-p")
            .arg(rig.lab.directory())
            .args(["-e", "stderr", "-g", "daemon off;", "-c"])
            .arg(config);
        Running::program(rig, &stem, command)
    }

    fn version(&self) -> Option<String> {
        version_of(&self.program()?, "-v")
    }

    fn configuration(&self, rig: &Rig) -> String {
        let (orders, handshakes) = home(rig);
        let edge = rig.lab.edge.v4;
        let module =
            if self.has_stream_built_in() { String::new() } else { format!("load_module {MODULE};\n") };
        // Debian's 768 connections per worker would end the tests of many connections early. Without
        // half-close, the end of an upload would also close the way back, and the client would miss the
        // receipt.
        format!(
            "{module}user root;\nworker_processes auto;\nworker_rlimit_nofile 20000;\n\
             pid nginx.pid;\nevents {{ worker_connections 19900; }}\n\
             stream {{\n  map $ssl_preread_server_name $home {{\n    {WEB} {orders};\n    {TLS} {handshakes};\n  }}\n  \
             server {{\n    listen {edge}:443 backlog=4096;\n    ssl_preread on;\n    proxy_pass $home;\n    \
             proxy_buffer_size {};\n    proxy_half_close on;\n    proxy_timeout 1h;\n  }}\n}}\n",
            self.buffer
        )
    }
}
