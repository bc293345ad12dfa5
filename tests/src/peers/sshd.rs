//! OpenSSH: a server that lets one key in, and a client that has it.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{Host, process::Process, require::find, wait::SOON};

/// A running sshd.
#[derive(Debug)]
pub struct Sshd {
    process: Process,
    key: PathBuf,
}

impl Sshd {
    /// Listens at `on`.
    pub fn start(host: &Host, on: SocketAddr) -> Result<Self> {
        // Where it locks itself in before a login; Debian makes it when the service starts.
        std::fs::create_dir_all("/run/sshd")?;
        let folder = host.directory().join("sshd");
        std::fs::create_dir_all(&folder)?;
        let key = |name: &str| -> Result<PathBuf> {
            let file = folder.join(name);
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&file);
            host.text_of(keygen)?;
            Ok(file)
        };
        let (own, client) = (key("host")?, key("client")?);
        let config = folder.join("config");
        let text = format!(
            "ListenAddress {}\nPort {}\nHostKey {}\nAuthorizedKeysFile {}.pub\nPermitRootLogin yes\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n",
            on.ip(),
            on.port(),
            own.display(),
            client.display()
        );
        std::fs::write(&config, text)?;
        let mut command = Command::new(find("sshd").context("no sshd")?);
        command.args(["-D", "-e", "-f"]).arg(&config);
        let mut process = host.spawn("sshd", command)?;
        process.wait_ready(SOON, || host.accepts(on))?;
        Ok(Self { process, key: client })
    }

    /// Its log so far.
    pub fn log(&self) -> Result<String> {
        self.process.whole_log()
    }

    /// Runs a command there by the client on `from`, which connects to `to`; gives what it printed.
    pub fn run_from(&self, from: &Host, to: SocketAddr, command: &str) -> Result<String> {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        ssh.args(["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i"]).arg(&self.key);
        ssh.args(["-p", &to.port().to_string(), &format!("root@{}", to.ip()), command]);
        from.text_of(ssh)
    }
}
