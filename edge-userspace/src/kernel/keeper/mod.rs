//! The keeper: a second process that keeps the rights which the daemon drops.
//!
//! It is forked before the daemon has any other thread, and keeps uid 0 and the capabilities for BPF. It
//! holds the loaded programs, and answers the daemon's few typed [`Request`]s over a socket pair. It opens no
//! port and reads nothing from the network. The daemon keeps the maps: reading and writing them takes a
//! descriptor and no capability (Linux 5.19; `__sys_bpf` in `kernel/bpf/syscall.c`).
//!
//! The keeper ends with the daemon. If the keeper ends first, the daemon continues to serve. Attached
//! programs stay attached, devices that appear later carry no flows and drop no packets, and doctor reports
//! it.
//!
//! No connection waits for the keeper: it is asked once per device, when the operator changes something, and beside the
//! connections for what connection tracking keeps of flows.
#![expect(unsafe_code, reason = "fork")]

mod channel;
mod protocol;
mod server;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use self::channel::Channel;
use self::protocol::{Connections, DeviceName, MOST_CONNECTIONS};
pub(super) use self::protocol::{Indexes, Reply, Request};
pub use self::server::{AskPeers, Server, Wards};
use super::{Ends, IpsecPolicies, KernelError, capability};
use crate::lock::lock;

/// The longest that the daemon waits for an answer: loading programs on an emulated machine takes seconds.
const PATIENCE: Duration = Duration::from_mins(1);

/// The keeper of this process. A process has one at most, like a parent.
static KEEPER: OnceLock<Keeper> = OnceLock::new();

/// The daemon's end of the socket pair.
#[derive(Debug)]
pub struct Keeper {
    channel: Mutex<Channel>,
    gone: AtomicBool,
}

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Forked {
    /// The daemon, which has a [`keeper`] from now on.
    Daemon,
    /// The keeper, to be [run](Server::run).
    Keeper(Server),
}

/// The keeper of this process; `None` where none was started.
pub fn keeper() -> Option<&'static Keeper> {
    KEEPER.get()
}

/// Splits the process. To be called before there is any other thread.
pub fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 || keeper().is_some() {
        return Err(io::Error::other("the keeper can be started once, before any thread"));
    }
    let (ours, theirs) = Channel::pair()?;
    // SAFETY: the process has one thread, so the child is a whole copy: no lock is held by a thread that it lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // The keeper learns of the daemon's end when the last copy of this descriptor is closed.
            drop(ours);
            Ok(Forked::Keeper(Server::new(theirs)))
        }
        _ => {
            drop(theirs);
            ours.set_patience(PATIENCE)?;
            let _ = KEEPER.set(Keeper { channel: Mutex::new(ours), gone: AtomicBool::new(false) });
            Ok(Forked::Daemon)
        }
    }
}

impl Keeper {
    /// Whether the keeper has ended, as far as is known.
    pub fn is_gone(&self) -> bool {
        let channel = self.channel.try_lock();
        // A lock that is held belongs to a request under way.
        if channel.is_ok_and(|channel| channel.is_closed()) {
            self.gone.store(true, Ordering::Release);
        }
        self.gone.load(Ordering::Acquire)
    }

    /// The WireGuard peers of a device, serialised by the daemon's own code ([`AskPeers`]); waits for the
    /// answer.
    pub fn peers(&self, device: &str) -> io::Result<String> {
        let device = DeviceName::try_from(device.to_owned()).map_err(io::Error::other)?;
        match self.ask(&Request::Peers { device }) {
            Ok((Reply::Peers(peers), _)) => Ok(peers),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(io::Error::other(error.words())),
        }
    }

    /// [`Conntrack::forget`](super::Conntrack::forget), or [`loosen`](super::Conntrack::loosen).
    pub(super) fn track(&self, connections: &[Ends], only_loosen: bool) -> Result<(), KernelError> {
        for some in connections.chunks(MOST_CONNECTIONS) {
            let Ok(connections) = Connections::try_from(some.to_vec()) else { continue };
            let request = if only_loosen {
                Request::LoosenTracks { connections }
            } else {
                Request::ForgetTracks { connections }
            };
            self.ask(&request)?;
        }
        Ok(())
    }

    /// The IPsec policies of this machine.
    pub(super) fn policies(&self) -> io::Result<IpsecPolicies> {
        match self.ask(&Request::Policies) {
            Ok((Reply::Policies(policies), _)) => Ok(policies),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(error) => Err(io::Error::other(error.words())),
        }
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), KernelError> {
        let gone = || KernelError::Keeper {
            words: "the privileged process of edged has ended: restart edged".into(),
            denied: false,
        };
        if self.gone.load(Ordering::Acquire) {
            return Err(gone());
        }
        let answer = {
            let mut channel = lock(&self.channel);
            channel.send_request(request).and_then(|()| channel.receive_answer())
        };
        match answer {
            Ok((Ok(reply), descriptors)) => Ok((reply, descriptors)),
            Ok((Err(refusal), _)) => {
                Err(KernelError::Keeper { words: refusal.words, denied: refusal.is_denied })
            }
            Err(error) => {
                // An answer that comes later would be taken for that of another request.
                if !self.gone.swap(true, Ordering::AcqRel) {
                    tracing::error!(
                        %error,
                        "the privileged process of edged does not answer: devices that come from now on carry no flows \
                         and drop nothing; restart edged"
                    );
                }
                Err(gone())
            }
        }
    }
}

/// Whether maps can be used without `CAP_BPF`: not before Linux 5.19 where unprivileged BPF is off.
pub(super) fn maps_need_rights() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let disabled = std::fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled");
    version < (5, 19) && disabled.is_ok_and(|value| value.trim() != "0")
}

/// Whether this process could attach anything, so that a keeper is of use.
pub fn is_worthwhile() -> bool {
    capability::effective().is_ok_and(|have| have.contains(&capability::Capability::CAP_NET_ADMIN))
}
