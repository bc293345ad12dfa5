//! The rights that the daemon and its keeper drop before the daemon reads a byte from the network.
//!
//! Each step goes as far as the machine allows: a right that cannot be dropped is among the findings, and the
//! daemon serves all the same.

mod landlock;
mod seccomp;
mod user;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use ::landlock::RulesetStatus;

pub use self::user::{Account, USER};
use self::{landlock::View, seccomp::For};
use super::{
    Finding, State, admin,
    capability::{self, Duty},
    keeper,
};

/// Where other programs keep what is behind `/etc/resolv.conf`.
const RESOLVERS: [&str; 4] =
    ["/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman"];
/// Paths that everybody may read, and that the daemon reads: names, devices, processors.
const PUBLIC: [&str; 4] = ["/etc", "/proc", "/sys", "/dev/urandom"];
/// Where user-space implementations of `WireGuard` listen.
const WIREGUARD: [&str; 2] = ["/run/wireguard", "/var/run/wireguard"];
const NOWHERE: &str = "/dev/null";

/// Files that the daemon must still reach after it has dropped all other access.
#[derive(Clone, Debug)]
pub struct Confines<'a> {
    /// The configuration file: read again at a reload.
    pub config: &'a Path,
    /// The runtime state.
    pub state_dir: &'a Path,
    /// The control socket, whose file the daemon removes at its end.
    pub control: &'a Path,
    /// The access log, where it is a file.
    pub access_log: Option<&'a Path>,
    /// Files that the configuration names, to be read anew when they change.
    pub lists: &'a [PathBuf],
    /// Whether there is a process that keeps what is given up.
    pub has_keeper: bool,
}

/// Files that the keeper must still reach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keeping<'a> {
    /// The directory of everything pinned.
    pub(super) pins: &'a Path,
    /// BPF objects that replace the embedded ones.
    pub(super) objects: Option<&'a Path>,
}

/// Gives what the daemon writes to the account that it is about to become.
pub fn give(confines: &Confines<'_>, account: &Account) {
    let given = account.own_directory(confines.state_dir);
    if let Err(error) = given {
        tracing::warn!(path = %confines.state_dir.display(), %error, "cannot be given to the user {USER}");
    }
    if let Some(path) = confines.access_log
        && let Err(error) = account.own_new_file(path)
    {
        tracing::warn!(path = %path.display(), %error, "cannot be given to the user {USER}");
    }
}

/// Drops all rights that serving does not need. Must be called while this is the only thread: later threads
/// inherit the restrictions. Returns the findings for doctor.
pub fn enter(confines: &Confines<'_>, account: Option<&Account>) -> Vec<Finding> {
    let files = landlock::enter(&view(confines));
    let became = account.map(Account::become_it);
    let mut duties = vec![Duty::LowPorts, Duty::Network, Duty::Pipes];
    if !confines.has_keeper {
        duties.push(Duty::Bpf);
    } else if keeper::maps_need_rights() {
        duties.push(Duty::Maps);
    }
    let left = capability::keep_only(&duties);
    let calls = seccomp::enter(For::Daemon);
    // Only now, so that the thread which keeps CAP_NET_ADMIN has all of the above too.
    let netlink = admin::start().and_then(|()| {
        duties.retain(|duty| !matches!(duty, Duty::Network | Duty::Bpf));
        capability::keep_only(&duties).map(drop).map_err(io::Error::other)
    });
    vec![
        who(became, &left),
        calls_finding(&calls),
        files_finding(files.as_ref()),
        netlink_finding(&netlink),
        configuration(confines.config),
    ]
}

/// Restricts a thread that has `CAP_NET_ADMIN` further: see [`admin`].
pub(super) fn confine_admin() -> io::Result<()> {
    seccomp::enter_admin()
}

/// The same for the keeper, which has nothing that reads the network.
pub(super) fn enter_keeper(keeping: &Keeping<'_>) {
    let read = PUBLIC.iter().chain(&WIREGUARD).map(PathBuf::from).chain(keeping.objects.map(Path::to_owned));
    let change = vec![keeping.pins.to_owned(), NOWHERE.into()];
    let view = View { read: read.collect(), change, abstract_sockets: false };
    if let Err(error) = landlock::enter(&view) {
        tracing::warn!(%error, "the privileged process sees all files");
    }
    if let Err(error) = capability::keep_only(&[Duty::Bpf]) {
        tracing::warn!(%error, "the privileged process runs on with all its rights");
    }
    if let Err(error) = seccomp::enter(For::Keeper) {
        tracing::warn!(%error, "the privileged process may make any system call");
    }
}

