//! The services at home, each of which can die and return, and the short protocol that visitors use: after
//! the hello the visitor sends an order; the service answers with its own number and carries the order out.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use socket2::{SockRef, TcpKeepalive};

use crate::{
    Host, Lab, firewall,
    lock::lock,
    service::send_back,
    stream::{self, End, Pace, Pattern},
    wait::{self, SOON},
};

/// A name that visitors ask for.
#[derive(Debug)]
pub(super) struct Site {
    /// The name.
    pub(super) host: &'static str,
    /// The tier that its route allows.
    pub(super) datapath: &'static str,
    /// The backends behind it, by number.
    pub(super) backends: &'static [usize],
}

/// All of them: every tier, by the tunnel and by the link, and a pool of two.
pub(super) const SITES: [Site; 6] = [
    Site { host: "auto.soak.example", datapath: "auto", backends: &[0] },
    Site { host: "flow.soak.example", datapath: "flow", backends: &[1] },
    Site { host: "splice.soak.example", datapath: "splice", backends: &[2] },
    Site { host: "copy.soak.example", datapath: "copy", backends: &[3] },
    Site { host: "sockmap.soak.example", datapath: "sockmap", backends: &[4] },
    Site { host: "pool.soak.example", datapath: "auto", backends: &[5, 6] },
];

/// The site whose route hands over at once.
pub(super) const FLOW: &Site = &SITES[1];

/// How many backends there are.
pub(super) const BACKENDS: usize = 7;
/// Those that the edge reaches through the tunnel.
pub(super) const TUNNELLED: [usize; 2] = [0, 3];
const FIRST_PORT: u16 = 1001;
const STACK: usize = 192 * 1024;
/// Longer than a client lets a connection rest.
const PATIENCE: Duration = Duration::from_mins(3);
/// A service's answer after an upload that arrived unchanged.
pub(super) const WHOLE: u8 = b'w';
/// The answer after an upload that arrived changed.
const BROKEN: u8 = b'b';

/// The kinds of service that a visitor can request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// All that comes back, and FIN for FIN.
    Echo,
    /// So many bytes of the pattern, then FIN.
    Download,
    /// The visitor sends the pattern and FIN; the answer is [`WHOLE`].
    Upload,
    /// Both at once.
    Both,
    /// After the visitor's FIN, the pattern in small pieces.
    Trickle,
    /// The pattern, then RST.
    Abort,
}

const WISHES: [Wish; 6] = [Wish::Echo, Wish::Download, Wish::Upload, Wish::Both, Wish::Trickle, Wish::Abort];

/// A visitor's request, sent behind its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// The requested service.
    pub(super) wish: Wish,
    /// The seed of the patterns; that to the client has the next one.
    pub(super) seed: u64,
    /// Their length.
    pub(super) length: u64,
}

impl Order {
    const LENGTH: usize = 17;

    /// As it is sent.
    pub(super) fn bytes(self) -> Vec<u8> {
        let wish = WISHES.iter().position(|wish| *wish == self.wish).unwrap_or_default();
        let wish = u8::try_from(wish).unwrap_or_default();
        [&[wish][..], &self.seed.to_be_bytes(), &self.length.to_be_bytes()].concat()
    }

    fn read(stream: &mut TcpStream) -> Result<Self> {
        let mut bytes = [0; Self::LENGTH];
        stream.read_exact(&mut bytes)?;
        let number = |at: usize| bytes[at..at + 8].iter().fold(0, |sum, &byte| sum << 8 | u64::from(byte));
        let wish = *WISHES.get(usize::from(bytes[0])).context("an order that nobody gives")?;
        Ok(Self { wish, seed: number(1), length: number(9) })
    }

    /// The pattern from the client.
    pub(super) fn up(self) -> Pattern {
        Pattern::new(self.seed)
    }

    /// The pattern to the client.
    pub(super) fn down(self) -> Pattern {
        Pattern::new(self.seed.wrapping_add(1))
    }
}

/// All services.
#[derive(Debug)]
pub(super) struct Home<'a> {
    lab: &'a Lab,
    live: Arc<AtomicUsize>,
    broken: Arc<Mutex<Vec<String>>>,
    doors: Mutex<Vec<Option<Door>>>,
}

