//! The sockmap programs and maps as a typed handle: two sockets are joined, and from then on the kernel
//! carries data between them. `datapath` decides when to join them, and what to do at the end.
//!
//! Minimum kernel: 6.4, or one with its mends, as Debian's 6.1; others fail the trial at the start. Nothing is pinned: sockets leave the maps when
//! they are closed, so that nothing of this outlives the daemon, however it ends.

mod notices;
mod room;

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{HashMap, Map, MapData, MapError, SkStorage, SockHash},
    programs::{CgroupAttachMode, ProgramError, SkSkb, SockOps},
};
use edge_common::sockmap::{Beginning, Leg, MAX_MISSES};

use self::{
    notices::{Notice, Notices},
    room::Room,
};
use super::{
    KernelError, Objects, admin,
    cgroup::open_own_cgroup,
    keeper::{Request, keeper},
    load::map,
    tcp::{self, TcpInfo},
};
use crate::lock::lock;

const OBJECT: &str = "sockmap";
const VERDICT: &str = "verdict";
const TRACK: &str = "track";
const LEGS: &str = "LEGS";
const PEERS: &str = "PEERS";
const SOURCES: &str = "SOURCES";
const RING: &str = "NOTICES";
const BEGINNINGS: &str = "BEGINNINGS";
/// The maps that user space has a part in.
const MAPS: [&str; 5] = [LEGS, PEERS, SOURCES, RING, BEGINNINGS];
const DUPLICATING: &str = "duplicating a map's descriptor";

/// The bytes of one direction that may be in transit and unacknowledged, by default. This bounds the memory
/// that a stopped reader can take, and the throughput: one window of this size per round trip.
pub const DEFAULT_CREDIT: u64 = 4 << 20;

/// How long the trial at the start waits for its one octet.
const TRIAL: Duration = Duration::from_secs(2);

/// The programs, loaded and attached.
pub struct Sockmap {
    legs: Mutex<HashMap<MapData, u64, Leg>>,
    peers: Mutex<SockHash<MapData, u64>>,
    sources: Mutex<SockHash<MapData, u64>>,
    beginnings: SkStorage<MapData, Beginning>,
    notices: Notices,
    credit: u64,
    /// Kept for the programs, which are detached with it; the keeper has them where there is one.
    _programs: Option<Programs>,
}

/// Why two sockets cannot be joined. They are as they were before.
#[derive(Debug, thiserror::Error)]
pub enum NotJoined {
    /// One of them is not in the right state, was established before the programs were attached, or its peer
    /// has closed.
    #[error("{0}")]
    Unfit(&'static str),
    /// A socket could not be asked.
    #[error("a socket could not be asked: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused: MPTCP, a ULP such as kTLS, or too many.
    #[error(transparent)]
    Refused(#[from] KernelError),
}

/// The kernel's counts for one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Octets redirected.
    pub redirected: u64,
    /// Octets left to user space, in front of which all redirected ones go.
    pub passed: u64,
    /// Whether the direction is left to user space for good.
    pub spilled: bool,
    /// Whether octets went astray.
    pub broken: bool,
}

/// Two sockets between which the kernel carries data. Dropping this makes the kernel forget them, but does
/// not close them.
#[derive(Debug)]
pub struct Joined {
    /// The first socket: what it receives goes to the second.
    pub first: Arc<JoinedSocket>,
    /// The second socket.
    pub second: Arc<JoinedSocket>,
    notice: Arc<Notice>,
    sockmap: Arc<Sockmap>,
}

/// One of two joined sockets.
#[derive(Debug)]
pub struct JoinedSocket {
    cookie: u64,
    /// Octets that user space had read from it before.
    read_before: u64,
    /// Octets that user space had written to it before.
    sent_before: u64,
    /// The size of its send buffer before.
    send_buffer_before: usize,
    /// Whether the kernel never took what it receives.
    outside: AtomicBool,
    sockmap: Arc<Sockmap>,
}

impl Sockmap {
    /// Loads the programs, attaches them, and tries them on loopback.
    ///
    /// Sockets can be joined if they were established in this process's cgroup afterwards.
    pub fn load(objects: &Objects, credit: u64) -> Result<Arc<Self>, KernelError> {
        let (programs, maps) = if let Some(keeper) = keeper() {
            (None, keeper.ask(&Request::LoadSockmap)?.1)
        } else {
            let programs = Programs::load(objects)?;
            let maps = programs.maps()?;
            (Some(programs), maps)
        };
        let mut maps = maps.into_iter().map(MapData::from_fd);
        let mut next = |name| {
            let found = maps.next().ok_or(KernelError::Incomplete { object: OBJECT, part: name })?;
            found.map_err(map("opening", name))
        };
        // In the order of `MAPS`.
        let legs = Map::HashMap(next(LEGS)?).try_into().map_err(map("taking", LEGS))?;
        let peers = Map::SockHash(next(PEERS)?).try_into().map_err(map("taking", PEERS))?;
        let sources = Map::SockHash(next(SOURCES)?).try_into().map_err(map("taking", SOURCES))?;
        let ring = Map::RingBuf(next(RING)?).try_into().map_err(map("taking", RING))?;
        let beginnings = Map::SkStorage(next(BEGINNINGS)?).try_into().map_err(map("taking", BEGINNINGS))?;
        let notices = Notices::new(ring)
            .map_err(|source| KernelError::Call { call: "watching joined sockets", source })?;
        let sockmap = Arc::new(Self {
            legs: Mutex::new(legs),
            peers: Mutex::new(peers),
            sources: Mutex::new(sources),
            beginnings,
            notices,
            credit,
            _programs: programs,
        });
        let tried = Arc::clone(&sockmap);
        let tried = admin::run(move || tried.try_out());
        tried
            .map_err(|source| KernelError::Call { call: "trying the redirection on loopback", source })??;
        Ok(sockmap)
    }

