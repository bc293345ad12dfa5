//! Byte streams that verify themselves, sent and read unevenly, and how a connection ends.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::OnceLock,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use socket2::SockRef;

/// How a peer ended its direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In order, by FIN.
    Fin,
    /// By RST (`ECONNRESET`).
    Reset,
}

/// How evenly a stream is sent or read.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// Large pieces, as fast as it goes.
    Steady,
    /// Pieces of random size from one byte on, now and then a pause.
    Uneven,
}

/// The largest piece written or read at once.
const PIECE: usize = 256 * 1024;

/// The length of [`table`]: a prime, so that no shift by a block goes unnoticed.
const TABLE: usize = 1_048_573;

/// A stream of bytes that is known at every offset: random, but the same for the same seed.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// The pattern with this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The bytes of the stream from `offset` on, at most `length` and at least one of them.
    fn at(self, offset: u64, length: usize) -> &'static [u8] {
        // Seeds are far apart in the table; a proof against chance is not needed.
        let start = self.seed.wrapping_mul(0x9E37_79B9).wrapping_add(offset) % TABLE as u64;
        let rest = &table()[usize::try_from(start).unwrap_or(0)..];
        &rest[..length.min(rest.len())]
    }

    /// The whole of a short stream.
    pub fn bytes(self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            bytes.extend_from_slice(self.at(bytes.len() as u64, length - bytes.len()));
        }
        bytes
    }

    /// Writes `length` bytes of the stream.
    pub fn send(self, stream: &mut impl Write, length: u64, pace: Pace) -> Result<()> {
        let mut sent = 0;
        while sent < length {
            let most = usize::try_from(length - sent).unwrap_or(usize::MAX);
            let piece = self.at(sent, pace.piece().min(most));
            stream.write_all(piece).with_context(|| format!("sending after {sent} of {length} bytes"))?;
            sent += piece.len() as u64;
        }
        Ok(())
    }

    /// Reads to the end and verifies every byte; gives the number of bytes and how the peer ended.
    pub fn receive(self, stream: &mut impl Read, pace: Pace) -> Result<(u64, End)> {
        let mut buffer = vec![0; PIECE];
        let mut received = 0;
        loop {
            let length = match stream.read(&mut buffer[..pace.piece()]) {
                Ok(0) => return Ok((received, End::Fin)),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok((received, End::Reset));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).with_context(|| format!("reading after {received} bytes")),
            };
            self.verify(received, &buffer[..length])?;
            received += length as u64;
        }
    }

    /// Reads and verifies exactly `length` bytes.
    pub fn receive_exactly(self, stream: &mut impl Read, length: u64, pace: Pace) -> Result<()> {
        let (received, end) = self.receive(&mut stream.take(length), pace)?;
        if received < length {
            bail!("{received} of {length} bytes came, then {end:?}");
        }
        Ok(())
    }

    fn verify(self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let expected = self.at(offset, bytes.len());
            let (now, later) = bytes.split_at(expected.len());
            if now != expected {
                let wrong = now.iter().zip(expected).position(|(a, b)| a != b).unwrap_or(0);
                bail!("the stream differs at byte {}", offset + wrong as u64);
            }
            offset += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }
}

impl Pace {
    fn piece(self) -> usize {
        match self {
            Self::Steady => PIECE,
            Self::Uneven => {
                if fastrand::u8(..) == 0 {
                    // Not a wait: the stall is what the peer is to cope with.
                    thread::sleep(Duration::from_millis(fastrand::u64(1..40)));
                }
                // As many tiny pieces as large ones.
                1 << fastrand::u32(0..=PIECE.ilog2())
            }
        }
    }
}

fn table() -> &'static [u8] {
    static TABLE_BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE_BYTES.get_or_init(|| {
        let mut random = fastrand::Rng::with_seed(1);
        let mut bytes = vec![0; TABLE];
        random.fill(&mut bytes);
        bytes
    })
}

/// Reads until the peer ends the connection.
pub fn read_to_end(stream: &mut impl Read) -> Result<(Vec<u8>, End)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((bytes, End::Fin)),
            Ok(length) => bytes.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok((bytes, End::Reset)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("reading after {} bytes", bytes.len())),
        }
    }
}

/// The same for a connection that the edge may reset before any data: the reset may arrive as early as at the
/// end of connecting.
pub fn read_to_end_of(connected: Result<TcpStream>) -> Result<(Vec<u8>, End)> {
    let is_reset = |error: &anyhow::Error| {
        error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionReset)
    };
    match connected {
        Ok(mut stream) => read_to_end(&mut stream),
        Err(error) if is_reset(&error) => Ok((Vec::new(), End::Reset)),
        Err(error) => Err(error),
    }
}

/// Closes with RST: what the kernel does when lingering is set to no time at all.
#[expect(clippy::needless_pass_by_value, reason = "closing the only handle is what sends the RST")]
pub fn reset(stream: TcpStream) -> Result<()> {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_finds_a_lost_a_doubled_and_a_changed_byte() {
        let pattern = Pattern::new(7);
        let whole = pattern.bytes(3_000_000);
        assert_eq!(pattern.receive(&mut whole.as_slice(), Pace::Steady).unwrap(), (3_000_000, End::Fin));
        let mut lost = whole.clone();
        lost.remove(2_000_000);
        let mut doubled = whole.clone();
        doubled.insert(1_500_000, whole[1_500_000]);
        let mut changed = whole.clone();
        changed[2_999_999] ^= 1;
        for broken in [lost, doubled, changed] {
            assert!(pattern.receive(&mut broken.as_slice(), Pace::Steady).is_err());
        }
        assert!(Pattern::new(8).receive(&mut whole.as_slice(), Pace::Steady).is_err());
    }
}
