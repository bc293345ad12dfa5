//! Dumps of netlink, answered within the call, so that nothing waits. Attributes are returned as bytes: a
//! device's name may be no valid text, and one that cannot be decoded must not hide the others.

use std::{io, iter};

use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST},
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// The flags in an attribute's type (`NLA_TYPE_MASK`).
const TYPE: u16 = 0x3fff;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// How often a dump is repeated after a change has made it inconsistent; the last one is used as it is.
const ATTEMPTS: usize = 4;

/// A question for a dump.
pub(super) struct Dump<'a> {
    /// The netlink family.
    pub(super) protocol: isize,
    /// The type of the request.
    pub(super) question: u16,
    /// The body of the request.
    pub(super) body: &'a [u8],
    /// The length of the fixed part of an answer; shorter ones are left out.
    pub(super) length: usize,
}

/// The bodies of all messages that a dump of rtnetlink has.
///
/// `question` is the type of the request, `RTM_GET…`; `length` is the length of its messages' fixed part,
/// which is all zeros in the request. Applies to the network namespace of this thread.
pub(super) fn dump(question: u16, length: usize) -> io::Result<Vec<Vec<u8>>> {
    dump_of(&Dump { protocol: NETLINK_ROUTE, question, body: &vec![0; length], length })
}

/// The bodies of all messages that answer a question. In the network namespace of this thread.
pub(super) fn dump_of(dump: &Dump<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(dump.protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    for sequence in 1..=ATTEMPTS {
        let sequence = u32::try_from(sequence).unwrap_or(0);
        socket.send(&request(dump.question, dump.body, sequence), 0)?;
        let (messages, is_consistent) = answer(&socket, sequence, dump.length)?;
        if is_consistent || sequence as usize == ATTEMPTS {
            return Ok(messages);
        }
    }
    Ok(Vec::new())
}

fn request(question: u16, body: &[u8], sequence: u32) -> Vec<u8> {
    let total = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut request = total.to_ne_bytes().to_vec();
    request.extend(question.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend(sequence.to_ne_bytes());
    request.resize(HEADER, 0);
    request.extend(body);
    request
}

/// The messages, and whether nothing changed while they were collected.
fn answer(socket: &Socket, sequence: u32, length: usize) -> io::Result<(Vec<Vec<u8>>, bool)> {
    let mut messages = Vec::new();
    let mut is_consistent = true;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while let Some(header) = Header::of(rest) {
            let Some(body) = rest.get(HEADER..header.length) else { break };
            rest = rest.get(header.length.next_multiple_of(4)..).unwrap_or_default();
            if header.sequence != sequence {
                continue;
            }
            is_consistent &= header.flags & NLM_F_DUMP_INTR == 0;
            match header.kind {
                NLMSG_DONE => return Ok((messages, is_consistent)),
                NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ if body.len() >= length => messages.push(body.to_vec()),
                _ => {}
            }
        }
    }
}

struct Header {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

impl Header {
    /// `None` at the end, or where what is left is no message.
    fn of(octets: &[u8]) -> Option<Self> {
        let octets: &[u8; HEADER] = octets.first_chunk()?;
        let length = usize::try_from(number(octets)?).ok()?;
        (length >= HEADER).then_some(Self {
            length,
            kind: u16::from_ne_bytes([octets[4], octets[5]]),
            flags: u16::from_ne_bytes([octets[6], octets[7]]),
            sequence: number(&octets[8..])?,
        })
    }
}

/// The attributes behind the fixed part of a message, or inside another attribute: type and value.
pub(super) fn attributes(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    iter::from_fn(move || {
        let header: &[u8; ATTRIBUTE] = octets.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE;
        let value = octets.get(ATTRIBUTE..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The number that a value begins with.
pub(super) fn number(octets: &[u8]) -> Option<u32> {
    octets.first_chunk().map(|octets| u32::from_ne_bytes(*octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap();
        let mut octets = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        octets.extend(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    #[test]
    fn attributes_are_padded_and_a_lying_length_ends_them() {
        let octets = [attribute(3, b"eth0.10\0"), attribute(4 | 0x8000, &[7]), attribute(5, &[])].concat();
        let found: Vec<_> = attributes(&octets).collect();
        assert_eq!(found, [(3, &b"eth0.10\0"[..]), (4, &[7]), (5, &[])]);
        for (length, expected) in [(0_u16, 0), (3, 0), (4, 1), (200, 0)] {
            let mut lying = attribute(3, b"x");
            lying[..2].copy_from_slice(&length.to_ne_bytes());
            // A header of nothing may be followed by octets that make another.
            assert!(attributes(&lying).take(9).count() >= expected, "{length}");
            assert!(attributes(&lying).take(9).count() <= 2, "{length}");
        }
        assert_eq!(attributes(&octets[..3]).count(), 0);
    }

    #[test]
    fn messages_shorter_than_their_header_are_the_end() {
        assert!(Header::of(&[0; HEADER]).is_none());
        assert!(Header::of(&[0xff; HEADER - 1]).is_none());
        assert_eq!(Header::of(&request(18, &[0; 16], 7)).unwrap().length, 32);
    }
}
