//! The line between the two ends of a tunnel. It relays WireGuard's datagrams, and can delay them, lose those
//! that are too large, or lose all silently, like a home router that was unplugged.
//!
//! Real delay needs netem or a machine in between. WireGuard uses UDP, so a pair of sockets suffices.

use std::{
    collections::VecDeque,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use socket2::SockRef;

use crate::{Host, lock::lock};

/// How often a thread looks whether it is to stop.
const TICK: Duration = Duration::from_millis(100);
/// Larger than any datagram.
const LARGEST: usize = 65536;
/// The kernel's buffer while the relay thread is not scheduled: a burst of a bulk transfer.
const QUEUE: usize = 4 << 20;

/// A line. It ends when the value goes.
#[derive(Debug)]
pub struct Relay {
    near: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// One way, in microseconds.
    delay: AtomicU64,
    largest: AtomicUsize,
    cut: AtomicBool,
    stopped: AtomicBool,
    /// The sender on the near side.
    sender: Mutex<Option<SocketAddr>>,
}

impl Relay {
    /// A line from `host` to `to`: datagrams that arrive at [`near`](Self::near) leave there, and answers
    /// come back.
    pub fn start(host: &Host, to: SocketAddr) -> Result<Self> {
        let socket = |on: &str| {
            let socket = host.run(|| Ok(UdpSocket::bind(on)?))?;
            socket.set_read_timeout(Some(TICK))?;
            SockRef::from(&socket).set_recv_buffer_size(QUEUE)?;
            anyhow::Ok(Arc::new(socket))
        };
        let near = socket("127.0.0.1:0")?;
        let far = socket("0.0.0.0:0")?;
        far.connect(to)?;
        let shared = Arc::new(Shared {
            delay: AtomicU64::new(0),
            largest: AtomicUsize::new(LARGEST),
            cut: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            sender: Mutex::new(None),
        });
        let address = near.local_addr()?;
        let threads = [way(&near, &far, true, &shared), way(&far, &near, false, &shared)];
        Ok(Self { near: address, shared, threads: threads.into_iter().flatten().collect() })
    }

    /// Where the near end sends to.
    pub fn near(&self) -> SocketAddr {
        self.near
    }

    /// From now on each datagram takes this long, either way.
    pub fn delay(&self, one_way: Duration) {
        let micros = u64::try_from(one_way.as_micros()).unwrap_or(u64::MAX);
        self.shared.delay.store(micros, Ordering::SeqCst);
    }

    /// From now on larger datagrams than this are lost.
    pub fn lose_above(&self, bytes: usize) {
        self.shared.largest.store(bytes, Ordering::SeqCst);
    }

    /// From now on everything is lost, or no more.
    pub fn cut(&self, cut: bool) {
        self.shared.cut.store(cut, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The threads of one direction: one that reads, one that sends when the time has come.
fn way(from: &Arc<UdpSocket>, to: &Arc<UdpSocket>, up: bool, shared: &Arc<Shared>) -> [JoinHandle<()>; 2] {
    let (later, due) = channel();
    let reader = thread::spawn({
        let (from, to, shared) = (Arc::clone(from), Arc::clone(to), Arc::clone(shared));
        move || read(&from, &to, up, &shared, &later)
    });
    let sender = thread::spawn({
        let (to, shared) = (Arc::clone(to), Arc::clone(shared));
        move || send_later(&to, up, &shared, &due)
    });
    [reader, sender]
}

fn read(from: &UdpSocket, to: &UdpSocket, up: bool, shared: &Shared, later: &Sender<(Instant, Vec<u8>)>) {
    let mut buffer = vec![0; LARGEST];
    while !shared.stopped.load(Ordering::SeqCst) {
        // An error is a timeout, or the ICMP answer to an earlier datagram: the other end may still appear.
        let Ok((length, sender)) = from.recv_from(&mut buffer) else { continue };
        if up {
            *lock(&shared.sender) = Some(sender);
        }
        if shared.cut.load(Ordering::SeqCst) || length > shared.largest.load(Ordering::SeqCst) {
            continue;
        }
        match shared.delay.load(Ordering::SeqCst) {
            0 => send(to, up, shared, &buffer[..length]),
            micros => {
                let due = Instant::now() + Duration::from_micros(micros);
                if later.send((due, buffer[..length].to_vec())).is_err() {
                    return;
                }
            }
        }
    }
}

fn send_later(to: &UdpSocket, up: bool, shared: &Shared, due: &Receiver<(Instant, Vec<u8>)>) {
    let mut waiting = VecDeque::new();
    while !shared.stopped.load(Ordering::SeqCst) {
        let pause = waiting
            .front()
            .map_or(TICK, |(at, _): &(Instant, Vec<u8>)| at.saturating_duration_since(Instant::now()));
        match due.recv_timeout(pause.min(TICK)) {
            Ok(datagram) => waiting.push_back(datagram),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while waiting.front().is_some_and(|(at, _)| *at <= Instant::now()) {
            if let Some((_, datagram)) = waiting.pop_front() {
                send(to, up, shared, &datagram);
            }
        }
    }
}

fn send(to: &UdpSocket, up: bool, shared: &Shared, datagram: &[u8]) {
    // A lost packet stays lost, as on any line.
    if up {
        let _ = to.send(datagram);
    } else if let Some(sender) = *lock(&shared.sender) {
        let _ = to.send_to(datagram, sender);
    }
}
