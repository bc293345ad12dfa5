//! The hand-over, performed: does what [`Handover`] says, on real sockets and the table of flows.

use std::{cell::RefCell, io, os::fd::AsFd};

use edge_common::flow::{DOWN, Flow, Pending, UP};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown},
};
use tokio::{net::TcpStream, time::sleep};

use super::{
    agreement::Account,
    handover::{Action, Event, Failure, Handover, Numbers, Outcome, Sides},
    stay::Stay,
    survey::Survey,
    tier::FlowTier,
};
use crate::{
    datapath::{Meter, Pair, Passenger, Side, Ticket},
    kernel::{
        FlowPair, InstallError, monotonic,
        tcp::{self, Queue},
    },
    spec::Tier,
};

/// Bytes read from a socket at once.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// The read buffer. One per worker thread: many hand-overs are under way at once, and most of them move
    /// nothing.
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into_boxed_slice());
}

/// How an attempt ended.
pub(super) enum Handed {
    /// The flow carries; the sockets are gone.
    Carried,
    /// Nothing has happened.
    Stay(Pair, Stay),
    /// Both sides were reset.
    Cut(Failure),
}

/// Hands a connection over. Nothing is held between its sockets.
pub(super) async fn hand_over(
    tier: &FlowTier,
    pair: Pair,
    survey: &Survey,
    passenger: &impl Passenger,
    meter: &Meter,
) -> Handed {
    // An urgent byte that was skipped would be missing from the numbers, which count every byte.
    pair.keep_urgent(true);
    let (flows, written) = match prepare(tier, &pair, survey, passenger, meter) {
        Ok(prepared) => prepared,
        Err(stay) => {
            pair.keep_urgent(false);
            return Handed::Stay(pair, stay);
        }
    };
    let read = Sides { client: flows.up.sent(), backend: flows.down.sent() };
    let mut machine = Handover::new(read, written);
    let mut drive = Drive {
        tier,
        flows,
        pair: &pair,
        up: Lane::default(),
        down: Lane::default(),
        written,
        last: flows,
        refusal: None,
    };
    let mut action = machine.start();
    let outcome = loop {
        let event = match action {
            Action::End(outcome) => break outcome,
            Action::Wait(time) => {
                sleep(time).await;
                Event::Waited
            }
            action => drive.perform(action).unwrap_or_else(|error| {
                tracing::debug!(id = flows.up.id, ?action, %error, "a hand-over fails");
                Event::Failed
            }),
        };
        tracing::trace!(id = flows.up.id, ?event, ?machine, "hand-over");
        action = machine.next(event);
    };
    let Drive { refusal, last, .. } = drive;
    match outcome {
        Outcome::OnSockets => {
            let stay = refusal.unwrap_or_else(|| io::Error::other("refused without a reason").into());
            pair.keep_urgent(false);
            Handed::Stay(pair, stay)
        }
        Outcome::Carried => {
            meter.set_tier(Tier::Flow);
            // Frozen, they close without a word, before anybody is told that nothing is pending.
            drop(pair);
            finish(tier, flows.up.id);
            tier.is_flow(flows.up.id, flows.up_key);
            Handed::Carried
        }
        Outcome::Cut(failure) => {
            for socket in [&pair.client, &pair.backend] {
                // It then closes silently; the flow's own numbers cover the rest.
                let _ = tcp::enter_repair(socket);
            }
            meter.set_tier(Tier::Flow);
            for (side, flow) in [(Side::Client, &last.up), (Side::Backend, &last.down)] {
                meter.raise(side, flow.bytes());
            }
            drop(pair);
            let is_cut = tier.cut(&flows);
            finish(tier, flows.up.id);
            if !is_cut {
                return Handed::Carried;
            }
            if failure == Failure::Unacknowledged {
                tier.failed(&flows, "what was sent was never acknowledged");
            }
            Handed::Cut(failure)
        }
    }
}

fn finish(tier: &FlowTier, id: u64) {
    if let Err(error) = tier.table().finish(id) {
        tracing::warn!(error = error.words(), "a hand-over stays noted as begun: the next start resets it");
    }
}

