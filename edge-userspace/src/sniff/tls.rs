//! The ClientHello at the start of a TLS connection over TCP: server name, ALPN, ECH.
//!
//! This reads the record layer (RFC 8446 §5.1): a hello may come in any number of records, down to one byte
//! each, and share its last record with other messages. Hellos in the format of SSL 2.0 are read too. Bytes
//! after that record (early data, a `change_cipher_spec`) are ignored. Nothing is decrypted or answered;
//! [`alert`] has the bytes for a refusal.

use std::borrow::Cow;

use crate::spec::{AlpnList, HostName};

use super::{RawName, Rejection, Sniff};

pub mod alert;
pub(crate) mod hello;
mod opening;
mod sslv2;

pub use alert::AlertDescription;
pub(super) use opening::opening;

/// The longest fragment of a plaintext record (RFC 8446 §5.1).
const MAX_FRAGMENT: usize = 1 << 14;
const RECORD_HEADER: usize = 5;
/// `msg_type` and a length of three octets (RFC 8446 §4).
const MESSAGE_HEADER: usize = 4;
/// The most records that a hello may come in: enough for any present hello in records of one byte, and a
/// bound on the size of their headers.
pub const MAX_RECORDS: usize = 4096;

/// The parts of a ClientHello that routing uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The name asked for; `None` without one, and for one that can be no host name.
    pub server_name: Option<HostName>,
    /// The server name if it cannot be a host name, such as an IP literal.
    pub raw_name: Option<RawName>,
    /// The protocols offered; empty when there is no such extension.
    pub alpn: AlpnList,
    /// Whether there is an outer `encrypted_client_hello` (RFC 9849), real or GREASE: `server_name` then is the
    /// public name.
    pub ech: bool,
    /// `legacy_version` of the message.
    pub legacy_version: u16,
    /// The bytes on the wire up to the end of the last record that holds a part of the message.
    pub wire_len: usize,
}

/// Reads a ClientHello from bytes that arrive in pieces.
///
/// It keeps its position, so all calls together cost time linear in the bytes. A hello in one record is
/// parsed in place. A hello in several records is copied together, at most `max_message` bytes, once it is
/// complete, so an incomplete one takes no memory here.
#[derive(Debug)]
pub struct ClientHelloReader {
    max_message: usize,
    /// Where in the received bytes the next record begins that is not yet taken.
    next_record: usize,
    /// The records taken so far, and the bytes in their fragments.
    records: usize,
    taken: usize,
    /// The length of the message with its header, once that is there.
    message_len: Option<usize>,
}

impl ClientHelloReader {
    /// `max_message`: the largest message taken, in bytes, its four-byte header included.
    pub fn new(max_message: usize) -> Self {
        Self { max_message, next_record: 0, records: 0, taken: 0, message_len: None }
    }

    /// The most bytes that can be received while the answer is [`Sniff::Incomplete`]: the message in the
    /// largest number of records, the last one of full length.
    pub const fn max_wire(max_message: usize) -> usize {
        max_message.saturating_add(RECORD_HEADER * MAX_RECORDS).saturating_add(MAX_FRAGMENT)
    }

    /// Examines the bytes received so far. `received` holds all bytes from the connection's first one on, at
    /// least those of the previous call. After a result other than [`Sniff::Incomplete`] the reader is reset.
    pub fn read(&mut self, received: &[u8]) -> Sniff<ClientHello> {
        let answer = self.advance(received).into();
        if answer != Sniff::Incomplete {
            *self = Self::new(self.max_message);
        }
        answer
    }

