//! Apache: a web server over TLS that wants a PROXY header (`mod_remoteip`).

use std::{fmt::Write, fs, net::SocketAddr, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use super::words_after;
use crate::{Host, certificates::Certificate, process::Process, require::find, wait::SOON};

/// Where Debian's package has its modules.
const MODULES: &str = "/usr/lib/apache2/modules";

/// A running Apache.
#[derive(Debug)]
pub struct Apache {
    _process: Process,
    folder: PathBuf,
}

impl Apache {
    /// Serves over TLS at `on`, where a PROXY header must come first.
    pub fn behind_proxy(host: &Host, on: SocketAddr, certificate: &Certificate) -> Result<Self> {
        let folder = host.directory().join(format!("apache-{}", on.port()));
        let files = folder.join("files");
        fs::create_dir_all(&files)?;
        fs::write(files.join("index.html"), "from Apache")?;
        let mut text = String::new();
        for module in ["mpm_event", "authz_core", "remoteip", "ssl", "socache_shmcb"] {
            writeln!(text, "LoadModule {module}_module {MODULES}/mod_{module}.so")?;
        }
        write!(
            text,
            "ServerRoot {dir}\nServerName lab\nPidFile {dir}/pid\nMutex fcntl:{dir}\nListen {on}\nUser nobody\n\
             Group nogroup\nErrorLog {dir}/error.log\nLogLevel info\nLogFormat \"client-log %U %a %{{c}}a\" clients\n\
             CustomLog {dir}/access.log clients\nDocumentRoot {files}\n\
             <VirtualHost *:{port}>\nRemoteIPProxyProtocol On\nSSLEngine on\nSSLCertificateFile {chain}\n\
             SSLCertificateKeyFile {key}\n</VirtualHost>\n",
            dir = folder.display(),
            files = files.display(),
            port = on.port(),
            chain = certificate.certificate.display(),
            key = certificate.key.display()
        )?;
        let config = folder.join("apache.conf");
        fs::write(&config, text)?;
        let mut command = Command::new(find("apache2").context("no apache2")?);
        command.arg("-f").arg(&config).args(["-D", "FOREGROUND"]);
        let mut process = host.spawn(&format!("apache-{}", on.port()), command)?;
        process.wait_ready(SOON, || {
            let mut sockets = Command::new("ss");
            sockets.args(["-Hltn", &format!("sport = :{}", on.port())]);
            // A connection would be in its log.
            host.text_of(sockets).is_ok_and(|text| !text.trim().is_empty())
        })?;
        Ok(Self { _process: process, folder })
    }

    /// Each request so far: the path, the client, and the peer of the connection.
    pub fn clients(&self) -> Result<Vec<[String; 3]>> {
        words_after(&fs::read_to_string(self.folder.join("access.log"))?, "client-log ")
    }

    /// The error log so far, from level `info` on.
    pub fn log(&self) -> Result<String> {
        let log = fs::read_to_string(self.folder.join("error.log"))?;
        ensure!(!log.is_empty(), "Apache logs its start");
        Ok(log)
    }
}