    /// Sends one byte through two connections on loopback, with a second one behind it that arrived before
    /// they were joined and was read in part. Faults of a kernel show here and not with a client.
    fn try_out(self: &Arc<Self>) -> Result<(), KernelError> {
        let error = |source| KernelError::Call { call: "trying the redirection on loopback", source };
        let pair = || -> io::Result<(TcpStream, TcpStream)> {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let far = TcpStream::connect(listener.local_addr()?)?;
            Ok((far, listener.accept()?.0))
        };
        let (mut client, mut near_client) = pair().map_err(error)?;
        let (mut backend, near_backend) = pair().map_err(error)?;
        let mut octets = [0; 2];
        (|| {
            near_client.set_read_timeout(Some(TRIAL))?;
            backend.set_read_timeout(Some(TRIAL))?;
            client.write_all(b"012")?;
            near_client.read_exact(&mut octets[..1])
        })()
        .map_err(error)?;
        let joined = self.join(&near_client, &near_backend).map_err(|refusal| match refusal {
            NotJoined::Refused(error) => error,
            NotJoined::Socket(source) => error(source),
            NotJoined::Unfit(reason) => error(io::Error::other(reason)),
        })?;
        backend.read_exact(&mut octets).map_err(error)?;
        let progress = joined.first.progress().map_err(error)?;
        let expected = Progress { redirected: 2, ..Progress::default() };
        if octets != *b"12" || progress != expected {
            return Err(error(io::Error::other(format!(
                "this kernel does not redirect as it should: {octets:?}, {progress:?}"
            ))));
        }
        Ok(())
    }

