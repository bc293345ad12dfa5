//! Warm connections: a few idle ones to a backend, so that a client need not wait for the handshake on the way home.
//!
//! They are plain connections on which nothing was sent, not even a PROXY header, and each is used once. A
//! socket belongs to a runtime, and a runtime to a worker's thread, so each worker has its own stock. It
//! begins with the worker's first client of a backend. [`stock`](super::stock) decides how many there are and
//! for how long.

use std::{
    cell::RefCell,
    collections::HashMap,
    convert::Infallible,
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, future, stream::FuturesUnordered};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::{Notify, oneshot},
    time::{Instant, sleep_until},
};

use super::{
    connect,
    stock::{Demand, Pace},
};
use crate::{
    lock::lock,
    pool::Backend,
    spec::{SocketName, Warm},
};

/// Time for an idle connection to be established; nobody waits for it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a backend that went down, left the configuration or is warmed otherwise is noticed.
const TICK: Duration = Duration::from_secs(1);
/// Idle connections to one backend that a worker keeps at most.
const MAX_IDLE: usize = 64;

thread_local! {
    static STOCK: RefCell<Option<Stock>> = const { RefCell::new(None) };
}

/// The stock of one worker.
struct Stock {
    workers: u32,
    /// Keyed by the backend's address in memory, which cannot be reused while the entry holds on to it, and
    /// the listener's port.
    stashes: HashMap<(usize, u16), Arc<Stash>>,
}

/// Enables warm connections on this thread, which is one of so many workers that share the configured number.
/// Without this, every connection is made when it is needed.
pub fn enable(workers: usize) {
    let workers = u32::try_from(workers).unwrap_or(u32::MAX).max(1);
    STOCK.set(Some(Stock { workers, stashes: HashMap::new() }));
}

/// A warm connection to the backend if there is one; there may be for the next client in any case.
pub(super) fn take(backend: &Arc<Backend>, default_port: u16) -> Option<(TcpStream, SocketName)> {
    if backend.warm() == Warm::Count(0) || !backend.state().takes_connections() {
        return None;
    }
    STOCK.with_borrow_mut(|stock| {
        let stock = stock.as_mut()?;
        let key = (Arc::as_ptr(backend).addr(), default_port);
        if !stock.stashes.contains_key(&key) {
            stock.stashes.retain(|_, stash| stash.backend.strong_count() > 0);
            let stash = Arc::new(Stash {
                backend: Arc::downgrade(backend),
                default_port,
                shelf: Mutex::default(),
                work: Notify::new(),
            });
            tokio::spawn(keep(Arc::clone(&stash), stock.workers));
            stock.stashes.insert(key, stash);
        }
        stock.stashes.get(&key)?.take()
    })
}

/// The idle connections of one worker to one backend.
struct Stash {
    backend: Weak<Backend>,
    default_port: u16,
    shelf: Mutex<Shelf>,
    /// One was taken.
    work: Notify,
}

#[derive(Default)]
struct Shelf {
    /// The oldest first.
    idle: Vec<Arc<Idle>>,
    demand: Demand,
    taken: bool,
}

struct Idle {
    since: Instant,
    address: SocketName,
    /// Empty once it is taken.
    stream: Mutex<Option<TcpStream>>,
    /// Dropped with this, which ends the watch.
    _end: oneshot::Sender<Infallible>,
}

impl Stash {
    fn take(&self) -> Option<(TcpStream, SocketName)> {
        let mut ready = lock(&self.shelf);
        ready.demand.taken(Instant::now().into_std());
        self.work.notify_one();
        // The youngest is the least likely to be closed just now.
        while let Some(idle) = ready.idle.pop() {
            let stream = lock(&idle.stream).take();
            if let Some(stream) = stream.filter(is_silent) {
                ready.taken = true;
                return Some((stream, idle.address.clone()));
            }
        }
        None
    }
}

