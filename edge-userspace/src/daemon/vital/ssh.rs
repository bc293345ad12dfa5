//! The ports on which operators log in: from sshd's configuration files, its command line, and the systemd units that
//! listen for it. Without privileges edged cannot find out which program a socket belongs to.
//!
//! Under edged.service other programs' command lines are hidden (`ProtectProc=invisible`).

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The port of sshd where nothing else is said, and of other SSH servers.
const USUAL: u16 = 22;
const FILE: &str = "/etc/ssh/sshd_config";
const DIRECTORY: &str = "/etc/ssh/sshd_config.d";
/// Units of socket activation, and where systemd looks for them and for their drop-ins (systemd.unit(5)).
const UNITS: [&str; 2] = ["ssh.socket", "sshd.socket"];
const UNIT_DIRECTORIES: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/run/systemd/generator",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// Configuration files of sshd are shorter.
const LONGEST: u64 = 1 << 20;

/// The ports as read with root's rights: some distributions keep the file to root.
static AT_START: OnceLock<BTreeSet<u16>> = OnceLock::new();

/// Reads the ports as long as there is the right to. To be called before rights are given up.
pub(in crate::daemon) fn remember_ports() {
    AT_START.get_or_init(read);
}

/// Every port by which an operator may be logged in.
pub(super) fn ports() -> BTreeSet<u16> {
    let mut ports = read();
    ports.extend(AT_START.get().into_iter().flatten());
    ports.insert(USUAL);
    ports
}

fn read() -> BTreeSet<u16> {
    let mut files = vec![PathBuf::from(FILE)];
    files.extend(within(Path::new(DIRECTORY)));
    let mut ports = BTreeSet::new();
    for command in commands() {
        let Started { given, file } = started(&command);
        ports.extend(given);
        files.extend(file);
    }
    ports.extend(files.into_iter().filter_map(text).flat_map(|text| configured(&text)));
    let units =
        UNIT_DIRECTORIES.iter().flat_map(|directory| UNITS.map(|unit| Path::new(directory).join(unit)));
    let settings = units.flat_map(|unit| {
        let mut drop_ins = unit.clone().into_os_string();
        drop_ins.push(".d");
        [unit].into_iter().chain(within(Path::new(&drop_ins)))
    });
    ports.extend(settings.filter_map(text).flat_map(|text| activated(&text)));
    ports
}

/// The text of a plain file. Never waits: the name may be that of a pipe or a device.
fn text(path: PathBuf) -> Option<String> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let mut text = String::new();
    file.metadata().ok()?.is_file().then(|| file.take(LONGEST).read_to_string(&mut text).ok())??;
    Some(text)
}

/// The entries of a directory; none if it cannot be read.
fn within(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The command lines of root's sshd processes that edged can see. Any user may give a program that name.
fn commands() -> Vec<String> {
    let of = |process: PathBuf| {
        let is_sshd = fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim_end() == "sshd");
        let is_roots = || fs::read_to_string(process.join("status")).is_ok_and(|status| is_roots(&status));
        (is_sshd && is_roots()).then(|| fs::read(process.join("cmdline")).ok())?
    };
    let text = |line: Vec<u8>| String::from_utf8_lossy(&line).into_owned();
    within(Path::new("/proc")).filter_map(of).map(text).collect()
}

/// Whether all four user ids of a process are root's, by its `status` in `/proc` (`proc_pid_status(5)`). The owner of its
/// directory says less: it is root for every process that may not be traced.
fn is_roots(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    ids.is_some_and(|ids| ids.split_whitespace().all(|id| id == "0"))
}

/// The arguments that sshd was started with.
#[derive(Debug, Default, PartialEq)]
struct Started {
    given: Vec<u16>,
    file: Option<PathBuf>,
}

