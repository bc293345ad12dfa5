//! The kernel's connection tracking (`nf_conntrack`), through ctnetlink: deletes entries that connections no
//! longer need, and reads how full the table is.
//!
//! A stateful firewall tracks every connection of the machine, edged's included. It does not see the packets
//! of a flow, and so never sees its end. An entry would stay for five days
//! (`nf_conntrack_tcp_timeout_established`), and a small machine has room for a few thousand. Without
//! `nf_conntrack`, this module does nothing.
//!
//! An entry is identified by its addresses and its zone, which firewall rules may set (`ct zone set`). Zones
//! are learnt from entries, see [`zones`].
//!
//! Sources: `linux/netfilter/nfnetlink_conntrack.h`, `net/netfilter/nf_conntrack_netlink.c`.

mod zones;

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rtnetlink::sys::{Socket, protocols::NETLINK_NETFILTER};
use serde::{Deserialize, Serialize};

use self::zones::Zones;
use super::netlink_message::{self as netlink, CREATE, REQUEST, Writer};

// Kinds of messages: the subsystem is the upper byte.
const NEW: u16 = 1 << 8;
const DELETE: u16 = (1 << 8) | 2;

// Attributes.
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const TIMEOUT: u16 = 7;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const PROTOINFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
const TCP_FLAGS_ORIGINAL: u16 = 4;
const TCP_FLAGS_REPLY: u16 = 5;

/// `TCP_CONNTRACK_ESTABLISHED`.
const ESTABLISHED: u8 = 3;
/// `IP_CT_TCP_FLAG_BE_LIBERAL`: windows are not checked. Flags, then the mask of those that are set.
const BE_LIBERAL: [u8; 2] = [8, 8];
/// Status of an entry of [`Conntrack::admit`]: `IPS_SEEN_REPLY`, by which packets of both directions count as
/// established; `IPS_CONFIRMED`, which every new entry has and must keep; and `IPS_FIXED_TIMEOUT`, without which its
/// first packet would let it live as long as a connection, five days.
const ADMISSION: u32 = 1 << 1 | 1 << 3 | 1 << 10;

/// How long an entry of [`Conntrack::admit`] lives: a reset or a question and its answer.
const ADMITTED: Duration = Duration::from_secs(10);
/// Messages a call: what comes back for each fits the socket's buffer.
const BATCH: usize = 64;
/// How long the answer to whether anything is tracked at all counts.
const EVERY: Duration = Duration::from_secs(1);

const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// A connection as a socket here has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ends {
    /// The address here.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
}

/// How full the table of this network namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Connections that are tracked.
    pub entries: u64,
    /// How many there may be; beyond, the kernel drops the packets of new ones.
    pub limit: u64,
}

impl Fill {
    /// As it is now; `None` where nothing is tracked, because the module is not loaded.
    pub fn now() -> Option<Self> {
        let number = |path| fs::read_to_string(path).ok()?.trim().parse().ok();
        Some(Self { entries: number(COUNT)?, limit: number(LIMIT)? })
    }

    /// Whether new connections are about to be dropped: nine tenths are taken.
    pub const fn is_nearly_full(self) -> bool {
        self.limit != 0 && self.entries >= self.limit - self.limit / 10
    }

    /// Whether there is no room for another connection.
    pub const fn is_full(self) -> bool {
        self.limit != 0 && self.entries >= self.limit
    }
}

/// A netlink socket to the table. Needs `CAP_NET_ADMIN`.
pub struct Conntrack {
    socket: Socket,
    writer: Writer,
    /// Whether the module was loaded, and when that was looked at.
    is_loaded: Option<(bool, Instant)>,
    /// Whether connections were ever seen to be tracked here.
    has_tracked: bool,
    zones: Zones,
}

impl fmt::Debug for Conntrack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conntrack").field("has_tracked", &self.has_tracked).finish_non_exhaustive()
    }
}

impl Conntrack {
    /// Opens the socket, in the network namespace of this thread. Loads no module.
    pub fn open() -> io::Result<Self> {
        let socket = netlink::open(NETLINK_NETFILTER)?;
        // An answer need not repeat the question.
        let _ = socket.set_cap_ack(true);
        Ok(Self {
            socket,
            writer: Writer::default(),
            is_loaded: None,
            has_tracked: false,
            zones: Zones::default(),
        })
    }