/// Whether nothing has come from the other end, neither its end nor a word.
fn is_silent(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Ends with the connection itself if the backend closes it or sends first, and with `None` if it left the
/// shelf otherwise.
struct Watch {
    idle: Weak<Idle>,
    end: oneshot::Receiver<Infallible>,
}

impl Future for Watch {
    type Output = Option<Arc<Idle>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if Pin::new(&mut self.end).poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        let Some(idle) = self.idle.upgrade() else { return Poll::Ready(None) };
        let ready = match &*lock(&idle.stream) {
            Some(stream) => stream.poll_read_ready(cx).is_ready(),
            None => false,
        };
        if ready { Poll::Ready(Some(idle)) } else { Poll::Pending }
    }
}

/// Keeps a stash filled for as long as its backend exists.
async fn keep(stash: Arc<Stash>, workers: u32) {
    let mut pace = Pace::default();
    let mut watched: FuturesUnordered<Watch> = FuturesUnordered::new();
    while let Some(backend) = stash.backend.upgrade() {
        let now = Instant::now();
        let wanted = match backend.warm() {
            _ if !backend.state().takes_connections() => 0,
            Warm::Count(count) => count.div_ceil(workers) as usize,
            Warm::Auto => lock(&stash.shelf).demand.wanted(now.into_std()),
        };
        let wanted = wanted.min(MAX_IDLE);
        let (missing, oldest) = {
            let mut shelf = lock(&stash.shelf);
            if std::mem::take(&mut shelf.taken) {
                pace.used();
            }
            let before = shelf.idle.len();
            shelf.idle.retain(|idle| now.duration_since(idle.since) < pace.lifetime());
            if shelf.idle.len() < before {
                pace.outlived();
            }
            let surplus = shelf.idle.len().saturating_sub(wanted);
            shelf.idle.drain(..surplus);
            (wanted - shelf.idle.len(), shelf.idle.first().map(|idle| idle.since))
        };
        let pause = pace.pause(now.into_std());
        if missing > 0 && pause.is_zero() {
            let made = (0..missing).map(|_| connect(&backend, stash.default_port, CONNECT_TIMEOUT));
            for made in future::join_all(made).await {
                match made {
                    Ok((stream, address)) => {
                        let (end, ended) = oneshot::channel();
                        let stream = Mutex::new(Some(stream));
                        let idle = Arc::new(Idle { since: Instant::now(), address, stream, _end: end });
                        watched.push(Watch { idle: Arc::downgrade(&idle), end: ended });
                        lock(&stash.shelf).idle.push(idle);
                    }
                    // Whether it is down is for its health to say.
                    Err(error) => {
                        tracing::debug!(backend = %backend.id(), %error, "no warm connection");
                        pace.failed(Instant::now().into_std());
                    }
                }
            }
            continue;
        }
        drop(backend);
        let mut next = now + TICK;
        if missing > 0 {
            next = next.min(now + pause);
        }
        if let Some(oldest) = oldest {
            next = next.min(oldest + pace.lifetime());
        }
        tokio::select! {
            () = stash.work.notified() => {}
            () = sleep_until(next) => {}
            Some(ended) = watched.next() => if let Some(idle) = ended {
                lock(&stash.shelf).idle.retain(|other| !Arc::ptr_eq(other, &idle));
                pace.closed(Instant::now().into_std(), idle.since.elapsed());
            }
        }
    }
    lock(&stash.shelf).idle.clear();
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        pool::{Backends, Pool},
        spec::{BackendSpec, PoolSpec},
    };

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    async fn home(warm: Warm) -> (TcpListener, Pool) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap().to_string().parse().unwrap();
        let spec = PoolSpec { warm, ..PoolSpec::new("home", vec![BackendSpec::new(to)]) };
        (listener, Backends::default().pool(&spec))
    }

    async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
        let accepted = tokio::time::timeout(Duration::from_secs(10), listener.accept()).await;
        accepted.expect("in time").unwrap()
    }

    /// Waits until this worker has so many connections ready: the other end may know of one first.
    async fn stocked(count: usize) {
        let idle = || {
            STOCK.with_borrow(|stock| {
                let stashes = stock.iter().flat_map(|stock| stock.stashes.values());
                stashes.map(|stash| lock(&stash.shelf).idle.len()).sum::<usize>()
            })
        };
        let wait = async {
            while idle() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time");
    }

    #[tokio::test]
    async fn the_second_client_finds_a_connection_ready() {
        enable(1);
        let (listener, pool) = home(Warm::Count(2)).await;
        let cold = pool.connect(CLIENT, 443).await.unwrap();
        assert!(!cold.warm);
        let mut accepted = Vec::new();
        for _ in 0..3 {
            accepted.push(accept(&listener).await);
        }
        stocked(2).await;
        let mut warm = pool.connect(CLIENT, 443).await.unwrap();
        assert!(warm.warm);
        assert_eq!(pool.backends()[0].connections(), 2, "idle ones are no connections of clients");
        // It is one of those accepted before, and the first byte on it is the client's.
        let local = warm.stream.local_addr().unwrap();
        let (far, _) = accepted.iter_mut().find(|(_, peer)| *peer == local).expect("already there");
        warm.stream.write_all(b"x").await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), b'x');
        accept(&listener).await;
    }

    #[tokio::test]
    async fn one_that_the_backend_closed_is_not_used_and_replaced() {
        enable(1);
        let (listener, pool) = home(Warm::Count(1)).await;
        pool.connect(CLIENT, 443).await.unwrap();
        let mut open = vec![accept(&listener).await.0, accept(&listener).await.0];
        stocked(1).await;
        // Older than what counts as hostile to idle connections.
        tokio::time::sleep(super::super::stock::SHORT + Duration::from_millis(50)).await;
        open.clear();
        let (_replacement, peer) = accept(&listener).await;
        stocked(1).await;
        let warm = pool.connect(CLIENT, 443).await.unwrap();
        assert_eq!((warm.warm, warm.stream.local_addr().unwrap()), (true, peer));
    }

    #[tokio::test]
    async fn a_closed_one_is_noticed_even_when_taken_at_once() {
        let (listener, pool) = home(Warm::Count(1)).await;
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(is_silent(&stream));
        drop(accept(&listener).await);
        stream.readable().await.unwrap();
        assert!(!is_silent(&stream));
        drop(pool);
    }

    #[tokio::test]
    async fn a_backend_that_goes_down_loses_its_idle_connections() {
        enable(1);
        let (listener, pool) = home(Warm::Count(1)).await;
        pool.connect(CLIENT, 443).await.unwrap();
        let (_client, mut idle) = (accept(&listener).await.0, accept(&listener).await.0);
        pool.backends()[0].drain();
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn one_that_leaves_the_configuration_too() {
        enable(1);
        let (listener, pool) = home(Warm::Count(1)).await;
        drop(pool.connect(CLIENT, 443).await.unwrap());
        let (_client, mut idle) = (accept(&listener).await.0, accept(&listener).await.0);
        drop(pool);
        assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn workers_share_the_number() {
        enable(2);
        let (listener, pool) = home(Warm::Count(3)).await;
        pool.connect(CLIENT, 443).await.unwrap();
        for _ in 0..3 {
            accept(&listener).await;
        }
        let another = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
        assert!(another.is_err(), "two of three are this worker's");
    }

    #[tokio::test]
    async fn without_a_stock_nothing_is_kept() {
        STOCK.set(None);
        let (listener, pool) = home(Warm::Count(4)).await;
        assert!(!pool.connect(CLIENT, 443).await.unwrap().warm);
        accept(&listener).await;
        assert!(!pool.connect(CLIENT, 443).await.unwrap().warm);
    }
}