    fn advance(&mut self, received: &[u8]) -> Result<Option<ClientHello>, Rejection> {
        if self.next_record == 0 {
            match opening(received) {
                Sniff::Complete(()) => {}
                Sniff::Incomplete => return Ok(None),
                Sniff::Rejected(rejection) => return Err(rejection),
            }
            if received.first().is_some_and(|first| *first >= 0x80) {
                return sslv2::read(received, self.max_message);
            }
        }
        loop {
            let rest = received.get(self.next_record..).unwrap_or_default();
            let Some((length, fragment)) = record(rest)? else { return Ok(None) };
            if self.records == MAX_RECORDS {
                return Err(Rejection::TooManyRecords);
            }
            if self.message_len.is_none() {
                self.message_len = self.judge_header(received)?;
            }
            if fragment.len() < length {
                return Ok(None);
            }
            let record_end = self.next_record + RECORD_HEADER + length;
            match self.message_len {
                Some(len) if len <= self.taken + length => {
                    let message = if self.records == 0 {
                        Cow::Borrowed(&fragment[..len])
                    } else {
                        Cow::Owned(put_together(received, len))
                    };
                    return hello::parse(&message[MESSAGE_HEADER..], record_end).map(Some);
                }
                _ => {
                    self.records += 1;
                    self.taken += length;
                    self.next_record = record_end;
                }
            }
        }
    }

    /// The message's header may itself be split over records; the bytes available are checked at once.
    fn judge_header(&self, received: &[u8]) -> Result<Option<usize>, Rejection> {
        const CLIENT_HELLO: u8 = 1;
        let mut bytes = fragments(received).flatten().copied();
        match bytes.next() {
            None => return Ok(None),
            Some(CLIENT_HELLO) => {}
            Some(_) => return Err(Rejection::UnexpectedMessage),
        }
        let (Some(high), Some(middle), Some(low)) = (bytes.next(), bytes.next(), bytes.next()) else {
            return Ok(None);
        };
        let body = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let len = MESSAGE_HEADER + body;
        if len > self.max_message { Err(Rejection::TooLarge) } else { Ok(Some(len)) }
    }
}

/// The fragments of the records that a message begins with, the last one as far as it has arrived.
fn fragments(received: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = received;
    std::iter::from_fn(move || {
        let (length, fragment) = record(rest).ok()??;
        rest = rest.get(RECORD_HEADER + length..).unwrap_or_default();
        Some(fragment)
    })
}

/// A message of this length that has arrived in several records.
fn put_together(received: &[u8], len: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(len);
    for fragment in fragments(received) {
        let missing = len - message.len();
        message.extend_from_slice(&fragment[..fragment.len().min(missing)]);
        if message.len() == len {
            break;
        }
    }
    message
}

/// The record at the start of `rest`: the length of its fragment, and the part of it that has arrived.
fn record(rest: &[u8]) -> Result<Option<(usize, &[u8])>, Rejection> {
    const HANDSHAKE: u8 = 22;
    // A hello in pieces is not interrupted by records of another type (RFC 8446 §5.1).
    if rest.first().is_some_and(|&content| content != HANDSHAKE) {
        return Err(Rejection::UnexpectedMessage);
    }
    // The minor version is to be ignored (RFC 8446 §5.1); clients write anything from 0 to 4 there.
    if rest.get(1).is_some_and(|&major| major != opening::MAJOR) {
        return Err(Rejection::Malformed("the version of a record is not 3.x"));
    }
    let Some((&[_, _, _, high, low], arrived)) = rest.split_first_chunk() else { return Ok(None) };
    match usize::from(u16::from_be_bytes([high, low])) {
        0 => Err(Rejection::Malformed("a handshake record of length 0")),
        length if length > MAX_FRAGMENT => Err(Rejection::Malformed("a record is longer than 2^14 bytes")),
        length => Ok(Some((length, &arrived[..length.min(arrived.len())]))),
    }
}

/// Reads a ClientHello from all the bytes there are; see [`ClientHelloReader`].
pub fn client_hello(received: &[u8], max_message: usize) -> Sniff<ClientHello> {
    ClientHelloReader::new(max_message).read(received)
}

#[cfg(test)]
mod tests;
