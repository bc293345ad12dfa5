//! By which ports operators log in: sshd's own file says it. Whose a socket is, the kernel does not tell a daemon without
//! rights.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::OnceLock};

/// What sshd listens on where nothing else is said, and what other SSH servers do.
const USUAL: u16 = 22;
const FILE: &str = "/etc/ssh/sshd_config";
const DIRECTORY: &str = "/etc/ssh/sshd_config.d";

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
    files.extend(fs::read_dir(DIRECTORY).into_iter().flatten().flatten().map(|entry| entry.path()));
    let texts = files.iter().filter_map(|file| fs::read_to_string(file).ok());
    texts.flat_map(|text| configured(&text)).collect()
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
}
