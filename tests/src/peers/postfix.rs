//! Postfix: a mail server that wants a PROXY header, and takes some of them very ill.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{Host, process::Process, require::find, wait::SOON};

/// Where Debian's package has its daemons.
const DAEMONS: &str = "/usr/lib/postfix/sbin";
/// The directories that its daemons keep in the queue directory.
const QUEUES: [&str; 15] = [
    "pid", "public", "private", "maildrop", "incoming", "active", "hold", "deferred", "defer", "bounce",
    "corrupt", "flush", "saved", "trace", "data",
];

/// A running Postfix, whose smtpd starts behind a PROXY header.
#[derive(Debug)]
pub struct Postfix {
    _process: Process,
    log: PathBuf,
}

impl Postfix {
    /// Listens at `on`.
    pub fn start(host: &Host, on: SocketAddr) -> Result<Self> {
        let folder = host.directory().join("postfix");
        let queue = folder.join("spool");
        fs::create_dir_all(&queue)?;
        let owner = owner(host)?;
        for name in QUEUES {
            fs::create_dir_all(queue.join(name))?;
            if name != "pid" {
                chown(queue.join(name), Some(owner), None)?;
            }
        }
        let log = folder.join("mail.log");
        fs::write(folder.join("main.cf"), main(&folder, &queue, &log))?;
        fs::write(
            folder.join("master.cf"),
            format!(
                "{on} inet n - n - - smtpd\n  -o smtpd_upstream_proxy_protocol=haproxy\n\
                 postlog unix-dgram n - n - 1 postlogd\nanvil unix - - n - 1 anvil\n\
                 proxymap unix - - n - - proxymap\nrewrite unix - - n - - trivial-rewrite\n"
            ),
        )?;
        let mut command = Command::new(Path::new(DAEMONS).join("master"));
        command.arg("-c").arg(&folder).arg("-d").env("MAIL_CONFIG", &folder);
        command.env("POSTLOG_SERVICE", "postlog").env("POSTLOG_HOSTNAME", "a.example");
        let mut process = host.spawn("postfix", command)?;
        process.wait_ready(SOON, || {
            let mut sockets = Command::new("ss");
            sockets.args(["-Hltn", &format!("sport = :{}", on.port())]);
            // A connection would be in its log.
            host.text_of(sockets).is_ok_and(|listening| !listening.trim().is_empty())
        })?;
        Ok(Self { _process: process, log })
    }

    /// Its log of clients so far.
    pub fn log(&self) -> Result<String> {
        match fs::read_to_string(&self.log) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            text => Ok(text?),
        }
    }
}

fn main(folder: &Path, queue: &Path, log: &Path) -> String {
    let top = folder.parent().unwrap_or(folder);
    let (folder, queue) = (folder.display(), queue.display());
    format!(
        "compatibility_level = 3.6\nqueue_directory = {queue}\ndata_directory = {queue}/data\n\
         command_directory = /usr/sbin\ndaemon_directory = {DAEMONS}\nmeta_directory = {folder}\n\
         inet_interfaces = all\ninet_protocols = all\nmyhostname = a.example\nmynetworks = 127.0.0.0/8\n\
         local_recipient_maps =\nalias_maps =\nalias_database =\nmaillog_file = {}\nmaillog_file_prefixes = {}\n\
         import_environment = MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ POSTLOG_SERVICE POSTLOG_HOSTNAME\n",
        log.display(),
        top.display()
    )
}

/// The account of Debian's package.
fn owner(host: &Host) -> Result<u32> {
    find("postfix").context("no Postfix")?;
    let mut command = Command::new("id");
    command.args(["-u", "postfix"]);
    Ok(host.text_of(command)?.trim().parse()?)
}
