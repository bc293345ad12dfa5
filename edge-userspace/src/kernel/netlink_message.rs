//! Netlink messages that our crates do not support, written into one buffer or read from one datagram. This
//! is only the format (`linux/netlink.h`); `conntrack` and `xfrm` define the contents.

use std::io;

use rtnetlink::sys::{Socket, SocketAddr};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: without the flags for nesting and byte order.
const TYPE_MASK: u16 = 0x3fff;

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 1;
/// `NLM_F_DUMP`.
pub(super) const DUMP: u16 = 0x300;
/// `NLM_F_CREATE | NLM_F_EXCL`.
pub(super) const CREATE: u16 = 0x600;
/// `NLMSG_ERROR`.
pub(super) const ERROR: u16 = 2;
/// `NLMSG_DONE`.
pub(super) const DONE: u16 = 3;

/// A socket of this protocol that talks to the kernel and never waits: the kernel answers within the call.
pub(super) fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Messages to be sent together.
#[derive(Debug, Default)]
pub(super) struct Writer {
    octets: Vec<u8>,
    number: u32,
}

impl Writer {
    /// Numbers the messages that are added from now on: an answer carries the number of its request, see
    /// [`answered`].
    pub(super) const fn number(&mut self, number: u32) {
        self.number = number;
    }

    /// Adds a message: its kind and flags, the family's own header, and attributes.
    pub(super) fn message(&mut self, kind: u16, flags: u16, header: &[u8], fill: impl FnOnce(&mut Self)) {
        let start = self.octets.len();
        self.octets.extend_from_slice(&[0; 4]);
        self.octets.extend_from_slice(&kind.to_ne_bytes());
        self.octets.extend_from_slice(&flags.to_ne_bytes());
        self.octets.extend_from_slice(&self.number.to_ne_bytes());
        // The port: answers come to this socket alone.
        self.octets.extend_from_slice(&[0; 4]);
        self.octets.extend_from_slice(header);
        self.align();
        fill(self);
        let length = u32::try_from(self.octets.len() - start).unwrap_or(u32::MAX);
        self.octets[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Adds an attribute to the message.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nest_as(kind, |inner| inner.octets.extend_from_slice(value));
    }

    /// Adds an attribute that consists of attributes.
    pub(super) fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.nest_as(kind | NESTED, fill);
    }

    fn nest_as(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.octets.len();
        self.octets.extend_from_slice(&[0; 2]);
        self.octets.extend_from_slice(&kind.to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.octets.len() - start).unwrap_or(u16::MAX);
        self.octets[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.align();
    }

    fn align(&mut self) {
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
    }

    /// Sends what was added, and begins anew.
    pub(super) fn send(&mut self, socket: &Socket) -> io::Result<()> {
        let sent = socket.send(&self.octets, 0);
        self.octets.clear();
        sent.map(drop)
    }
}

/// The messages of a datagram: kind and what is behind the header.
pub(super) fn messages(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(word(octets, 0)?).ok()?;
        let kind = half(octets, 4)?;
        let payload = octets.get(HEADER..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Attributes one after the other: kind and value.
pub(super) fn attributes(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(octets, 0)?);
        let kind = half(octets, 2)? & TYPE_MASK;
        let value = octets.get(ATTRIBUTE..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The error of an [`ERROR`] message; `None` for a plain acknowledgement.
pub(super) fn error(payload: &[u8]) -> Option<io::Error> {
    let code = word(payload, 0)?.cast_signed();
    (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg()))
}

/// The number of the message that an [`ERROR`] message answers: it repeats its header.
pub(super) fn answered(payload: &[u8]) -> Option<u32> {
    word(payload, 12)
}

/// A number of 32 bits in the machine's order.
pub(super) fn word(octets: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(octets.get(at..at + 4)?.try_into().ok()?))
}

fn half(octets: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(octets.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = Writer::default();
        writer.message(7, REQUEST, &[2, 0, 0, 0], |message| {
            message.nested(1, |outer| outer.attribute(2, &[1, 2, 3]));
            message.attribute(3, &[9; 4]);
        });
        writer.message(8, REQUEST, &[], |_| {});
        let all: Vec<_> = messages(&writer.octets).collect();
        assert_eq!(all.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [7, 8]);
        let outer: Vec<_> = attributes(&all[0].1[4..]).collect();
        assert_eq!(outer[1], (3, &[9; 4][..]));
        assert_eq!(attributes(outer[0].1).collect::<Vec<_>>(), [(2, &[1, 2, 3][..])]);
    }

    #[test]
    fn lengths_that_lie_end_the_walk() {
        for octets in [&[][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 5], &[0; 3], &[0; 64], &[255; 64]] {
            assert!(attributes(octets).count() <= 1, "{octets:?}");
            assert!(messages(octets).count() <= 1, "{octets:?}");
        }
    }
}
