//! Reserves room in the send buffer of a joined socket for all data that may be redirected to it.
//!
//! Data that finds no room waits in the queue of the redirection. Data that this socket receives and the
//! kernel leaves to user space waits behind it (`skmsg.c`, `sk_psock_verdict_apply`). There it counts against
//! no buffer: the window stays open and the sender fills the machine's memory, and a client that writes
//! before it reads comes to a standstill. With room for the whole credit, nothing ever waits there.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::net::sockopt::{set_socket_send_buffer_size_force, socket_send_buffer_size};

use super::tcp;

/// Half of what the kernel can count.
const MOST: usize = i32::MAX as usize / 2;

/// A send buffer made large, and small again when this is dropped without having been kept.
pub(super) struct Room<'a> {
    socket: BorrowedFd<'a>,
    before: usize,
    kept: bool,
}

impl<'a> Room<'a> {
    /// Room for `credit` octets and what the kernel spends on them.
    pub(super) fn make(socket: BorrowedFd<'a>, credit: u64) -> io::Result<Self> {
        let before = socket_send_buffer_size(socket)?;
        // The kernel doubles it for its own expenses.
        set_socket_send_buffer_size_force(socket, usize::try_from(credit).unwrap_or(usize::MAX).min(MOST))?;
        let room = Self { socket, before, kept: false };
        // The system's default may hold back what was not sent yet.
        tcp::set_unsent_low_water(socket, i32::MAX)?;
        Ok(room)
    }

    /// The size that [`give_back`] needs.
    pub(super) fn before(&self) -> usize {
        self.before
    }

    /// Leaves the buffer as it is.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if !self.kept {
            give_back(self.socket, self.before);
        }
    }
}

/// The send buffer as it was, and grown by the kernel again as it sees fit.
pub(super) fn give_back(socket: impl AsFd, before: usize) {
    // A failure here leaves a buffer that is too large, but still bounded.
    let _ = set_socket_send_buffer_size_force(&socket, before / 2);
    let _ = tcp::unlock_buffers(&socket);
    let _ = tcp::set_unsent_low_water(&socket, 0);
}
