//! The hand-over of a connection from its two sockets to the packet path, step by step, without losing or
//! repeating a byte. No I/O here: the driver performs [`Handover::next`] and reports the result.
//!
//! 1. The flow is installed. From now on packets bypass the sockets, but some may still be on their way in.
//! 2. Data that has reached the sockets is read and written to the other side's socket. The numbers fit, because
//!    the flow's differences count from the same place. The flow passes bare ACKs of that data up to the socket
//!    that wrote it, so that the socket retransmits lost packets.
//! 3. The sockets are frozen: if they are now closed, deliberately or by the end of the daemon, they send nothing.
//! 4. After a grace period nothing can be on its way into the sockets any more. If one has received data
//!    meanwhile, they are thawed, and step 2 is repeated.
//! 5. When both peers have acknowledged the sockets' data, according to the flow, the sockets are closed silently.
//!
//! If they never acknowledge it, both sides are reset: better an end than a gap.

use std::time::Duration;

/// How long a packet that passed tc before the flow existed may take to reach the socket. It is in the
/// receive path of one CPU, delayed only by other work there.
pub const GRACE: Duration = Duration::from_millis(20);

/// How long the peers may leave the sockets' data unacknowledged. By then a retransmission has been lost
/// three times on a path of half a second.
const PATIENCE: Duration = Duration::from_secs(15);

/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Before a socket that did not take everything is written to again.
const FULL_PAUSE: Duration = Duration::from_millis(2);

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Record that the hand-over begins, then install the flow. → [`Event::Installed`] or [`Event::Refused`]
    Install,
    /// Read the data in either socket and write it to the other, including a FIN. → [`Event::Relayed`]
    Relay,
    /// Freeze both sockets. → [`Event::Frozen`]
    Freeze,
    /// Let time pass. → [`Event::Waited`]
    Wait(Duration),
    /// Read the numbers. → [`Event::Seen`]
    Look,
    /// Bring both sockets back. → [`Event::Thawed`]
    Thaw,
    /// The hand-over is over.
    End(Outcome),
}

/// How a hand-over ended, and what is left to do with the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The flow carries the connection: close both sockets, frozen as they are.
    Carried,
    /// Nothing has happened: go on with the sockets.
    OnSockets,
    /// Remove the flow, reset both sides by its last numbers, and close the sockets, frozen or not.
    Cut(Failure),
}

/// Why a connection had to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A call failed on the way.
    Io,
    /// A peer reset the connection before it had all that the edge had acknowledged.
    Reset,
    /// The sockets' data was not acknowledged in time.
    Unacknowledged,
}

/// The result of an [`Action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The flow is there.
    Installed,
    /// It is not, nor any part of it.
    Refused,
    /// Bytes moved to the backend and to the client; a FIN counts as one.
    Relayed {
        /// Client → backend.
        up: usize,
        /// Backend → client.
        down: usize,
        /// A socket is full, and there is more for it.
        more: bool,
    },
    /// Both sockets are frozen.
    Frozen,
    /// The time has passed.
    Waited,
    /// The numbers.
    Seen(Numbers),
    /// Both sockets are back.
    Thawed,
    /// The call failed.
    Failed,
}

/// The numbers of a hand-over, as [`Action::Look`] finds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// The next sequence number that each socket expects.
    pub received: Sides<u32>,
    /// Each peer's latest acknowledgement: to the flow, or to the socket before the flow existed.
    pub acknowledged: Sides<u32>,
    /// Whether a peer has reset the connection.
    pub ended: bool,
    /// Whether the flow is gone: both sides have ended the connection and another one has taken its
    /// addresses, or somebody has ended it.
    pub gone: bool,
}

/// One thing for the client's leg, one for the backend's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sides<T> {
    /// The client's.
    pub client: T,
    /// The backend's.
    pub backend: T,
}

/// A hand-over under way.
#[derive(Debug)]
pub struct Handover {
    /// The end of the data read from each socket.
    read: Sides<u32>,
    /// The end of the data written to each socket.
    written: Sides<u32>,
    /// The acknowledgements at the last look.
    acknowledged: Option<Sides<u32>>,
    /// Whether there is more to relay after the pause.
    more: bool,
    pause: Duration,
    /// Since something was acknowledged.
    waited: Duration,
}

impl Handover {
    /// `read` and `written`: where each socket's streams are.
    pub const fn new(read: Sides<u32>, written: Sides<u32>) -> Self {
        Self { read, written, acknowledged: None, more: false, pause: GRACE, waited: Duration::ZERO }
    }

    /// The first action.
    pub const fn start(&self) -> Action {
        Action::Install
    }

    /// The next action, by what came of the last one.
    pub fn next(&mut self, event: Event) -> Action {
        match event {
            Event::Refused => Action::End(Outcome::OnSockets),
            Event::Failed => cut(Failure::Io),
            Event::Installed | Event::Thawed => Action::Relay,
            Event::Relayed { up, down, more } => self.relayed(up, down, more),
            Event::Frozen => Action::Wait(self.pause),
            Event::Waited if self.more => Action::Relay,
            Event::Waited => {
                self.waited += self.pause;
                Action::Look
            }
            Event::Seen(numbers) => self.seen(&numbers),
        }
    }

    /// The end of the data written to each socket.
    pub const fn written(&self) -> Sides<u32> {
        self.written
    }

    fn relayed(&mut self, up: usize, down: usize, more: bool) -> Action {
        self.read.client = advanced(self.read.client, up);
        self.read.backend = advanced(self.read.backend, down);
        self.written.client = advanced(self.written.client, down);
        self.written.backend = advanced(self.written.backend, up);
        self.more = more;
        if more { Action::Wait(FULL_PAUSE) } else { Action::Freeze }
    }

    fn seen(&mut self, numbers: &Numbers) -> Action {
        let slipped = numbers.received != self.read;
        let covers = |acknowledged: u32, written: u32| acknowledged.wrapping_sub(written).cast_signed() >= 0;
        let acknowledged = covers(numbers.acknowledged.client, self.written.client)
            && covers(numbers.acknowledged.backend, self.written.backend);
        if numbers.gone {
            return Action::End(Outcome::Carried);
        }
        if numbers.ended {
            // Acknowledged data has reached its reader, whoever ended the connection afterwards.
            let outcome =
                if acknowledged && !slipped { Outcome::Carried } else { Outcome::Cut(Failure::Reset) };
            return Action::End(outcome);
        }
        if slipped {
            // Acknowledged in the peer's name: it must reach the other side, and its path may still hold
            // more.
            self.pause = GRACE;
            return Action::Thaw;
        }
        if acknowledged {
            return Action::End(Outcome::Carried);
        }
        if self.acknowledged.replace(numbers.acknowledged) != Some(numbers.acknowledged) {
            self.waited = Duration::ZERO;
        } else if self.waited >= PATIENCE {
            return cut(Failure::Unacknowledged);
        }
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Action::Wait(self.pause)
    }
}

const fn cut(failure: Failure) -> Action {
    Action::End(Outcome::Cut(failure))
}

#[expect(clippy::cast_possible_truncation, reason = "sequence numbers count modulo 2³²")]
const fn advanced(number: u32, bytes: usize) -> u32 {
    number.wrapping_add(bytes as u32)
}

#[cfg(test)]
mod tests;
