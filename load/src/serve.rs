//! The service at home: does on each connection what its ClientHello orders.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use rustls::ServerConfig;
use socket2::{Domain, Socket, Type};

use crate::{
    handshake,
    opening::{GO, Order, read_order},
    stream::{discard, send_for},
};

/// Connections that wait for accept; cut by `net.core.somaxconn`.
const BACKLOG: i32 = 8192;
/// Each thread serves one connection at a time: more than any test has streams and clients.
const THREADS: usize = 256;
/// As much as the threads need, which hold no buffer on it but that of the hello.
const STACK: usize = 128 * 1024;

/// Where the service listens.
#[derive(Clone, Debug, Args)]
pub struct Service {
    /// Where orders are taken
    #[arg(long)]
    pub on: SocketAddr,
    /// Where whole TLS handshakes are made
    #[arg(long, requires_all = ["certificate", "key"])]
    pub tls_on: Option<SocketAddr>,
    /// The certificate (PEM)
    #[arg(long)]
    pub certificate: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long)]
    pub key: Option<PathBuf>,
}

/// Connections that rest: only their descriptors are kept.
#[derive(Debug, Default)]
struct Resting(Mutex<Vec<TcpStream>>);

/// Serves until the process ends.
pub fn serve(service: &Service) -> Result<()> {
    let resting = Arc::new(Resting::default());
    let mut threads = accept(service.on, move |stream| obey(stream, &resting))?;
    if let (Some(on), Some(certificate), Some(key)) = (service.tls_on, &service.certificate, &service.key) {
        let read = |path: &PathBuf| fs::read(path).with_context(|| format!("reading {}", path.display()));
        let config: Arc<ServerConfig> = handshake::server(&read(certificate)?, &read(key)?)?;
        threads.extend(accept(on, move |stream| handshake::answer(stream, &config))?);
    }
    for thread in threads {
        // A thread ends only by a panic, which has said why.
        let _ = thread.join();
    }
    Ok(())
}

fn accept(
    on: SocketAddr,
    serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
) -> Result<Vec<thread::JoinHandle<()>>> {
    let socket = Socket::new(Domain::for_address(on), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    // Accepted connections inherit it.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&on.into()).with_context(|| format!("binding {on}"))?;
    socket.listen(BACKLOG)?;
    let listener = Arc::new(TcpListener::from(socket));
    let serve = Arc::new(serve);
    let accepting = || {
        let (listener, serve) = (Arc::clone(&listener), Arc::clone(&serve));
        thread::Builder::new().stack_size(STACK).spawn(move || {
            loop {
                match listener.accept() {
                    // A client that is cut short says so itself.
                    Ok((stream, _)) => drop(serve(stream)),
                    // Out of descriptors: those that rest are given up when their clients end.
                    Err(_) => thread::sleep(Duration::from_millis(10)),
                }
            }
        })
    };
    Ok((0..THREADS).map(|_| accepting()).collect::<io::Result<_>>()?)
}

fn obey(mut stream: TcpStream, resting: &Resting) -> io::Result<()> {
    match read_order(&mut stream)? {
        Order::Answer(octets) => {
            stream.write_all(&[0x41; 4096][..usize::try_from(octets).unwrap_or(0).min(4096)])
        }
        Order::Source(millis) => {
            send_for(&mut stream, Duration::from_millis(millis.into()))?;
            stream.shutdown(Shutdown::Write)?;
            discard(&stream).map(drop)
        }
        Order::Sink => {
            stream.write_all(&GO)?;
            let total = discard(&stream)?;
            stream.write_all(&total.to_be_bytes())
        }
        Order::Echo => {
            stream.write_all(&GO)?;
            echo(&mut stream)
        }
        Order::Hold => {
            stream.write_all(&GO)?;
            resting.keep(stream);
            Ok(())
        }
    }
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            octets => stream.write_all(&buffer[..octets])?,
        }
    }
}

impl Resting {
    /// Keeps one more, and lets go of those that the other side has closed meanwhile.
    fn keep(&self, stream: TcpStream) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Looking at every one each time would be quadratic: only when there is a reason to.
        if all.len().is_multiple_of(1024) {
            all.retain(|stream| !is_closed(stream));
        }
        all.push(stream);
    }
}

fn is_closed(stream: &TcpStream) -> bool {
    let looked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    !matches!(looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
