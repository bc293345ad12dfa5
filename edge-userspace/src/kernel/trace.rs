//! The reports of the tracing objects about packets: lines of aya-log, read on a thread of their own, and the clients whose
//! every packet they report.
//!
//! `aya_log::EbpfLogger` empties its ring buffer in one go, however fast it fills. So it never runs on a runtime, and it
//! rests between two rounds: what finds the ring full is lost and counted.

use std::{
    fmt, io,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, OnceLock},
    thread,
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, MapError, PerCpuArray},
};
use aya_log::EbpfLogger;
use ipnet::IpNet;
use log::{Level, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    KernelError, Prefix,
    load::{map, take},
};
use crate::lock::lock;

const TRACED: &str = "TRACED";
const TRACE_LOST: &str = "TRACE_LOST";
/// The name of aya-log's ring buffer.
const LINES: &str = "AYA_LOGS";
/// Between two looks at the rings: they have room for what 100,000 packets a second leave meanwhile.
const REST: Duration = Duration::from_millis(10);

/// The action of a program on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceLine {
    /// The object: `flow` or `shield`.
    pub program: Box<str>,
    /// Whether it is one of every packet of a traced client: not a hand-over, refusal or drop.
    pub is_detail: bool,
    /// The client's address, never IPv4-mapped.
    pub client: IpAddr,
    /// Its port; 0 if unknown.
    pub port: u16,
    /// The other end, if known.
    pub peer: Option<(IpAddr, u16)>,
    /// Byte 13 of the TCP header; 0 if unknown.
    pub flags: u8,
    /// Bytes of the packet.
    pub length: u32,
    /// The action, and its reason.
    pub what: Box<str>,
}

type Sink = Box<dyn Fn(TraceLine) + Send + Sync>;

/// Takes lines of aya-log. Those that come before there is a sink are lost.
#[derive(Clone, Default)]
struct Lines(Arc<OnceLock<Sink>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = parse(record.target(), record.level(), &record.args().to_string());
        if let (Some(sink), Some(line)) = (self.0.get(), line) {
            sink(line);
        }
    }

    fn flush(&self) {}
}

/// Parses a line as `edge-ebpf/src/trace.rs` writes it.
fn parse(program: &str, level: Level, message: &str) -> Option<TraceLine> {
    let mut words = message.splitn(7, ' ');
    let mut address = || Some(words.next()?.parse::<Ipv6Addr>().ok()?.to_canonical());
    let client = address()?;
    let port = words.next()?.parse().ok()?;
    let peer: IpAddr = words.next()?.parse::<Ipv6Addr>().ok()?.to_canonical();
    let peer_port = words.next()?.parse().ok()?;
    Some(TraceLine {
        program: program.into(),
        is_detail: level > Level::Info,
        client,
        port,
        peer: (!peer.is_unspecified()).then_some((peer, peer_port)),
        flags: words.next()?.parse().ok()?,
        length: words.next()?.parse().ok()?,
        what: words.next()?.into(),
    })
}

/// The reports of the objects that were loaded, before they are read.
#[derive(Default)]
pub struct Tracer {
    lines: Lines,
    rings: Vec<EbpfLogger<Lines>>,
    traced: Vec<LpmTrie<MapData, [u8; 16], u8>>,
    lost: Vec<PerCpuArray<MapData, u64>>,
}

impl Tracer {
    /// Takes the maps of a tracing object, whose programs are loaded.
    pub(super) fn add(&mut self, ebpf: &mut Ebpf, object: &'static str) -> Result<(), KernelError> {
        let lost = take(ebpf, object, TRACE_LOST)?;
        // The shield only reports drops, so it need not know whom to trace.
        if ebpf.map(TRACED).is_some() {
            self.traced.push(take(ebpf, object, TRACED)?);
        }
        let ring = EbpfLogger::init_with_logger(ebpf, self.lines.clone());
        self.rings.push(ring.map_err(|_| KernelError::Incomplete { object, part: LINES })?);
        self.lost.push(lost);
        Ok(())
    }

    /// Whether nothing is reported, because the kernel refused every tracing object.
    pub fn is_empty(&self) -> bool {
        self.rings.is_empty()
    }

    /// Starts the thread that hands every line to `sink`, which must not block for long.
    pub fn start(self, sink: impl Fn(TraceLine) + Send + Sync + 'static) -> io::Result<Traced> {
        let _ = self.lines.0.set(Box::new(sink));
        let mut rings = self.rings;
        thread::Builder::new().name("trace".into()).spawn(move || {
            loop {
                let mut ready: Vec<_> =
                    rings.iter().map(|ring| PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN)).collect();
                if poll(&mut ready, None).is_ok() {
                    for ring in &mut rings {
                        ring.flush();
                    }
                }
                thread::sleep(REST);
            }
        })?;
        Ok(Traced { traced: Mutex::new(self.traced), lost: self.lost })
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("objects", &self.rings.len()).finish_non_exhaustive()
    }
}

/// The tracing objects, which are being read.
pub struct Traced {
    traced: Mutex<Vec<LpmTrie<MapData, [u8; 16], u8>>>,
    lost: Vec<PerCpuArray<MapData, u64>>,
}

impl Traced {
    /// Reports every packet of these clients from now on.
    pub fn trace(&self, clients: IpNet) -> Result<(), KernelError> {
        let key = Prefix::from(clients).key();
        let mut traced = lock(&self.traced);
        traced.iter_mut().try_for_each(|trie| trie.insert(&key, 1, 0)).map_err(map("changing", TRACED))
    }

    /// Ends it.
    pub fn forget(&self, clients: IpNet) -> Result<(), KernelError> {
        let key = Prefix::from(clients).key();
        let mut traced = lock(&self.traced);
        let forget = |trie: &mut LpmTrie<MapData, [u8; 16], u8>| match trie.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(error),
        };
        traced.iter_mut().try_for_each(forget).map_err(map("changing", TRACED))
    }

    /// Lines that found a ring full since the start.
    pub fn lost(&self) -> u64 {
        let values = self.lost.iter().filter_map(|lost| lost.get(&0, 0).ok());
        values.map(|values| values.iter().sum::<u64>()).sum()
    }
}

impl fmt::Debug for Traced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traced").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed_into_its_fields() {
        let line =
            parse("flow", Level::Debug, "::ffff:192.0.2.9 4711 2001:db8::1 443 18 60 dropped: for a reason");
        let expected = TraceLine {
            program: "flow".into(),
            is_detail: true,
            client: "192.0.2.9".parse().unwrap(),
            port: 4711,
            peer: Some(("2001:db8::1".parse().unwrap(), 443)),
            flags: 18,
            length: 60,
            what: "dropped: for a reason".into(),
        };
        assert_eq!(line, Some(expected));
        let line = parse("shield", Level::Info, "2001:db8::9 0 :: 0 0 74 dropped").unwrap();
        assert_eq!((line.peer, line.is_detail), (None, false));
        for bad in [
            "",
            "::1",
            "::1 70000 :: 0 0 0 x",
            "192.0.2.9 1 :: 0 0 0 x",
            "::1 1 :: 0 300 0 x",
            "::1 1 :: 0 0 0",
        ] {
            assert_eq!(parse("flow", Level::Info, bad), None, "{bad}");
        }
    }
}