    /// Hands two established connections over to the kernel: from now on it carries data received by one to
    /// the other. Bytes that either has received and user space has not read go first.
    ///
    /// Nothing may be read from or written to either socket any more, unless [`Progress::spilled`] says so.
    pub fn join(self: &Arc<Self>, first: impl AsFd, second: impl AsFd) -> Result<Joined, NotJoined> {
        let (first, second) = (first.as_fd(), second.as_fd());
        let (mut one, mut two) = (self.leg(first)?, self.leg(second)?);
        (one.leg.peer, two.leg.peer) = (two.cookie, one.cookie);
        let notice = Arc::new(Notice::default());
        // From here on the drops take back what was done.
        let rooms = (Room::make(first, self.credit)?, Room::make(second, self.credit)?);
        let joined = Joined {
            first: Arc::new(one.joined(&rooms.0, self)),
            second: Arc::new(two.joined(&rooms.1, self)),
            notice: Arc::clone(&notice),
            sockmap: Arc::clone(self),
        };
        {
            let mut legs = lock(&self.legs);
            legs.insert(one.cookie, one.leg, 0).map_err(map("writing to", LEGS))?;
            legs.insert(two.cookie, two.leg, 0).map_err(map("writing to", LEGS))?;
        }
        // A socket in the map cannot lose its reports any more; it may have lost them just before.
        self.watched(first)?;
        self.watched(second)?;
        self.notices.watch(one.cookie, first, &notice)?;
        self.notices.watch(two.cookie, second, &notice)?;
        // Until a verdict sees one of them, nothing is lost by taking them out again.
        let withdraw = |peers: &mut SockHash<MapData, u64>| {
            for (cookie, socket) in [(one.cookie, first), (two.cookie, second)] {
                let _ = peers.remove(&cookie);
                self.notices.leave(socket);
            }
        };
        {
            // Both can be redirected to before either is redirected from.
            let mut peers = lock(&self.peers);
            let first = peers.insert(one.cookie, first.as_raw_fd(), 0);
            if let Err(error) = first.and_then(|()| peers.insert(two.cookie, second.as_raw_fd(), 0)) {
                withdraw(&mut peers);
                return Err(map("writing to", PEERS)(error).into());
            }
        }
        // The backend's socket goes first: it may have answered and closed by now.
        let mut sources = lock(&self.sources);
        if let Err(error) = sources.insert(two.cookie, second.as_raw_fd(), 0) {
            withdraw(&mut lock(&self.peers));
            return Err(map("writing to", SOURCES)(error).into());
        }
        if let Err(error) = sources.insert(one.cookie, first.as_raw_fd(), 0) {
            // Data of the second that the verdict has taken cannot be returned, so only the first stays
            // outside.
            tracing::debug!(%error, "a connection that ended while it was handed over");
            joined.first.outside.store(true, Ordering::Release);
            notice.give();
        }
        drop(sources);
        // Data that was queued before has no event to come.
        tcp::set_receive_low_water(first, 1)?;
        tcp::set_receive_low_water(second, 1)?;
        rooms.0.keep();
        rooms.1.keep();
        Ok(joined)
    }

    fn leg(&self, socket: BorrowedFd<'_>) -> Result<Prepared, NotJoined> {
        let beginning = self.watched(socket)?;
        let cookie = rustix::net::sockopt::socket_cookie(socket).map_err(io::Error::from)?;
        let read_before = tcp::read_so_far(socket)?;
        let (sent_before, info) = tcp::written(socket)?;
        if info.state != TcpInfo::ESTABLISHED {
            return Err(NotJoined::Unfit("a side has closed"));
        }
        // Sequence numbers wrap.
        #[expect(clippy::cast_possible_truncation, reason = "modulo 2^32 on purpose")]
        let next = beginning.first.wrapping_add(read_before as u32);
        let leg = Leg { credit: self.credit, sent_before, acked: info.bytes_acked, next, ..Leg::default() };
        Ok(Prepared { cookie, read_before, leg })
    }

    /// How the socket began, if its round trips are still reported.
    fn watched(&self, socket: BorrowedFd<'_>) -> Result<Beginning, NotJoined> {
        match self.beginnings.get(&socket.as_raw_fd(), 0) {
            Ok(beginning) if beginning.misses < MAX_MISSES => Ok(beginning),
            Ok(_) => Err(NotJoined::Unfit("it was carried otherwise for too long")),
            Err(MapError::KeyNotFound) => Err(NotJoined::Unfit("it is older than the programs")),
            Err(error) => Err(map("reading", BEGINNINGS)(error).into()),
        }
    }

    /// Wakes the tasks whose connections need attention, for as long as it is polled; without it they are not
    /// served.
    pub async fn deliver(&self) -> io::Result<()> {
        self.notices.deliver().await
    }
}

/// The programs, loaded and attached; detached when this is dropped.
pub(super) struct Programs(Ebpf);

impl Programs {
    /// Loads the programs and attaches them, to the cgroup of this process among others.
    pub(super) fn load(objects: &Objects) -> Result<Self, KernelError> {
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::STATS);
        let parsed = loader.load(&objects.sockmap()?);
        let mut ebpf =
            parsed.map_err(|source| KernelError::Object { object: OBJECT, source: Box::new(source) })?;
        verdict(&mut ebpf)?.load().map_err(failed("loading", VERDICT))?;
        track(&mut ebpf)?.load().map_err(failed("loading", TRACK))?;
        let incomplete = KernelError::Incomplete { object: OBJECT, part: SOURCES };
        let sources = SockHash::<_, u64>::try_from(ebpf.map(SOURCES).ok_or(incomplete)?);
        let sources = sources.map_err(map("taking", SOURCES))?.fd().try_clone();
        let sources = sources.map_err(|source| KernelError::Call { call: DUPLICATING, source })?;
        verdict(&mut ebpf)?.attach(&sources).map_err(failed("attaching", VERDICT))?;
        let group = open_own_cgroup()?;
        track(&mut ebpf)?.attach(group, CgroupAttachMode::Single).map_err(failed("attaching", TRACK))?;
        Ok(Self(ebpf))
    }