/// The flow's entries, and how far each socket was written.
fn prepare(
    tier: &FlowTier,
    pair: &Pair,
    survey: &Survey,
    passenger: &impl Passenger,
    meter: &Meter,
) -> Result<(FlowPair, Sides<u32>), Stay> {
    let ticket = passenger.ticket();
    let account = Account {
        id: ticket.id,
        label: label(tier, passenger, &ticket)?,
        accepted: ticket.accepted,
        connect_time: ticket.connect_time,
        bytes_up: meter.up(),
        bytes_down: meter.down(),
        now: monotonic(),
    };
    let flows = tier.agree(pair, survey, &account)?;
    // The end of the data sent to a side, in its own numbers: the other side's, translated.
    let reached = |flow: &Flow| flow.sent().wrapping_add(flow.seq_delta);
    Ok((flows, Sides { client: reached(&flows.down), backend: reached(&flows.up) }))
}

/// If there is no room for the full label, the flow gets one that it shares with others.
fn label(tier: &FlowTier, passenger: &impl Passenger, ticket: &Ticket) -> Result<u32, InstallError> {
    let mut table = tier.table();
    match table.label(&ticket.label) {
        Err(InstallError::Full) => {
            let common = passenger.common_label().ok_or(InstallError::Full)?;
            table.common_label(&common)
        }
        label => label,
    }
}

struct Drive<'a> {
    tier: &'a FlowTier,
    flows: FlowPair,
    pair: &'a Pair,
    up: Lane,
    down: Lane,
    /// The end of the data written to each socket.
    written: Sides<u32>,
    /// The flow as it was last seen.
    last: FlowPair,
    refusal: Option<Stay>,
}

/// One direction's bytes between the sockets.
#[derive(Default)]
struct Lane {
    held: Vec<u8>,
    /// The held data is one byte that was sent as urgent.
    is_urgent: bool,
    ended: bool,
}

