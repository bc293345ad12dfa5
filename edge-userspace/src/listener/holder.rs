//! Which process listens on an address, found as `ss -p` finds it: by the inode of the socket.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// The state of a listening socket in `/proc/net/tcp` (`TCP_LISTEN` of the kernel's `tcp_states.h`).
const LISTEN: &str = "0A";

/// A process that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub process: u32,
    /// Its name (`comm`).
    pub name: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.process)
    }
}

/// The process whose listening socket keeps `address` from being bound.
///
/// `None` if it cannot be found: the kernel shows other users' open files only with `CAP_SYS_PTRACE`. edged
/// does not have it, but root, who calls `edgectl`, does.
pub fn holder(address: SocketAddr) -> Option<Holder> {
    let sockets: Vec<String> = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| {
            let rivals = listening(&table).filter(|(other, _)| is_rival(address, *other));
            rivals.map(|(_, inode)| format!("socket:[{inode}]")).collect::<Vec<_>>()
        })
        .collect();
    if sockets.is_empty() {
        return None;
    }
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let process = ids.filter(|id| *id != std::process::id()).find(|id| has_one_of(*id, &sockets))?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
    Some(Holder { process, name: name.trim().to_owned() })
}

fn has_one_of(process: u32, sockets: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    descriptors.flatten().any(|descriptor| {
        fs::read_link(descriptor.path())
            .is_ok_and(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    })
}

/// Whether a socket on one address keeps another from being bound to the other one.
fn is_rival(ours: SocketAddr, theirs: SocketAddr) -> bool {
    let (our, their) = (ours.ip().to_canonical(), theirs.ip().to_canonical());
    ours.port() == theirs.port() && (our == their || our.is_unspecified() || their.is_unspecified())
}

/// Parses the listening sockets of `/proc/net/tcp` or `/proc/net/tcp6`, with their inodes.
fn listening(table: &str) -> impl Iterator<Item = (SocketAddr, u64)> {
    table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        (*state == LISTEN).then_some(())?;
        Some((socket_address(local)?, inode.parse().ok()?))
    })
}

/// `0100007F:01BB`: the address as words in the machine's byte order, although it is stored in network order.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Vec<[u8; 4]> = (0..ip.len() / 8)
        .map(|word| u32::from_str_radix(ip.get(8 * word..8 * word + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect::<Option<_>>()?;
    let ip = match *words {
        [v4] => IpAddr::from(v4),
        [a, b, c, d] => {
            let octets: [u8; 16] = [a, b, c, d].concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_tables_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   \
                     1: 0100007F:01BB 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 4712 1\n   \
                     2: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 0A \
                     00000000:00000000 00:00000000 00000000     0        0 4713 1\nbroken\n";
        let found: Vec<_> = listening(table).collect();
        let expected = [("127.0.0.1:443", 4711), ("[2001:db8::1]:80", 4713)];
        assert_eq!(found, expected.map(|(address, inode)| (address.parse().unwrap(), inode)));
    }

    #[test]
    fn an_address_is_kept_busy_by_itself_and_by_all_addresses() {
        let rivals = |ours: &str, theirs: &str| is_rival(ours.parse().unwrap(), theirs.parse().unwrap());
        assert!(rivals("[::]:443", "127.0.0.1:443"));
        assert!(rivals("10.0.0.1:443", "0.0.0.0:443"));
        assert!(rivals("10.0.0.1:443", "[::ffff:10.0.0.1]:443"));
        assert!(!rivals("10.0.0.1:443", "10.0.0.2:443"));
        assert!(!rivals("[::]:443", "[::]:80"));
    }

    #[test]
    fn the_sockets_of_this_process_are_not_another_programs() {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(holder(own.local_addr().unwrap()), None);
    }
}
