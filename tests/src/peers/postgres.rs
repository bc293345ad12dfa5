//! PostgreSQL: a database whose clients begin in clear text and go over to TLS.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result};

use crate::{Host, certificates::Certificate, process::Process, wait::SOON};

/// A running PostgreSQL with a superuser `lab` that everybody may be.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
}

impl Postgres {
    /// Listens at `on`, with TLS.
    pub fn start(host: &Host, on: SocketAddr, certificate: &Certificate) -> Result<Self> {
        let folder = host.directory().join("postgres");
        let data = folder.join("data");
        fs::create_dir_all(&folder)?;
        // The server does not run as root, and its key must be its own.
        let (user, group) = owner(host)?;
        chown(&folder, Some(user), Some(group))?;
        let programs = programs()?;
        let run = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={user}"), format!("--regid={group}")]).arg("--clear-groups");
            command.arg(programs.join(program)).arg("-D").arg(&data).current_dir(&folder);
            command
        };
        let mut init = run("initdb");
        init.args(["--username=lab", "--auth=trust", "--no-sync", "--no-instructions", "--locale=C"]);
        host.text_within(init, 4 * SOON)?;
        for (from, to) in [(&certificate.certificate, "server.crt"), (&certificate.key, "server.key")] {
            let to = data.join(to);
            fs::copy(from, &to)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
            chown(&to, Some(user), Some(group))?;
        }
        fs::write(data.join("pg_hba.conf"), "hostssl all all all trust\n")?;
        let mut command = run("postgres");
        for setting in [
            "ssl=on".to_owned(),
            "fsync=off".to_owned(),
            format!("listen_addresses={}", on.ip()),
            format!("port={}", on.port()),
            format!("unix_socket_directories={}", folder.display()),
        ] {
            command.arg("-c").arg(setting);
        }
        let mut process = host.spawn("postgres", command)?;
        let log = process.log_file().to_owned();
        process.wait_ready(SOON, || {
            // It accepts earlier, to say that it is still starting up.
            fs::read_to_string(&log).is_ok_and(|text| text.contains("ready to accept connections"))
                && host.accepts(on)
        })?;
        Ok(Self { process })
    }

    /// Its log so far.
    pub fn log(&self) -> Result<String> {
        self.process.whole_log()
    }
}

/// User and group of Debian's package.
fn owner(host: &Host) -> Result<(u32, u32)> {
    let id = |which| -> Result<u32> {
        let mut command = Command::new("id");
        command.args([which, "postgres"]);
        Ok(host.text_of(command)?.trim().parse()?)
    };
    Ok((id("-u")?, id("-g")?))
}

/// Where the newest version has its programs, which are in no `PATH`.
fn programs() -> Result<PathBuf> {
    let versions =
        fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL: apt-get install postgresql")?;
    let folders = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    folders.filter(|folder| folder.join("initdb").is_file()).max().context("no initdb")
}