impl Drive<'_> {
    fn perform(&mut self, action: Action) -> io::Result<Event> {
        let Pair { client, backend } = self.pair;
        Ok(match action {
            Action::Install => match self.install() {
                Ok(()) => Event::Installed,
                Err(refusal) => {
                    for socket in [client, backend] {
                        tcp::finish_on_close(socket)?;
                    }
                    self.refusal = Some(refusal);
                    Event::Refused
                }
            },
            Action::Relay => SHARED.with_borrow_mut(|buffer| {
                let (up, up_more) = self.relay(buffer, Side::Client, client, backend)?;
                let (down, down_more) = self.relay(buffer, Side::Backend, backend, client)?;
                io::Result::Ok(Event::Relayed { up, down, more: up_more || down_more })
            })?,
            Action::Freeze => {
                tcp::enter_repair(client)?;
                tcp::enter_repair(backend)?;
                Event::Frozen
            }
            Action::Thaw => {
                tcp::leave_repair(client)?;
                tcp::leave_repair(backend)?;
                Event::Thawed
            }
            Action::Look => Event::Seen(self.numbers()?),
            Action::Wait(_) | Action::End(_) => Event::Waited,
        })
    }

    fn install(&self) -> Result<(), Stay> {
        for socket in [&self.pair.client, &self.pair.backend] {
            self.tier.table().let_hand_over(socket)?;
            // If the daemon dies, no socket may remain that retransmits a FIN in vain: the next daemon could
            // not recreate the connection to reset it. The flow withholds the sockets' packets from their
            // peers.
            tcp::reset_on_close(socket)?;
        }
        Ok(self.tier.install(&self.flows, &self.pending())?)
    }

    fn pending(&self) -> Pending {
        let mut watch = [0; 2];
        watch[usize::from(UP)] = self.written.client;
        watch[usize::from(DOWN)] = self.written.backend;
        Pending { up_key: self.flows.up_key, watch, ..Pending::default() }
    }

    /// Moves the source's data to the destination. Returns how much was read (a FIN counts as one), and
    /// whether the destination is full.
    fn relay(
        &mut self,
        buffer: &mut [u8],
        from: Side,
        source: &TcpStream,
        destination: &TcpStream,
    ) -> io::Result<(usize, bool)> {
        let mut moved = 0;
        loop {
            let lane = self.lane(from);
            let sent = write(destination, &lane.held, lane.is_urgent)?;
            lane.held.drain(..sent);
            if !lane.held.is_empty() {
                return Ok((moved, true));
            }
            if lane.ended {
                return Ok((moved, false));
            }
            let Some((read, is_urgent)) = read(source, buffer)? else { return Ok((moved, false)) };
            moved += read.max(1);
            self.was_read(from, read.max(1))?;
            if read == 0 {
                self.lane(from).ended = true;
                self.tier.table().let_finish(destination).map_err(io::Error::other)?;
                shutdown(destination, Shutdown::Write)?;
            } else {
                let sent = write(destination, &buffer[..read], is_urgent)?;
                let lane = self.lane(from);
                lane.held = buffer[sent..read].to_vec();
                lane.is_urgent = is_urgent;
            }
        }
    }

    /// More was read and is about to be written. The other socket must get its acknowledgements, so the flow
    /// is told before they can arrive.
    fn was_read(&mut self, from: Side, bytes: usize) -> io::Result<()> {
        let written = match from {
            Side::Client => &mut self.written.backend,
            Side::Backend => &mut self.written.client,
        };
        // Never more than a socket's buffer.
        *written = written.wrapping_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.tier.table().watch(self.flows.up.id, &self.pending()).map_err(io::Error::other)
    }

    fn lane(&mut self, from: Side) -> &mut Lane {
        match from {
            Side::Client => &mut self.up,
            Side::Backend => &mut self.down,
        }
    }

    fn numbers(&mut self) -> io::Result<Numbers> {
        let received = |socket: &TcpStream| tcp::sequence(socket.as_fd(), Queue::Receive);
        let received = Sides { client: received(&self.pair.client)?, backend: received(&self.pair.backend)? };
        let now = self.tier.table().pair(&self.flows.up_key).map_err(io::Error::other)?;
        // Somebody else's, if a SYN has replaced it.
        let now = now.filter(|now| now.up.id == self.flows.up.id);
        if let Some(now) = now {
            self.last = now;
        }
        let FlowPair { up, down, .. } = self.last;
        // An acknowledgement that arrived just before the flow existed is known only to the socket, and no
        // other may ever come.
        let heard = |socket, written: u32| Ok::<_, io::Error>(written.wrapping_sub(tcp::send_queue(socket)?));
        let Pair { client, backend } = self.pair;
        Ok(Numbers {
            received,
            acknowledged: Sides {
                client: later(up.acked, heard(client, self.written.client)?),
                backend: later(down.acked, heard(backend, self.written.backend)?),
            },
            ended: up.is_reset() || down.is_reset(),
            gone: now.is_none(),
        })
    }
}

/// The later one of two sequence numbers.
const fn later(one: u32, other: u32) -> u32 {
    if other.wrapping_sub(one).cast_signed() > 0 { other } else { one }
}

/// Reads available data, 0 at the end of the stream; `None` if there is none. An urgent byte is read alone (a
/// read stops before one by itself) and marked, so that it is sent as urgent again.
fn read(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
    let receive = |buffer: &mut [u8], flags| loop {
        match recv(socket, &mut *buffer, flags | RecvFlags::DONTWAIT) {
            Ok((_, read)) => return Ok(Some(read)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error)),
        }
    };
    // Whether a byte is urgent is known once it is there, not before.
    match receive(&mut buffer[..1], RecvFlags::PEEK)? {
        Some(1..) => {}
        nothing => return Ok(nothing.map(|end| (end, false))),
    }
    let is_urgent = tcp::is_at_mark(socket)?;
    let room = if is_urgent { 1 } else { buffer.len() };
    Ok(receive(&mut buffer[..room], RecvFlags::empty())?.map(|read| (read, is_urgent)))
}

/// Writes as much as the socket takes now.
fn write(socket: &TcpStream, bytes: &[u8], is_urgent: bool) -> io::Result<usize> {
    let urgent = if is_urgent { SendFlags::OOB } else { SendFlags::empty() };
    let mut written = 0;
    while written < bytes.len() {
        match send(socket, &bytes[written..], urgent | SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => written += sent,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written)
}
