//! Raw TCP services of the lab: a thread for each connection runs what the case gives.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::SockRef;

use crate::{
    Host, stream,
    wait::{SOON, patient},
};

/// Stack of a connection's thread: there may be thousands.
const STACK: usize = 256 * 1024;

/// How long an echo waits for more: longer than a case lets a connection rest.
const REST: Duration = Duration::from_mins(10);

/// A service that gives a `T` for every connection it has served.
#[derive(Debug)]
pub struct Service<T> {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    outcomes: Receiver<Result<T>>,
    listener: TcpListener,
    accepting: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Service<T> {
    /// Listens on `on` and runs `serve` for every connection, whose reads and writes end after [`SOON`].
    pub fn start(
        host: &Host,
        on: SocketAddr,
        serve: impl Fn(TcpStream) -> Result<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = host.listen(on)?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicUsize::new(0));
        let (sender, outcomes) = channel();
        let accepting = thread::spawn({
            let (listener, accepted) = (listener.try_clone()?, Arc::clone(&accepted));
            move || accept(&listener, &accepted, &Arc::new(serve), &sender)
        });
        Ok(Self { address, accepted, outcomes, listener, accepting: Some(accepting) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits for the next connection to end, and returns its result.
    pub fn outcome(&self) -> Result<T> {
        self.outcome_within(SOON)
    }

    /// The same with another time limit.
    pub fn outcome_within(&self, deadline: Duration) -> Result<T> {
        self.outcomes.recv_timeout(patient(deadline)).with_context(|| {
            format!("no connection to the service at {} ended within {deadline:?}", self.address)
        })?
    }
}

fn accept<T: Send + 'static, S: Fn(TcpStream) -> Result<T> + Send + Sync + 'static>(
    listener: &TcpListener,
    accepted: &AtomicUsize,
    serve: &Arc<S>,
    outcomes: &Sender<Result<T>>,
) {
    // Shutting a listener down makes accept fail: the way out of the loop.
    while let Ok((stream, _)) = listener.accept() {
        accepted.fetch_add(1, Ordering::SeqCst);
        let (serve, outcomes) = (Arc::clone(serve), outcomes.clone());
        let connection = thread::Builder::new().stack_size(STACK).spawn(move || {
            let limited = stream
                .set_read_timeout(Some(patient(SOON)))
                .and_then(|()| stream.set_write_timeout(Some(patient(SOON))))
                .and_then(|()| stream.set_nodelay(true));
            let outcome = limited.map_err(Into::into).and_then(|()| serve(stream));
            // Nobody listens any more when the case is over.
            let _ = outcomes.send(outcome);
        });
        if let Err(error) = connection {
            eprintln!("lab: no thread for a connection: {error}");
        }
    }
}

impl<T> Drop for Service<T> {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

/// A service that sends back what it gets, and FIN for FIN; gives the number of bytes.
pub fn echo(host: &Host, on: SocketAddr) -> Result<Service<u64>> {
    Service::start(host, on, send_back)
}

/// Sends back what comes until there is no more, then FIN for FIN; gives the number of bytes.
pub fn send_back(mut stream: TcpStream) -> Result<u64> {
    stream.set_read_timeout(Some(patient(REST)))?;
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            stream.shutdown(Shutdown::Write)?;
            return Ok(total);
        }
        stream.write_all(&buffer[..length])?;
        total += length as u64;
    }
}

/// A service that writes its name to every client at once and then reads to the end; returns the data read.
pub fn named(host: &Host, on: SocketAddr, name: &'static str) -> Result<Service<Vec<u8>>> {
    Service::start(host, on, move |mut stream| {
        stream.write_all(name.as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        Ok(stream::read_to_end(&mut stream)?.0)
    })
}