/// A listener with the thread that accepts.
#[derive(Debug)]
struct Door {
    listener: TcpListener,
    accepting: Option<JoinHandle<()>>,
}

impl<'a> Home<'a> {
    /// Starts all services.
    pub(super) fn start(lab: &'a Lab) -> Result<Self> {
        let home = Self { lab, live: Arc::default(), broken: Arc::default(), doors: Mutex::new(Vec::new()) };
        for backend in 0..BACKENDS {
            let door = home.open(backend)?;
            home.doors().push(Some(door));
        }
        Ok(home)
    }

    /// Where a backend is for the edge.
    pub(super) fn address(lab: &Lab, backend: usize) -> SocketAddr {
        let ip = if TUNNELLED.contains(&backend) { lab.home_address() } else { IpAddr::from(lab.home.v4) };
        SocketAddr::new(ip, FIRST_PORT + u16::try_from(backend).unwrap_or_default())
    }

    /// How many connections its services have.
    pub(super) fn live(&self) -> u64 {
        self.live.load(Ordering::SeqCst) as u64
    }

    /// Corruption that services found in the data that they received.
    pub(super) fn broken(&self) -> Vec<String> {
        lock(&self.broken).clone()
    }

    /// Nobody listens at this backend any more; connections go on.
    pub(super) fn close(&self, backend: usize) {
        let door = self.doors().get_mut(backend).and_then(Option::take);
        drop(door);
    }

    /// Its listener is back.
    pub(super) fn reopen(&self, backend: usize) -> Result<()> {
        let door = self.open(backend)?;
        if let Some(place) = self.doors().get_mut(backend) {
            *place = Some(door);
        }
        Ok(())
    }

    /// Resets the connections of a backend. Takes a kernel with `CONFIG_INET_DIAG_DESTROY`.
    pub(super) fn reset(&self, backend: usize) -> Result<()> {
        let port = format!(":{}", Self::address(self.lab, backend).port());
        let mut ss = Command::new("ss");
        ss.args(["-K", "-tnH", "state", "connected", "sport", "=", &port]);
        self.lab.home.text_of(ss).map(drop)
    }

    /// Whether [`reset`](Self::reset) works here.
    pub(super) fn can_reset(host: &Host) -> Result<bool> {
        let listener = host.listen(SocketAddr::from(([127, 0, 0, 1], 9)))?;
        let mut stream = host.connect(listener.local_addr()?)?;
        let mut ss = Command::new("ss");
        ss.args(["-K", "-tnH", "state", "connected", "sport", "=", ":9"]);
        host.text_of(ss)?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(stream.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset))
    }

    /// Drops the packets of a backend in both directions while `during` runs.
    pub(super) fn silence(&self, backend: usize, during: impl FnOnce()) -> Result<()> {
        let port = Self::address(self.lab, backend).port();
        let rules = format!(
            "table inet soak {{\n\
             chain in {{ type filter hook input priority 0; tcp dport {port} drop; }}\n\
             chain out {{ type filter hook output priority 0; tcp sport {port} drop; }}\n}}\n"
        );
        firewall::nft(&self.lab.home, &rules)?;
        during();
        firewall::nft(&self.lab.home, "delete table inet soak\n")
    }

    fn open(&self, backend: usize) -> Result<Door> {
        let address = Self::address(self.lab, backend);
        // The connections that the listener before had may still be there.
        let listener = wait::until_ok("the backend's port", SOON, || self.lab.home.listen(address))?;
        let (accepted, live, broken) =
            (listener.try_clone()?, Arc::clone(&self.live), Arc::clone(&self.broken));
        let accepting = thread::spawn(move || {
            while let Ok((stream, peer)) = accepted.accept() {
                let guard = Live::new(&live);
                let broken = Arc::clone(&broken);
                let connection = thread::Builder::new().stack_size(STACK).spawn(move || {
                    let _guard = guard;
                    if let Err(error) = serve(stream, backend)
                        && is_content(&error)
                    {
                        lock(&broken).push(format!("backend {backend}, from {peer}: {error:#}"));
                    }
                });
                if let Err(error) = connection {
                    eprintln!("soak: no thread for a connection at home: {error}");
                }
            }
        });
        Ok(Door { listener, accepting: Some(accepting) })
    }

    fn doors(&self) -> MutexGuard<'_, Vec<Option<Door>>> {
        lock(&self.doors)
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Makes accept fail.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// Counts a connection for as long as it lives.
struct Live(Arc<AtomicUsize>);

