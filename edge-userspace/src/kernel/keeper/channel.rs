//! The socket pair between daemon and keeper: one message is one request or one answer (`SOCK_SEQPACKET`), JSON inside,
//! descriptors beside it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
        sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout},
    },
};
use serde::{Serialize, de::DeserializeOwned};

use super::protocol::{Answer, Request};

/// The longest request: that of the shield, with all the devices it may watch.
const REQUEST: usize = 16 << 10;
/// The longest answer: that about WireGuard peers, some thousands of them.
const ANSWER: usize = 1 << 20;
/// Descriptors that come with an answer at most.
const DESCRIPTORS: usize = 8;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

impl Channel {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, two) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        for end in [&one, &two] {
            // A message has to fit the buffer. Where that is not allowed, long answers are refused.
            let _ = set_socket_send_buffer_size_force(end, 2 * ANSWER);
        }
        Ok((Self(one), Self(two)))
    }

    /// How long [`Self::receive_answer`] waits.
    pub(super) fn set_patience(&self, patience: Duration) -> io::Result<()> {
        Ok(set_socket_timeout(&self.0, Timeout::Recv, Some(patience))?)
    }

    /// Whether the other end is gone.
    pub(super) fn is_closed(&self) -> bool {
        let mut questions = [PollFd::new(&self.0, PollFlags::empty())];
        poll(&mut questions, Some(&Timespec::default()))
            .is_ok_and(|_| questions[0].revents().contains(PollFlags::HUP))
    }

    pub(super) fn send_request(&mut self, request: &Request) -> io::Result<()> {
        // Without ancillary data there is no need for sendmsg(2), which the daemon's workers must not use.
        let octets = serde_json::to_vec(request)?;
        loop {
            match send(&self.0, &octets, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return sent.map(drop).map_err(io::Error::from),
            }
        }
    }

    /// The next request; `None` when the other end has closed. A malformed request is a separate error, after
    /// which the next one can be received.
    pub(super) fn receive_request(&mut self) -> io::Result<Option<Result<Request, String>>> {
        let Some((message, _)) = self.receive(REQUEST)? else { return Ok(None) };
        Ok(Some(parse(&message).map_err(|error| error.to_string())))
    }

    pub(super) fn send_answer(&mut self, answer: &Answer, descriptors: &[OwnedFd]) -> io::Result<()> {
        self.send(answer, descriptors)
    }

    pub(super) fn receive_answer(&mut self) -> io::Result<(Answer, Vec<OwnedFd>)> {
        let (message, descriptors) = self.receive(ANSWER)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((parse(&message)?, descriptors))
    }

    fn send(&self, message: &impl Serialize, descriptors: &[OwnedFd]) -> io::Result<()> {
        let octets = serde_json::to_vec(message)?;
        let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::other("too many descriptors"));
        }
        loop {
            match sendmsg(&self.0, &[IoSlice::new(&octets)], &mut control, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => return sent.map(drop).map_err(io::Error::from),
            }
        }
    }

    /// One message of at most so many octets; a longer one is an error. `None` is the end.
    fn receive(&self, most: usize) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        // Asks for the length first: most messages are short.
        let (_, length) = loop {
            match recv(&self.0, &mut [] as &mut [u8], RecvFlags::PEEK | RecvFlags::TRUNC) {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        let mut octets = vec![0; length.min(most)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut [IoSliceMut::new(&mut octets)], &mut control, RecvFlags::CMSG_CLOEXEC)
            {
                Err(Errno::INTR) => {}
                result => break result?,
            }
        };
        let descriptors: Vec<OwnedFd> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 {
            return Ok(None);
        }
        if length > most {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message that is too long"));
        }
        octets.truncate(received.bytes);
        Ok(Some((octets, descriptors)))
    }
}

fn parse<T: DeserializeOwned>(message: &[u8]) -> io::Result<T> {
    serde_json::from_slice(message).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{
        super::protocol::{Refused, Reply},
        *,
    };

    #[test]
    fn requests_answers_and_descriptors_come_through() {
        let (mut daemon, mut keeper) = Channel::pair().unwrap();
        daemon.send_request(&Request::AttachFlows { index: 7 }).unwrap();
        assert_eq!(keeper.receive_request().unwrap(), Some(Ok(Request::AttachFlows { index: 7 })));
        let descriptors: Vec<OwnedFd> = (0..5).map(|_| File::open("/dev/null").unwrap().into()).collect();
        keeper.send_answer(&Ok(Reply::Done), &descriptors).unwrap();
        let (answer, received) = daemon.receive_answer().unwrap();
        assert_eq!((answer, received.len()), (Ok(Reply::Done), 5));
        // A long one, without.
        let refused = Err(Refused { words: "x".repeat(100_000), is_denied: true });
        keeper.send_answer(&refused, &[]).unwrap();
        let (answer, received) = daemon.receive_answer().unwrap();
        assert_eq!((answer, received.len()), (refused, 0));
    }

    #[test]
    fn nonsense_is_answered_and_the_end_is_seen() {
        let (daemon, mut keeper) = Channel::pair().unwrap();
        daemon.send(&"nonsense", &[]).unwrap();
        assert!(keeper.receive_request().unwrap().unwrap().is_err());
        daemon.send(&"x".repeat(REQUEST), &[]).unwrap();
        assert!(keeper.receive_request().is_err());
        assert!(!keeper.is_closed());
        drop(daemon);
        assert!(keeper.is_closed());
        assert_eq!(keeper.receive_request().unwrap(), None);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (mut daemon, _keeper) = Channel::pair().unwrap();
        daemon.set_patience(Duration::from_millis(20)).unwrap();
        assert_eq!(daemon.receive_answer().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
