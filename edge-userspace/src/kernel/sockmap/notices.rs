//! Transitions of joined sockets: a FIN, a reset, a direction left to user space.
//!
//! Data is not a transition. A socket whose data is redirected still becomes readable with every segment, and
//! in the runtime's epoll each segment would wake a worker for nothing. Joined sockets are therefore in a
//! separate epoll that watches for closes and errors only.
#![expect(unsafe_code, reason = "registering a descriptor with the runtime")]

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use crate::lock::lock;
use aya::maps::{MapData, RingBuf};
use futures_util::task::AtomicWaker;
use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

/// The ring of notices among the sockets, which are named by their cookies: no cookie is 0.
const RING: u64 = 0;
/// Events taken at once.
const EVENTS: usize = 64;

/// Where a turn is noted and the task that has to act is woken.
#[derive(Debug, Default)]
pub(super) struct Notice {
    given: AtomicBool,
    task: AtomicWaker,
}

impl Notice {
    pub(super) fn give(&self) {
        self.given.store(true, Ordering::Release);
        self.task.wake();
    }

    /// Ready once for all that was given before. Only one task may wait.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.task.register(cx.waker());
        if self.given.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Tasks that wait for notices.
pub(super) struct Notices {
    epoll: OwnedFd,
    ring: Mutex<RingBuf<MapData>>,
    waiting: Mutex<HashMap<u64, Arc<Notice>>>,
}

impl Notices {
    pub(super) fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &ring, EventData::new_u64(RING), EventFlags::IN | EventFlags::ET)?;
        Ok(Self { epoll, ring: Mutex::new(ring), waiting: Mutex::default() })
    }

    /// From now on turns of the socket of this cookie are noted.
    pub(super) fn watch(&self, cookie: u64, socket: impl AsFd, notice: &Arc<Notice>) -> io::Result<()> {
        self.waiting().insert(cookie, Arc::clone(notice));
        let turns = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR | EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, EventData::new_u64(cookie), turns)?)
    }

    /// The socket is somebody else's to watch. A closed one needs no such call.
    pub(super) fn leave(&self, socket: impl AsFd) {
        // Fails only where it was not watched.
        let _ = epoll::delete(&self.epoll, socket);
    }

    pub(super) fn forget(&self, cookie: u64) {
        self.waiting().remove(&cookie);
    }

    /// Delivers what happens for as long as it is polled.
    pub(super) async fn deliver(&self) -> io::Result<()> {
        // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped, together with the `AsyncFd`.
        let events = unsafe { AsyncFd::register_with_interest(self.epoll.try_clone()?, Interest::READABLE) }?;
        loop {
            let mut ready = events.readable().await?;
            // Before the look: what comes after it makes it ready again.
            ready.clear_ready();
            while self.take_events()? {}
        }
    }

    /// Takes some events; `false` when there are none left.
    fn take_events(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::<Event>::uninit(); EVENTS];
        let (events, _) = match epoll::wait(&self.epoll, &mut buffer, Some(&Timespec::default())) {
            Err(Errno::INTR) => return Ok(true),
            result => result?,
        };
        let mut ring = false;
        for event in &*events {
            match event.data.u64() {
                RING => ring = true,
                cookie => self.give(cookie),
            }
        }
        let any = !events.is_empty();
        if ring {
            let mut ring = lock(&self.ring);
            while let Some(notice) = ring.next() {
                if let Some(octets) = notice.first_chunk() {
                    self.give(u64::from_ne_bytes(*octets));
                }
            }
        }
        Ok(any)
    }

    fn give(&self, cookie: u64) {
        if let Some(notice) = self.waiting().get(&cookie) {
            notice.give();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Arc<Notice>>> {
        lock(&self.waiting)
    }
}
