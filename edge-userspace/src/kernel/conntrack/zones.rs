//! The zones of connection tracking. A rule (`ct zone set`, the CT target, OVS, a VRF) may give entries a
//! number beside their addresses; a look-up then needs both. A socket does not know its zone. The entry of
//! one connection is therefore searched for in the whole table, and its zone tried for all later connections.

use std::{
    io,
    time::{Duration, Instant},
};

use rtnetlink::sys::Socket;

use super::{Ends, TUPLE_ORIG, TUPLE_REPLY, ZONE, header, tuple};
use crate::kernel::netlink_message::{self as netlink, DUMP, REQUEST, Writer};

/// `IPCTNL_MSG_CT_GET`.
const GET: u16 = (1 << 8) | 1;
/// `CTA_FILTER`, since Linux 5.8, and the fields of the first tuple that must be equal: the addresses (bits 0
/// and 1), the protocol and the ports (bits 3 to 5), in `net/netfilter/nf_internals.h`.
const FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;
const LIKE_THE_TUPLE: u32 = 0b11_1011;
/// `CTA_TUPLE_ZONE`: the zone of one direction alone.
const TUPLE_ZONE: u16 = 3;

/// `struct nfgenmsg`.
const FAMILY_HEADER: usize = 4;

/// Zones that are tried. Few machines have more than one.
const MOST: usize = 8;
/// The pause between two scans of the table, which may be long: if connections are not tracked at all, each
/// would cause a scan.
const PAUSE: Duration = Duration::from_secs(1);

/// The zones that entries were found in, other than 0.
#[derive(Debug, Default)]
pub(super) struct Zones {
    known: Vec<u16>,
    looked: Option<Instant>,
}

impl Zones {
    /// The zones to try for connections that have no entry in zone 0. Searches the whole table for one of
    /// them, but not often.
    pub(super) fn for_missing(&mut self, socket: &Socket, missing: &[Ends]) -> Vec<u16> {
        let now = Instant::now();
        if let Some(ends) = missing.last()
            && self.known.len() < MOST
            && self.looked.is_none_or(|then| now.duration_since(then) >= PAUSE)
        {
            self.looked = Some(now);
            // Which end began is not known.
            for (from, to) in [(ends.local, ends.peer), (ends.peer, ends.local)] {
                for zone in look(socket, &Ends { local: from, peer: to }).unwrap_or_default() {
                    if !self.known.contains(&zone) && self.known.len() < MOST {
                        self.known.push(zone);
                    }
                }
            }
        }
        self.known.clone()
    }

    /// Those that are known.
    pub(super) fn known(&self) -> impl Iterator<Item = u16> + '_ {
        self.known.iter().copied()
    }
}

/// The zones of the entries that began with a packet from `local` to `peer`. The kernel compares, so the
/// answer is short for any table.
fn look(socket: &Socket, ends: &Ends) -> io::Result<Vec<u16>> {
    let mut writer = Writer::default();
    writer.message(GET, REQUEST | DUMP, &header(ends.peer), |message| {
        tuple(message, TUPLE_ORIG, ends.local, ends.peer);
        message.nested(FILTER, |filter| {
            filter.attribute(FILTER_ORIG_FLAGS, &LIKE_THE_TUPLE.to_ne_bytes());
            filter.attribute(FILTER_REPLY_FLAGS, &0_u32.to_ne_bytes());
        });
    });
    writer.send(socket)?;
    let mut zones = Vec::new();
    loop {
        // A dump goes on as it is read, so it never blocks.
        let (octets, _) = socket.recv_from_full()?;
        for (kind, payload) in netlink::messages(&octets) {
            match kind {
                netlink::DONE => return Ok(zones),
                netlink::ERROR => return netlink::error(payload).map_or(Ok(zones), Err),
                _ => zones.extend(zones_of(payload)),
            }
        }
    }
}

/// The zones of an entry: its own, or those of its directions.
fn zones_of(entry: &[u8]) -> Vec<u16> {
    let number = |value: &[u8]| value.first_chunk().map(|octets| u16::from_be_bytes(*octets));
    let attributes = netlink::attributes(entry.get(FAMILY_HEADER..).unwrap_or_default());
    let mut zones = Vec::new();
    for (kind, value) in attributes {
        match kind {
            ZONE => zones.extend(number(value)),
            TUPLE_ORIG | TUPLE_REPLY => zones.extend(
                netlink::attributes(value)
                    .filter(|(kind, _)| *kind == TUPLE_ZONE)
                    .filter_map(|(_, value)| number(value)),
            ),
            _ => {}
        }
    }
    zones.retain(|zone| *zone != 0);
    zones
}