    /// The descriptors of [`MAPS`], copied.
    pub(super) fn maps(&self) -> Result<Vec<OwnedFd>, KernelError> {
        let descriptor = |part| match self.0.map(part) {
            Some(Map::HashMap(data) | Map::SockHash(data) | Map::RingBuf(data) | Map::SkStorage(data)) => {
                let copied = data.fd().as_fd().try_clone_to_owned();
                copied.map_err(|source| KernelError::Call { call: DUPLICATING, source })
            }
            _ => Err(KernelError::Incomplete { object: OBJECT, part }),
        };
        MAPS.into_iter().map(descriptor).collect()
    }
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

impl fmt::Debug for Sockmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sockmap").field("credit", &self.credit).finish_non_exhaustive()
    }
}

/// A socket about to be joined.
struct Prepared {
    cookie: u64,
    read_before: u64,
    leg: Leg,
}

impl Prepared {
    fn joined(&self, room: &Room<'_>, sockmap: &Arc<Sockmap>) -> JoinedSocket {
        JoinedSocket {
            cookie: self.cookie,
            send_buffer_before: room.before(),
            read_before: self.read_before,
            sent_before: self.leg.sent_before,
            outside: AtomicBool::new(false),
            sockmap: Arc::clone(sockmap),
        }
    }
}

impl Joined {
    /// Ready when a side has closed or failed, or when the kernel has left a direction to user space or lost
    /// it; the sockets show which. Only one task may wait.
    pub fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.notice.poll(cx)
    }

    /// Turns of this socket, one of the two, are no longer of interest.
    pub fn leave(&self, socket: impl AsFd) {
        self.sockmap.notices.leave(socket);
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        let mut legs = lock(&self.sockmap.legs);
        for cookie in [self.first.cookie, self.second.cookie] {
            self.sockmap.notices.forget(cookie);
            // Missing where the hand-over stopped half-way.
            let _ = legs.remove(&cookie);
        }
    }
}

impl JoinedSocket {
    /// The kernel's counts for the data that this socket received.
    pub fn progress(&self) -> io::Result<Progress> {
        let leg = lock(&self.sockmap.legs).get(&self.cookie, 0).map_err(io::Error::other)?;
        Ok(Progress {
            redirected: leg.redirected,
            passed: leg.passed,
            spilled: leg.flags & Leg::SPILLED != 0 || self.is_outside(),
            broken: leg.flags & Leg::BROKEN != 0,
        })
    }

    /// Whether all data that it receives is left to user space, because it closed before the kernel took any;
    /// [`Progress::passed`] does not count it then.
    pub fn is_outside(&self) -> bool {
        self.outside.load(Ordering::Acquire)
    }

    /// The bytes that the socket has received since it was joined, from a current query. A FIN counts as one.
    pub fn received(&self, info: &TcpInfo) -> u64 {
        info.bytes_received.saturating_sub(self.read_before)
    }

    /// Nothing is redirected to the socket any more: its send buffer is as it was before.
    pub fn give_room_back(&self, socket: impl AsFd) {
        room::give_back(socket, self.send_buffer_before);
    }

    /// Octets that have been queued for sending at the socket since it was joined.
    pub fn queued(&self, socket: impl AsFd) -> io::Result<u64> {
        Ok(tcp::written(socket.as_fd())?.0.saturating_sub(self.sent_before))
    }
}

fn verdict(ebpf: &mut Ebpf) -> Result<&mut SkSkb, KernelError> {
    let found = ebpf.program_mut(VERDICT).ok_or(KernelError::Incomplete { object: OBJECT, part: VERDICT })?;
    found.try_into().map_err(failed("taking", VERDICT))
}

fn track(ebpf: &mut Ebpf) -> Result<&mut SockOps, KernelError> {
    let found = ebpf.program_mut(TRACK).ok_or(KernelError::Incomplete { object: OBJECT, part: TRACK })?;
    found.try_into().map_err(failed("taking", TRACK))
}

fn failed(call: &'static str, program: &'static str) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Program { call, program, source: Box::new(source) }
}
