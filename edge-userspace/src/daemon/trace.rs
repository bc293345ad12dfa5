//! `edgectl trace` and the log of the tracing objects: each line goes to the log, within a budget, and to those who read
//! about its client.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use tracing::field::display;

use crate::{
    control::{
        Refusal, RefusalKind,
        api::{self, Timestamp, Trace, TraceClient},
    },
    kernel::{TraceLine, Traced, Tracer},
    lock::lock,
};

/// Readers at the same time. Each has a prefix in the kernel, which has room for 64.
const MAX_READERS: usize = 16;
/// Lines that wait for one reader. `edgectl` asks four times a second.
const MAX_WAITING: usize = 4096;
/// A reader that has not asked for this long is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Lines a second in the log, which a flood of dropped packets must not fill.
const LOGGED: u32 = 50;

/// The tracing objects and their readers.
#[derive(Debug)]
pub(super) struct Tracing {
    /// `None` if the kernel refused them.
    traced: Option<Traced>,
    readers: Arc<Mutex<Readers>>,
}

/// Those who read, by number, and the log.
#[derive(Debug, Default)]
struct Readers {
    last: u64,
    all: BTreeMap<u64, Reader>,
}

#[derive(Debug)]
struct Reader {
    clients: IpNet,
    waiting: VecDeque<api::TraceLine>,
    missed: u64,
    /// Lines lost in the kernel before its last call.
    lost: u64,
    asked: Instant,
}

impl Tracing {
    /// Starts to read. Where that fails, the daemon serves without.
    pub(super) fn start(tracer: Tracer) -> Self {
        let readers = Arc::new(Mutex::new(Readers::default()));
        if tracer.is_empty() {
            return Self { traced: None, readers };
        }
        let (to_readers, budget) = (Arc::clone(&readers), Mutex::new(Budget::new(Instant::now())));
        let started = tracer.start(move |line| {
            log(&line, &mut lock(&budget));
            lock(&to_readers).give(&line, SystemTime::now());
        });
        if let Err(error) = &started {
            tracing::error!(%error, "what the BPF programs report cannot be read");
        } else {
            tracing::info!("the BPF programs report what they do with packets, and are slower for it");
        }
        Self { traced: started.ok(), readers }
    }

    /// The lines about a client since the reader's last call; the first call begins.
    pub(super) fn read(&self, TraceClient { client, reader }: TraceClient) -> Result<Trace, Refusal> {
        let Some(traced) = &self.traced else {
            return Err(Refusal::new(
                RefusalKind::Unsupported,
                "not_tracing",
                "the kernel refused the tracing programs of edged",
            )
            .hint("`edgectl doctor` says why"));
        };
        let lost = traced.lost();
        let mut readers = lock(&self.readers);
        if let Some(trace) = reader.and_then(|reader| readers.take(reader, lost, Instant::now())) {
            return Ok(trace);
        }
        let Some(reader) = readers.open(client, lost, Instant::now()) else {
            return Err(Refusal::new(
                RefusalKind::Conflict,
                "too_many_traces",
                format!("{MAX_READERS} traces run already"),
            )
            .hint("end one; one that was interrupted is forgotten after ten seconds"));
        };
        drop(readers);
        if let Err(error) = traced.trace(client) {
            lock(&self.readers).all.remove(&reader);
            return Err(Refusal::new(RefusalKind::Internal, "not_traced", error.words()));
        }
        Ok(Trace { reader, missed: 0, lost: 0, lines: Vec::new() })
    }

    /// Forgets readers that no longer ask, and lets the kernel spare their clients.
    pub(super) fn forget_idle(&self) {
        let Some(traced) = &self.traced else { return };
        // Held until the kernel has forgotten them: another may begin to read about the same clients.
        let mut readers = lock(&self.readers);
        for clients in readers.expire(Instant::now()) {
            if let Err(error) = traced.forget(clients) {
                tracing::warn!(%clients, "still traced: {}", error.words());
            }
        }
    }
}

/// The daemon was started with the ordinary objects.
pub(super) fn not_tracing() -> Refusal {
    Refusal::new(
        RefusalKind::Conflict,
        "not_tracing",
        "edged runs without --trace-ebpf, so its BPF programs report nothing",
    )
    .hint(
        "start it with that option: `systemctl edit edged`, write\n    [Service]\n    ExecStart=\n    \
         ExecStart=!/usr/local/bin/edged --config /etc/edge/edge.toml --trace-ebpf\n  with the path that `systemctl cat \
         edged` shows, and `systemctl restart edged`; flows outlive the restart. `systemctl revert edged` and another \
         restart end it",
    )
}

impl Readers {
    fn open(&mut self, clients: IpNet, lost: u64, now: Instant) -> Option<u64> {
        if self.all.len() >= MAX_READERS {
            return None;
        }
        self.last += 1;
        let reader = Reader { clients, waiting: VecDeque::new(), missed: 0, lost, asked: now };
        self.all.insert(self.last, reader);
        Some(self.last)
    }

    fn give(&mut self, line: &TraceLine, now: SystemTime) {
        let mut shown = None;
        for reader in self.all.values_mut().filter(|reader| reader.clients.contains(&line.client)) {
            if reader.waiting.len() == MAX_WAITING {
                reader.waiting.pop_front();
                reader.missed += 1;
            }
            reader.waiting.push_back(shown.get_or_insert_with(|| self::shown(line, now)).clone());
        }
    }

    fn take(&mut self, reader: u64, lost: u64, now: Instant) -> Option<Trace> {
        let found = self.all.get_mut(&reader)?;
        found.asked = now;
        let missed = std::mem::take(&mut found.missed);
        let before = std::mem::replace(&mut found.lost, lost);
        let lines = std::mem::take(&mut found.waiting).into();
        Some(Trace { reader, missed, lost: lost.saturating_sub(before), lines })
    }