fn view(confines: &Confines<'_>) -> View {
    let directory = |path: &Path| match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    };
    let mut read: Vec<_> = PUBLIC.iter().chain(&RESOLVERS).map(PathBuf::from).collect();
    read.extend(fs::canonicalize("/etc/resolv.conf").ok().map(|target| directory(&target)));
    // Files are replaced, so that what counts is the directory.
    read.push(directory(confines.config));
    read.extend(confines.lists.iter().map(|list| directory(list)));
    let mut change = vec![confines.state_dir.to_owned(), directory(confines.control), NOWHERE.into()];
    change.extend(confines.access_log.map(directory));
    // `sd_notify(3)`: the at sign stands for the zero of an abstract name.
    let abstract_sockets =
        env::var_os("NOTIFY_SOCKET").is_some_and(|path| path.as_encoded_bytes().starts_with(b"@"));
    View { read, change, abstract_sockets }
}

fn who(
    became: Option<io::Result<()>>,
    left: &Result<std::collections::HashSet<capability::Capability>, capability::CapabilityError>,
) -> Finding {
    let name = "user";
    let rights = match left {
        Ok(left) if left.is_empty() => "without capabilities".to_owned(),
        Ok(left) => {
            let mut names: Vec<_> = left.iter().map(ToString::to_string).collect();
            names.sort();
            format!("with {}", names.join(", "))
        }
        Err(error) => format!("with all its capabilities ({error})"),
    };
    let uid = rustix::process::geteuid().as_raw();
    let limited = |words| Finding::new(name, State::Limited, words);
    match became {
        Some(Err(error)) => {
            limited(format!("still runs as uid {uid}, {rights}: it cannot become {USER}: {error}"))
                .remedy("start edged with CAP_SETUID and CAP_SETGID, as its unit does")
        }
        None if uid == 0 => {
            limited(format!("runs as root, {rights}: there is no user {USER}")).remedy(format!(
                "`useradd --system --no-create-home --shell /usr/sbin/nologin {USER}`, then restart edged"
            ))
        }
        _ if left.is_err() => limited(format!("runs as uid {uid}, {rights}")),
        _ => Finding::new(name, State::Good, format!("runs as uid {uid}, {rights}")),
    }
}

fn calls_finding(calls: &io::Result<()>) -> Finding {
    match calls {
        Ok(()) => Finding::new("system calls", State::Good, "none but those that serving takes (seccomp)"),
        Err(error) => Finding::new("system calls", State::Limited, format!("not filtered: {error}")),
    }
}

fn files_finding(files: Result<&RulesetStatus, &::landlock::RulesetError>) -> Finding {
    let name = "files";
    match files {
        Ok(RulesetStatus::FullyEnforced) => {
            Finding::new(name, State::Good, "none but its own and public ones (Landlock)")
        }
        Ok(RulesetStatus::PartiallyEnforced) => Finding::new(
            name,
            State::Good,
            "none but its own and public ones (Landlock of an older kernel: signals are not kept inside)",
        ),
        Ok(RulesetStatus::NotEnforced) => Finding::new(
            name,
            State::Limited,
            "this kernel has no Landlock: only users and modes protect files",
        )
        .remedy("use a kernel with Landlock (5.13 or later, `lsm=` with landlock)"),
        Err(error) => Finding::new(name, State::Limited, format!("not confined: {error}")),
    }
}

fn netlink_finding(netlink: &io::Result<()>) -> Finding {
    match netlink {
        Ok(()) => {
            Finding::new("netlink", State::Good, "devices, routes and the firewall are read, not changed")
        }
        Err(error) => {
            Finding::new("netlink", State::Limited, format!("devices and routes can be changed: {error}"))
        }
    }
}

/// Whether a reload will be able to read the file.
fn configuration(config: &Path) -> Finding {
    let name = "configuration file";
    match fs::File::open(config) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let shown = config.display();
            Finding::new(
                name,
                State::Limited,
                format!("{shown} cannot be read by the user that edged runs as: a reload will fail"),
            )
            .remedy(format!("chgrp {USER} {shown} && chmod g+r {shown}, and its directory likewise"))
        }
        _ => Finding::new(name, State::Good, format!("{} can be read again", config.display())),
    }
}
