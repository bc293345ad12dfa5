//! The first bytes of a client, as they come, within the memory that there is for them.

use tokio::net::TcpStream;

use super::{hello::NoHello, hello_memory::Held};
use crate::receive::receive;

/// All bytes so far that are not passed on yet.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    held: Held,
}

impl Received {
    pub(super) fn new(held: Held) -> Self {
        Self { bytes: Vec::new(), held }
    }

    /// Reads once.
    pub(super) async fn read(&mut self, client: &TcpStream) -> Result<(), NoHello> {
        match receive(client, &mut self.bytes).await {
            Ok(1..) if self.held.set(self.bytes.capacity()) => Ok(()),
            Ok(1..) => Err(NoHello::NoMemory),
            Ok(0) | Err(_) => Err(NoHello::Gone),
        }
    }

    /// Goes on with what stands behind the first `length` bytes, on another account.
    pub(super) fn behind(self, length: usize, held: Held) -> Result<Self, NoHello> {
        let Self { mut bytes, held: before } = self;
        bytes.drain(..length);
        bytes.shrink_to_fit();
        drop(before);
        if held.set(bytes.capacity()) { Ok(Self { bytes, held }) } else { Err(NoHello::NoMemory) }
    }

    /// The bytes, and what is to be dropped when they are gone.
    pub(super) fn finish(self) -> Result<(Vec<u8>, Held), NoHello> {
        if self.held.finish() { Ok((self.bytes, self.held)) } else { Err(NoHello::NoMemory) }
    }
}