impl Live {
    fn new(live: &Arc<AtomicUsize>) -> Self {
        live.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(live))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Whether an error is about bytes and not about the connection.
pub(super) fn is_content(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_none()
}

fn serve(mut stream: TcpStream, backend: usize) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    // As servers do, to learn of clients whose way here was taken away.
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(3));
    SockRef::from(&stream).set_tcp_keepalive(&keepalive.with_retries(4))?;
    // A health check connects and says nothing.
    if stream.peek(&mut [0])? == 0 {
        return Ok(());
    }
    read_hello(&mut stream)?;
    let order = Order::read(&mut stream)?;
    stream.write_all(&[u8::try_from(backend)?])?;
    match order.wish {
        Wish::Echo => send_back(stream).map(drop),
        Wish::Download => {
            send(&mut stream, order, Pace::Uneven)?;
            stream.shutdown(Shutdown::Write)?;
            stream::read_to_end(&mut stream).map(drop)
        }
        Wish::Upload => {
            let answer = received(&mut stream, order)?;
            stream.write_all(&[answer])?;
            ensure!(answer == WHOLE, "an upload of {} bytes came otherwise", order.length);
            Ok(())
        }
        Wish::Both => {
            let mut reading = stream.try_clone()?;
            let answer = thread::scope(|scope| {
                let receiving = scope.spawn(|| received(&mut reading, order));
                send(&mut stream, order, Pace::Steady)?;
                receiving.join().unwrap_or_else(|_| bail!("a panic"))
            })?;
            stream.write_all(&[answer])?;
            ensure!(answer == WHOLE, "a stream of {} bytes came otherwise", order.length);
            Ok(())
        }
        Wish::Trickle => {
            stream::read_to_end(&mut stream)?;
            for piece in order.down().bytes(usize::try_from(order.length)?).chunks(100) {
                stream.write_all(piece)?;
                // Not a wait: a slow sender is what the edge has to bear.
                thread::sleep(Duration::from_millis(200));
            }
            Ok(())
        }
        Wish::Abort => {
            send(&mut stream, order, Pace::Steady)?;
            stream::reset(stream)
        }
    }
}

/// Sends the pattern to the client. An error of the connection stays one of I/O.
fn send(stream: &mut TcpStream, order: Order, pace: Pace) -> Result<()> {
    order.down().send(stream, order.length, pace)
}

/// Reads the whole pattern of the client and judges it.
fn received(stream: &mut TcpStream, order: Order) -> Result<u8> {
    match order.up().receive(stream, Pace::Uneven) {
        Ok((length, End::Fin)) if length == order.length => Ok(WHOLE),
        // A killed daemon closes its sockets like this. The client notices the missing answer.
        Ok((length, End::Fin)) if length < order.length => {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
        Ok((_, End::Fin)) => Ok(BROKEN),
        Ok((_, End::Reset)) => Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
        Err(error) if is_content(&error) => Ok(BROKEN),
        Err(error) => Err(error),
    }
}

/// Reads records until the handshake message in them is whole.
fn read_hello(stream: &mut TcpStream) -> Result<()> {
    let mut message = Vec::new();
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        ensure!(head[0] == 22, "no handshake record: {head:02x?}");
        let mut record = vec![0; usize::from(head[3]) << 8 | usize::from(head[4])];
        stream.read_exact(&mut record)?;
        message.extend(record);
        if let [_, high, middle, low, body @ ..] = message.as_slice() {
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            ensure!(body.len() <= length, "more than a hello");
            if body.len() == length {
                return Ok(());
            }
        }
    }
}