    /// Removes readers that no longer ask; gives the clients about whom nobody reads any more.
    fn expire(&mut self, now: Instant) -> Vec<IpNet> {
        let gone =
            self.all.extract_if(.., |_, reader| now.saturating_duration_since(reader.asked) > PATIENCE);
        let mut clients: Vec<_> = gone.map(|(_, reader)| reader.clients).collect();
        clients.retain(|clients| !self.all.values().any(|reader| reader.clients == *clients));
        clients
    }
}

fn shown(line: &TraceLine, now: SystemTime) -> api::TraceLine {
    api::TraceLine {
        time: Timestamp(now),
        program: (&*line.program).into(),
        client: line.client,
        client_port: (line.port != 0).then_some(line.port),
        peer: line.peer.map(|(address, _)| address),
        peer_port: line.peer.map(|(_, port)| port).filter(|port| *port != 0),
        flags: flags(line.flags).into(),
        length: line.length,
        message: (&*line.what).into(),
    }
}

/// The flags of a TCP header by name (RFC 9293 §3.1).
fn flags(flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = NAMES.iter().enumerate().filter(|(bit, _)| flags & (1 << bit) != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

/// How much of the log lines may take: so many in a second, and then the number of those left out.
#[derive(Debug)]
struct Budget {
    since: Instant,
    used: u32,
    left_out: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { since: now, used: 0, left_out: 0 }
    }

    /// Whether a line may be logged, and how many were left out in the second that has just ended.
    fn take(&mut self, now: Instant) -> (bool, u64) {
        let mut left_out = 0;
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            left_out = self.left_out;
            *self = Self::new(now);
        }
        let is_allowed = self.used < LOGGED;
        if is_allowed {
            self.used += 1;
        } else {
            self.left_out += 1;
        }
        (is_allowed, left_out)
    }
}

fn log(line: &TraceLine, budget: &mut Budget) {
    /// The part of the log by which `EDGE_LOG` selects these lines.
    const TARGET: &str = "edge::trace";
    if line.is_detail && !tracing::enabled!(target: TARGET, tracing::Level::DEBUG) {
        return;
    }
    let (is_allowed, left_out) = budget.take(Instant::now());
    if left_out != 0 {
        tracing::info!(target: TARGET, left_out, "more packets were reported than the log takes; `edgectl trace` has more");
    }
    if !is_allowed {
        return;
    }
    let end = |(address, port): (IpAddr, u16)| match port {
        0 => address.to_string(),
        port => SocketAddr::new(address, port).to_string(),
    };
    let (program, length) = (&*line.program, line.length);
    let (client, peer) = (end((line.client, line.port)), line.peer.map(end).map(display));
    let flags = (line.flags != 0).then(|| display(flags(line.flags)));
    if line.is_detail {
        tracing::debug!(target: TARGET, program, %client, peer, flags, length, "{}", line.what);
    } else {
        tracing::info!(target: TARGET, program, %client, peer, flags, length, "{}", line.what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(client: &str) -> TraceLine {
        TraceLine {
            program: "flow".into(),
            is_detail: false,
            client: client.parse().unwrap(),
            port: 4711,
            peer: None,
            flags: 0x12,
            length: 60,
            what: "dropped".into(),
        }
    }

    #[test]
    fn a_reader_gets_the_lines_of_its_clients_and_the_number_of_those_it_missed() {
        let (mut readers, start) = (Readers::default(), Instant::now());
        let reader = readers.open("192.0.2.0/24".parse().unwrap(), 5, start).unwrap();
        readers.give(&line("192.0.2.9"), SystemTime::UNIX_EPOCH);
        readers.give(&line("198.51.100.1"), SystemTime::UNIX_EPOCH);
        let trace = readers.take(reader, 7, start).unwrap();
        assert_eq!((trace.lines.len(), trace.missed, trace.lost), (1, 0, 2));
        assert_eq!(&*trace.lines[0].flags, "SYN,ACK");
        for _ in 0..MAX_WAITING + 3 {
            readers.give(&line("192.0.2.9"), SystemTime::UNIX_EPOCH);
        }
        let trace = readers.take(reader, 7, start).unwrap();
        assert_eq!((trace.lines.len(), trace.missed, trace.lost), (MAX_WAITING, 3, 0));
        assert!(readers.take(reader, 7, start).unwrap().lines.is_empty());
        assert_eq!(readers.take(reader + 1, 7, start), None);
    }

    #[test]
    fn who_does_not_ask_is_forgotten_and_its_clients_once_nobody_reads_about_them() {
        let (mut readers, start) = (Readers::default(), Instant::now());
        let clients = "192.0.2.9/32".parse().unwrap();
        let first = readers.open(clients, 0, start).unwrap();
        let later = start + PATIENCE + Duration::from_secs(1);
        let second = readers.open(clients, 0, later).unwrap();
        assert!(readers.expire(later).is_empty());
        assert!(readers.take(first, 0, later).is_none() && readers.take(second, 0, later).is_some());
        assert_eq!(readers.expire(later + PATIENCE * 2), [clients]);
        for _ in 0..MAX_READERS {
            readers.open(clients, 0, start).unwrap();
        }
        assert_eq!(readers.open(clients, 0, start), None);
    }

    #[test]
    fn the_log_gets_so_many_lines_a_second_and_the_number_of_the_others() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let allowed = (0..LOGGED + 7).filter(|_| budget.take(start).0).count();
        assert_eq!(allowed, LOGGED as usize);
        assert_eq!(budget.take(start + Duration::from_secs(1)), (true, 7));
        assert_eq!(budget.take(start + Duration::from_secs(2)), (true, 0));
    }
}
