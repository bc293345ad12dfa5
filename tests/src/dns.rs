//! A name server for names of backends: it answers what it was told, with a short TTL.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

use crate::{Host, lock::lock};

/// How often the server looks whether it is to stop.
const TICK: Duration = Duration::from_millis(100);
/// Record types (RFC 1035 §3.2.2, RFC 3596 §2.1, RFC 2782).
const TYPE_A: u16 = 1;
const TYPE_AAAA: u16 = 28;
const TYPE_SRV: u16 = 33;
/// Response codes (RFC 1035 §4.1.1).
const SERVER_FAILURE: u8 = 2;
const NAME_ERROR: u8 = 3;

/// A running name server (UDP).
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    names: Mutex<BTreeMap<String, Vec<Record>>>,
    ttl: AtomicUsize,
    failing: AtomicBool,
    stopped: AtomicBool,
    queries: AtomicUsize,
}

/// The type and the data of a record.
type Record = (u16, Vec<u8>);

impl NameServer {
    /// Answers on port 53 of `on`; records live `ttl` seconds.
    pub fn start(host: &Host, on: IpAddr, ttl: u32) -> Result<Self> {
        let address = SocketAddr::new(on, 53);
        let socket = host.run(|| Ok(UdpSocket::bind(address)?))?;
        socket.set_read_timeout(Some(TICK))?;
        let shared = Arc::new(Shared { ttl: AtomicUsize::new(ttl as usize), ..Shared::default() });
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(&socket, &shared)
        });
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on `name` has these addresses.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        let record = |address: &IpAddr| match address {
            IpAddr::V4(v4) => (TYPE_A, v4.octets().to_vec()),
            IpAddr::V6(v6) => (TYPE_AAAA, v6.octets().to_vec()),
        };
        self.put(name, addresses.iter().map(record).collect());
    }

    /// From now on the service `name` is at these priorities, ports and targets.
    pub fn set_service(&self, name: &str, targets: &[(u16, u16, &str)]) {
        let record = |(priority, port, target): &(u16, u16, &str)| {
            let weight = [0, 1];
            let mut data = [&priority.to_be_bytes()[..], &weight, &port.to_be_bytes()].concat();
            for label in target.split('.') {
                data.push(u8::try_from(label.len()).unwrap_or(u8::MAX));
                data.extend(label.as_bytes());
            }
            data.push(0);
            (TYPE_SRV, data)
        };
        self.put(name, targets.iter().map(record).collect());
    }

    fn put(&self, name: &str, records: Vec<Record>) {
        let mut names = lock(&self.shared.names);
        names.insert(name.to_ascii_lowercase(), records);
    }

    /// From now on every query is answered with SERVFAIL, or no more.
    pub fn fail(&self, failing: bool) {
        self.shared.failing.store(failing, Ordering::SeqCst);
    }

    /// Queries so far.
    pub fn queries(&self) -> usize {
        self.shared.queries.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 1500];
    while !shared.stopped.load(Ordering::SeqCst) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        shared.queries.fetch_add(1, Ordering::SeqCst);
        if let Some(answer) = answer(&buffer[..length], shared) {
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn answer(query: &[u8], shared: &Shared) -> Option<Vec<u8>> {
    let (name, question_end) = question(query)?;
    let kind = u16::from_be_bytes(query.get(question_end..question_end + 2)?.try_into().ok()?);
    let names = lock(&shared.names);
    let known = names.get(&name);
    let code = match known {
        _ if shared.failing.load(Ordering::SeqCst) => SERVER_FAILURE,
        None => NAME_ERROR,
        Some(_) => 0,
    };
    let known = known.filter(|_| code == 0).map_or(&[][..], Vec::as_slice);
    let records: Vec<&[u8]> =
        known.iter().filter(|(own, _)| *own == kind).map(|(_, data)| data.as_slice()).collect();

    let mut answer = query.get(..2)?.to_vec();
    // A response with recursion desired and available.
    answer.extend([0x81, 0x80 | code, 0, 1]);
    answer.extend(u16::try_from(records.len()).ok()?.to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(query.get(12..question_end + 4)?);
    let ttl = u32::try_from(shared.ttl.load(Ordering::SeqCst)).ok()?;
    for record in records {
        // The name is the question's, at offset 12.
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend(u16::try_from(record.len()).ok()?.to_be_bytes());
        answer.extend(record);
    }
    Some(answer)
}

/// The name asked for and the offset behind it.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut offset = 12;
    loop {
        let length = usize::from(*query.get(offset)?);
        offset += 1;
        if length == 0 {
            return Some((labels.join("."), offset));
        }
        let label = query.get(offset..offset + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        offset += length;
    }
}
