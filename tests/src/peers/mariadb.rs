//! `MariaDB`: a database that shuts out a host whose connections break off too often.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::chown,
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{Host, process::Process, require::find, wait::SOON};

/// An account that is nobody's: the server does not run as root.
const ACCOUNT: u32 = 65_534;

/// A running `MariaDB` without accounts of its own.
#[derive(Debug)]
pub struct Mariadb {
    _process: Process,
}

impl Mariadb {
    /// Listens at `on`. A host is blocked after this many interrupted connections in a row, which requires a
    /// name for `client`.
    pub fn start(host: &Host, on: SocketAddr, client: IpAddr, max_connect_errors: u32) -> Result<Self> {
        let folder = host.directory().join("mariadb");
        let data = folder.join("data");
        fs::create_dir_all(&data)?;
        for path in [&folder, &data] {
            chown(path, Some(ACCOUNT), Some(ACCOUNT))?;
        }
        let hosts = folder.join("hosts");
        fs::write(&hosts, format!("127.0.0.1 localhost\n{client} edge.example\n"))?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "/bin/sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""])
            .arg(&hosts);
        command.arg("setpriv");
        command.args([format!("--reuid={ACCOUNT}"), format!("--regid={ACCOUNT}")]).arg("--clear-groups");
        command.arg(find("mariadbd").context("no mariadbd")?).arg("--no-defaults").arg("--skip-grant-tables");
        for (option, value) in [
            ("datadir", data.display().to_string()),
            ("socket", folder.join("socket").display().to_string()),
            ("pid-file", folder.join("pid").display().to_string()),
            ("bind-address", on.ip().to_string()),
            ("port", on.port().to_string()),
            ("max-connect-errors", max_connect_errors.to_string()),
            ("innodb-buffer-pool-size", "8M".to_owned()),
            ("innodb-log-file-size", "4M".to_owned()),
        ] {
            command.arg(format!("--{option}={value}"));
        }
        let mut process = host.spawn("mariadb", command)?;
        let log = process.log_file().to_owned();
        // A probe of the port would be one of those that break off.
        process.wait_ready(2 * SOON, || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains("ready for connections"))
        })?;
        Ok(Self { _process: process })
    }

    /// The first packet of the server: a greeting, or that the host is shut out.
    pub fn first_packet(stream: &mut TcpStream) -> Result<String> {
        let mut length = [0; 4];
        stream.read_exact(&mut length).context("reading MariaDB's first packet")?;
        let length = usize::from(length[0]) | usize::from(length[1]) << 8;
        ensure!((1..4096).contains(&length), "a packet of {length} bytes");
        let mut packet = vec![0; length];
        stream.read_exact(&mut packet)?;
        Ok(packet.escape_ascii().to_string())
    }
}