/// `-p`, `-o` and `-f` of sshd(8), each with its value attached or in the next word. A listening sshd replaces its
/// command line with a title, in which spaces separate the words.
fn started(command: &str) -> Started {
    let mut found = Started::default();
    let mut words = command.split(['\0', ' ']);
    while let Some(word) = words.next() {
        let Some((option, attached)) = word.split_at_checked(2) else { continue };
        let mut value =
            || if attached.is_empty() { words.next().map(str::to_owned) } else { Some(attached.to_owned()) };
        match option {
            "-p" => found.given.extend(value().and_then(|port| port.parse::<u16>().ok())),
            "-o" => found.given.extend(value().iter().flat_map(|line| configured(line))),
            "-f" => found.file = value().map(PathBuf::from),
            _ => {}
        }
    }
    found
}

/// `ListenStream` of systemd.socket(5): a port, or an address with one.
fn activated(text: &str) -> Vec<u16> {
    let port = |line: &str| {
        let (key, value) = line.trim().split_once('=')?;
        let value = value.trim();
        let is_other = value.starts_with(['/', '@']) || value.starts_with("vsock:");
        let port = value.rsplit_once(':').map_or(value, |(_, port)| port);
        (key.trim() == "ListenStream" && !is_other).then(|| port.parse().ok())?
    };
    text.lines().filter_map(port).collect()
}

/// `Port` and `ListenAddress` of `sshd_config(5)`.
fn configured(text: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut words = line.split(|c: char| c.is_whitespace() || c == '=').filter(|word| !word.is_empty());
        let (key, value) = (words.next()?, words.next()?.trim_matches('"'));
        if key.eq_ignore_ascii_case("port") {
            value.parse().ok()
        } else if key.eq_ignore_ascii_case("listenaddress") {
            // `host:port`, `192.0.2.1:port`, `[2001:db8::1]:port`; an IPv6 address without brackets has no port.
            let (host, port) = value.rsplit_once(':')?;
            (!host.contains(':') || host.ends_with(']')).then(|| port.parse().ok())?
        } else {
            None
        }
    };
    text.lines().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_sshd_reads_them() {
        let text = "#Port 21\nPort 2222\n  port=\"2200\"\nListenAddress 192.0.2.1:2201\nListenAddress [2001:db8::1]:2202\n\
                    ListenAddress 2001:db8::1\nListenAddress 0.0.0.0\nListenAddress host:2203 rdomain x\nPort\nPort x\n";
        assert_eq!(configured(text), [2222, 2200, 2201, 2202, 2203]);
    }

    #[test]
    fn only_roots_sshd_counts() {
        assert!(is_roots("Name:\tsshd\nUid:\t0\t0\t0\t0\nGid:\t33\t33\t33\t33\n"));
        assert!(!is_roots("Name:\tsshd\nUid:\t33\t0\t33\t33\n"));
        assert!(!is_roots("Name:\tsshd\n"));
    }

    #[test]
    fn what_is_no_plain_file_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sshd_config");
        fs::write(&path, "Port 2222\n").unwrap();
        assert_eq!(text(path).as_deref(), Some("Port 2222\n"));
        for other in ["/dev/zero", "/dev/null", "/proc", "/nowhere"] {
            assert_eq!(text(other.into()), None, "{other}");
        }
    }

    #[test]
    fn a_command_line_says_more_than_the_file() {
        let line = "sshd: /usr/sbin/sshd -D -p 2222 -p2223 -o Port=2224 -oPort=2225 -f /etc/other [listener] 0 of 10-100 startups";
        for line in [line.to_owned(), line.replace(' ', "\0")] {
            let found = started(&line);
            assert_eq!((found.given, found.file), (vec![2222, 2223, 2224, 2225], Some("/etc/other".into())));
        }
        assert_eq!(started("sshd: root@pts/0"), Started::default());
        assert_eq!(started("sshd -p"), Started::default());
    }

    #[test]
    fn units_that_listen_for_sshd_are_read() {
        let text = "[Socket]\nListenStream=\nListenStream=2222\n ListenStream = 0.0.0.0:2223\nListenStream=[::]:2224\n\
                    ListenStream=/run/ssh.sock\nListenStream=vsock::22\nAccept=no\n#ListenStream=9\n";
        assert_eq!(activated(text), [2222, 2223, 2224]);
    }
}