    /// Deletes the entries of these connections; returns how many there were.
    ///
    /// The key is a packet that a socket here sends: it is one of the entry's two tuples, whatever NAT does
    /// to the packet further on (`nf_conntrack_find_get`).
    pub fn forget(&mut self, connections: &[Ends]) -> io::Result<usize> {
        if !self.is_loaded() {
            return Ok(0);
        }
        let deleted = self.in_each_zone(connections, |writer, ends, zone| {
            writer.message(DELETE, REQUEST, &header(ends.peer), |message| {
                tuple(message, TUPLE_ORIG, ends.local, ends.peer);
                in_zone(message, zone);
            });
        })?;
        self.has_tracked |= deleted != 0;
        Ok(deleted)
    }

    /// Makes the firewall accept the next packets of a connection as established, for a few seconds. Without
    /// an entry it would drop a reset or a keepalive probe that has no socket as invalid. Does nothing if
    /// tracking was never in use.
    pub fn admit(&mut self, ends: &Ends) -> io::Result<()> {
        // The existing entry expects other numbers.
        self.forget(&[*ends])?;
        if !self.tracks() {
            return Ok(());
        }
        let timeout = u32::try_from(ADMITTED.as_secs()).unwrap_or(1);
        // Which of them its packets will be in is not known.
        for zone in std::iter::once(0).chain(self.zones.known()) {
            self.writer.message(NEW, REQUEST | CREATE, &header(ends.peer), |message| {
                tuple(message, TUPLE_ORIG, ends.local, ends.peer);
                tuple(message, TUPLE_REPLY, ends.peer, ends.local);
                in_zone(message, zone);
                message.attribute(TIMEOUT, &timeout.to_be_bytes());
                message.attribute(STATUS, &ADMISSION.to_be_bytes());
                message.nested(PROTOINFO, |info| {
                    info.nested(PROTOINFO_TCP, |tcp| {
                        tcp.attribute(TCP_STATE, &[ESTABLISHED]);
                        tcp.attribute(TCP_FLAGS_ORIGINAL, &BE_LIBERAL);
                        tcp.attribute(TCP_FLAGS_REPLY, &BE_LIBERAL);
                    });
                });
            });
        }
        self.writer.send(&self.socket)?;
        self.missing().map(drop)
    }

    /// Disables the tracker's window checks for these connections. While a connection becomes a flow, the
    /// tracker sees only some of its packets, and a firewall would drop as invalid what a socket still
    /// retransmits. Untracked connections are left alone.
    pub fn loosen(&mut self, connections: &[Ends]) -> io::Result<()> {
        if !self.tracks() {
            return Ok(());
        }
        let loosened = self.in_each_zone(connections, |writer, ends, zone| {
            writer.message(NEW, REQUEST, &header(ends.peer), |message| {
                tuple(message, TUPLE_ORIG, ends.local, ends.peer);
                in_zone(message, zone);
                message.nested(PROTOINFO, |info| {
                    info.nested(PROTOINFO_TCP, |tcp| {
                        tcp.attribute(TCP_FLAGS_ORIGINAL, &BE_LIBERAL);
                        tcp.attribute(TCP_FLAGS_REPLY, &BE_LIBERAL);
                    });
                });
            });
        });
        loosened.map(drop)
    }

