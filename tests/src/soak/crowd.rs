//! Very many slow clients: they connect, send the beginning of a hello and now and then one more byte, and
//! hold their places until the edge or they themselves give up.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

use super::schedule::{Leave, SOURCES, Wave};
use crate::{Lab, hello::ClientHello};

/// The last byte of the first source's address.
const FIRST: u8 = 100;
/// How many connect at once, so that SYN queues hold them.
const BURST: usize = 500;
/// How long a wave holds its places.
const HOLD: Duration = Duration::from_secs(2);
/// The edge's default limit for a hello (`hello_timeout`), and the time to close thousands.
const PATIENCE: Duration = Duration::from_secs(30);

/// The results of slow clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// Clients that tried to connect.
    pub came: usize,
    /// Clients that the edge cut off before they left.
    pub cut: usize,
    /// Clients that were still connected at the end of their wave's patience; there should be none.
    pub stuck: usize,
}

impl Crowd {
    /// Adds a wave.
    pub(super) fn add(&mut self, wave: Self) {
        self.came += wave.came;
        self.cut += wave.cut;
        self.stuck += wave.stuck;
    }
}

fn source(number: usize) -> IpAddr {
    Ipv4Addr::new(198, 18, 1, FIRST + u8::try_from(number % SOURCES).unwrap_or_default()).into()
}

/// Gives the client's host the addresses of slow clients.
pub(super) fn settle(lab: &Lab) -> Result<()> {
    (0..SOURCES).try_for_each(|number| {
        lab.client.ip(&["address", "add", &format!("{}/24", source(number)), "dev", "eth0"])
    })
}

/// A wave, from its coming to its end.
pub(super) fn wave(lab: &Lab, wave: &Wave) -> Result<Crowd> {
    let hello = ClientHello::new("slow.soak.example").post_quantum().records();
    let mut streams = Vec::with_capacity(wave.clients);
    for first in (0..wave.clients).step_by(BURST) {
        lab.client.run(|| {
            for number in first..(first + BURST).min(wave.clients) {
                streams.push(connecting(source(number % wave.sources), lab.edge.at(443))?);
            }
            Ok(())
        })?;
        // Not a wait: these are slow, and the machine has few processors.
        thread::sleep(Duration::from_millis(60));
    }
    let came = Instant::now();
    let mut sent = 20;
    while came.elapsed() < HOLD {
        for stream in &mut streams {
            // Refused ones, and those that are not connected yet, are counted at the end.
            let _ = stream.write(&hello[sent - 20..sent]);
        }
        sent += 20;
        thread::sleep(Duration::from_millis(500));
    }
    let mut crowd = Crowd { came: streams.len(), ..Crowd::default() };
    if wave.leave == Leave::Stay {
        let begun = Instant::now();
        while !streams.is_empty() && begun.elapsed() < PATIENCE {
            streams.retain_mut(|stream| !is_cut(stream));
            thread::sleep(Duration::from_millis(100));
        }
        crowd.cut = crowd.came - streams.len();
        crowd.stuck = streams.len();
        return Ok(crowd);
    }
    for mut stream in streams {
        crowd.cut += usize::from(is_cut(&mut stream));
        if wave.leave == Leave::Reset {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
    Ok(crowd)
}

fn connecting(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    // It is under way, or refused at once where nobody listens, which is seen at the end.
    let _ = socket.connect(&to.into());
    Ok(socket.into())
}

/// Whether the edge has ended it.
fn is_cut(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    }
}
