//! The first bytes of a connection: a ClientHello that also carries an order for the service.
//!
//! The order is in the hello's random field, which an edge has no reason to read, so it costs neither a
//! message nor a round trip.

use std::io::{self, Read};

use lab::hello::ClientHello;

use crate::job::HelloSize;

/// The service's behaviour on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Send this many octets and close.
    Answer(u32),
    /// Send for this many milliseconds and close.
    Source(u32),
    /// Send [`GO`], read to the end, then say how much it was (a `u64`, big-endian) and close.
    Sink,
    /// Send [`GO`], then everything back.
    Echo,
    /// Send [`GO`], then keep the connection until the client closes it.
    Hold,
}

/// The answer that a client waits for before it sends more than its hello, as TLS clients do.
pub const GO: [u8; 1] = [1];

/// Record header, handshake header and `legacy_version` come before the random (RFC 8446 §4.1.2).
const RANDOM: usize = 5 + 4 + 2;
const RECORD_HEADER: usize = 5;
/// No hello of the bench is larger.
const LARGEST: usize = 8192;

/// A complete ClientHello for this server name that carries the order.
pub fn opening(name: &str, size: HelloSize, order: Order) -> Vec<u8> {
    let hello = ClientHello::new(name).alpn(&["h2", "http/1.1"]);
    let hello = match size {
        HelloSize::Small => hello,
        HelloSize::PostQuantum => hello.post_quantum(),
    };
    let mut bytes = hello.records();
    let (code, argument) = match order {
        Order::Answer(octets) => (1, octets),
        Order::Source(millis) => (2, millis),
        Order::Sink => (3, 0),
        Order::Echo => (4, 0),
        Order::Hold => (5, 0),
    };
    bytes[RANDOM] = code;
    bytes[RANDOM + 1..RANDOM + 5].copy_from_slice(&argument.to_be_bytes());
    bytes
}

/// Reads a ClientHello of one record, and not a byte beyond it.
pub fn read_order(stream: &mut impl Read) -> io::Result<Order> {
    let mut buffer = [0; LARGEST];
    let mut have = 0;
    let mut want = RECORD_HEADER;
    while have < want {
        // The client waits for the answer, so that nothing follows the hello yet.
        let read = stream.read(&mut buffer[have..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        have += read;
        if have >= RECORD_HEADER {
            want = RECORD_HEADER + usize::from(u16::from_be_bytes([buffer[3], buffer[4]]));
        }
        if want > LARGEST || have > want {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let [code, a, b, c, d] = buffer[RANDOM..RANDOM + 5] else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let argument = u32::from_be_bytes([a, b, c, d]);
    Ok(match code {
        1 => Order::Answer(argument),
        2 => Order::Source(argument),
        3 => Order::Sink,
        4 => Order::Echo,
        5 => Order::Hold,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_the_wire() {
        for order in [Order::Answer(7), Order::Source(4_000_000_000), Order::Sink, Order::Echo, Order::Hold] {
            for size in [HelloSize::Small, HelloSize::PostQuantum] {
                let bytes = opening("web.example", size, order);
                assert_eq!(read_order(&mut bytes.as_slice()).unwrap(), order);
                assert!(read_order(&mut &bytes[..bytes.len() - 1]).is_err());
            }
        }
    }
}