    /// Sends a message about each connection, in zone 0 first and, if there is no entry, in the known zones;
    /// returns how many entries there were.
    fn in_each_zone(
        &mut self,
        connections: &[Ends],
        write: impl Fn(&mut Writer, &Ends, u16),
    ) -> io::Result<usize> {
        let mut found = 0;
        for batch in connections.chunks(BATCH) {
            let mut missing = self.send_each(batch, |writer, ends| write(writer, ends, 0))?;
            found += batch.len() - missing.len();
            for zone in self.zones.for_missing(&self.socket, &missing) {
                let left = self.send_each(&missing, |writer, ends| write(writer, ends, zone))?;
                found += missing.len() - left.len();
                missing = left;
                if missing.is_empty() {
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Sends a message about each connection, at most [`BATCH`]; says for which there is no entry.
    fn send_each(&mut self, batch: &[Ends], write: impl Fn(&mut Writer, &Ends)) -> io::Result<Vec<Ends>> {
        for (number, ends) in (0..).zip(batch) {
            self.writer.number(number);
            write(&mut self.writer, ends);
        }
        self.writer.send(&self.socket)?;
        Ok(self.missing()?.into_iter().filter_map(|number| batch.get(number as usize).copied()).collect())
    }

    /// Whether anything is tracked here, or was.
    fn tracks(&mut self) -> bool {
        let is_loaded = self.is_loaded();
        if is_loaded && !self.has_tracked {
            // Not by what was found a moment ago: the first connections may have come since.
            self.has_tracked = Fill::now().is_some_and(|fill| fill.entries != 0);
        }
        is_loaded && self.has_tracked
    }

    /// Whether the module is there. Asking the kernel by netlink would load it.
    fn is_loaded(&mut self) -> bool {
        if let Some((is_loaded, then)) = self.is_loaded
            && then.elapsed() < EVERY
        {
            return is_loaded;
        }
        let is_loaded = Fill::now().is_some();
        self.is_loaded = Some((is_loaded, Instant::now()));
        is_loaded
    }

    /// Reads the kernel's answers to the messages of one call, which arrive within the call: the numbers of
    /// those whose entries were missing (or already existed).
    fn missing(&self) -> io::Result<Vec<u32>> {
        let (mut missing, mut failure) = (Vec::new(), None);
        loop {
            let octets = match self.socket.recv_from_full() {
                Ok((octets, _)) => octets,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Some of what it said found no room, and is not missed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) => return Err(error),
            };
            for (kind, payload) in netlink::messages(&octets) {
                match (kind == netlink::ERROR).then(|| netlink::error(payload)).flatten() {
                    None => {}
                    Some(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EEXIST)) => {
                        missing.extend(netlink::answered(payload));
                    }
                    Some(error) => failure = Some(error),
                }
            }
        }
        failure.map_or(Ok(missing), Err)
    }
}

/// Names the zone of an entry. Zone 0 is where those are that no rule has put elsewhere.
fn in_zone(message: &mut Writer, zone: u16) {
    if zone != 0 {
        message.attribute(ZONE, &zone.to_be_bytes());
    }
}

/// `struct nfgenmsg`: family, version, resource.
fn header(peer: SocketAddr) -> [u8; 4] {
    let family = if peer.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    [u8::try_from(family).unwrap_or(0), 0, 0, 0]
}

fn tuple(message: &mut Writer, kind: u16, source: SocketAddr, destination: SocketAddr) {
    message.nested(kind, |tuple| {
        tuple.nested(TUPLE_IP, |ip| {
            for (place, address) in [(0, source.ip()), (1, destination.ip())] {
                // CTA_IP_V4_SRC, CTA_IP_V4_DST, CTA_IP_V6_SRC, CTA_IP_V6_DST.
                match address {
                    IpAddr::V4(v4) => ip.attribute(1 + place, &v4.octets()),
                    IpAddr::V6(v6) => ip.attribute(3 + place, &v6.octets()),
                }
            }
        });
        tuple.nested(TUPLE_PROTO, |proto| {
            proto.attribute(PROTO_NUM, &[6]);
            proto.attribute(PROTO_SRC_PORT, &source.port().to_be_bytes());
            proto.attribute(PROTO_DST_PORT, &destination.port().to_be_bytes());
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_tenths_are_nearly_full() {
        let fill = |entries, limit| Fill { entries, limit };
        assert!(!fill(899, 1000).is_nearly_full() && fill(900, 1000).is_nearly_full());
        assert!(fill(7, 5).is_nearly_full() && !fill(7, 0).is_nearly_full());
        assert!(!fill(999, 1000).is_full() && fill(1000, 1000).is_full() && !fill(7, 0).is_full());
    }

    #[test]
    fn what_is_not_tracked_is_forgotten_quietly() {
        let mut conntrack = Conntrack::open().unwrap();
        let ends =
            |local: &str, peer: &str| Ends { local: local.parse().unwrap(), peer: peer.parse().unwrap() };
        let both = [ends("192.0.2.1:443", "192.0.2.2:1"), ends("[2001:db8::1]:443", "[2001:db8::2]:1")];
        match conntrack.forget(&both) {
            Ok(deleted) => assert_eq!(deleted, 0),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                eprintln!("skipped: ctnetlink needs CAP_NET_ADMIN here");
            }
        }
    }
}
