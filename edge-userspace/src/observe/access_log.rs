//! The access log: one JSON object per connection, written by a separate thread.
//!
//! A connection never waits for the log. If the reader is slower than the connections for so long that the
//! queue fills up, lines are dropped. A warning with their number follows the next line that gets through.

mod live;
mod record;

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_utils::atomic::AtomicCell;

pub use live::{Follower, Line, TooManyReaders};
pub use record::{Clients, Record};

use self::live::Live;
use crate::{group, lock::lock};

/// Lines that may wait: a second of a busy edge, a few megabytes.
const QUEUE: usize = 16 * 1024;
/// How long [`AccessLog::flush`] waits for the reader of the log.
const FLUSH: Duration = Duration::from_secs(2);
/// Bytes that go out with one write: some two hundred lines.
const BUFFER: usize = 64 * 1024;
/// Mode of the file. It names clients, so only its owner and the group `edge` may read it.
const MODE: u32 = 0o640;
/// Between two attempts to open a file that cannot be opened.
const REOPEN: Duration = Duration::from_secs(5);
/// How long a line may wait for others to be written with it.
const GATHER: Duration = Duration::from_millis(10);

enum Order {
    Write(Box<Record>),
    /// Look at [`Shared::reopen`].
    Wake,
    Flush(SyncSender<()>),
}

/// Orders that must reach the writer even if the queue is full, and their answers.
#[derive(Debug, Default)]
struct Shared {
    /// Lines that were dropped since the last warning.
    dropped: AtomicU64,
    /// Lines that were dropped so far.
    dropped_in_all: AtomicU64,
    clients: AtomicCell<Clients>,
    reopen: AtomicBool,
    /// Why lines are lost.
    trouble: Mutex<Option<String>>,
}

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Standard output.
    Stdout,
    /// Nowhere.
    Off,
    /// Appended to this file.
    File(PathBuf),
}

/// The log. Shared by all workers.
#[derive(Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<Order>>,
    shared: Arc<Shared>,
    live: Live,
}

impl Default for AccessLog {
    /// A log that goes nowhere.
    fn default() -> Self {
        Self { queue: None, shared: Arc::default(), live: Live::new(false) }
    }
}

impl AccessLog {
    /// Opens the log and starts its thread. Creates the file if it is missing, and appends to it.
    ///
    /// If the file cannot be opened, lines are lost until it can: [`Self::trouble`].
    ///
    /// # Errors
    ///
    /// The thread cannot be started.
    pub fn open(target: &AccessLogTarget) -> io::Result<Self> {
        if *target == AccessLogTarget::Off {
            return Ok(Self::default());
        }
        Self::start(target.clone(), None)
    }

    /// Why lines are lost at the moment.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
    }

    fn start(target: AccessLogTarget, output: Option<Box<dyn Write + Send>>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (queue, orders) = mpsc::sync_channel(QUEUE);
        let mut writer = Writer { target, output, shared: Arc::clone(&shared), tried: None };
        if writer.output.is_none() {
            writer.reopen();
        }
        thread::Builder::new().name("access-log".into()).spawn(move || writer.run(&orders))?;
        Ok(Self { queue: Some(queue), shared, live: Live::new(true) })
    }

    /// Writes a line, soon, and shows it to those who follow the log; `refused`: the edge refused the connection.
    pub fn write(&self, mut record: Record, refused: bool) {
        record.client = self.shared.clients.load().shown(record.client);
        self.live.offer(&record, refused);
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Order::Write(Box::new(record))).is_err() {
            self.shared.dropped.fetch_add(1, Relaxed);
            self.shared.dropped_in_all.fetch_add(1, Relaxed);
        }
    }

    /// The last `count` lines that are wanted, the oldest first, of those that are kept.
    pub fn last(&self, wanted: impl Fn(&Line) -> bool, count: usize) -> Vec<Arc<Line>> {
        self.live.last(wanted, count)
    }

    /// The last `count` lines that are wanted, and all that follow them.
    ///
    /// # Errors
    ///
    /// As many follow as may.
    pub fn follow(
        &self,
        wanted: impl Fn(&Line) -> bool + Send + Sync + 'static,
        count: usize,
    ) -> Result<(Vec<Arc<Line>>, Follower), TooManyReaders> {
        self.live.follow(wanted, count)
    }

    /// Ends all who follow the log: the daemon ends.
    pub fn end_followers(&self) {
        self.live.end();
    }

    /// Sets how much of a client's address later lines show.
    pub fn show_clients(&self, clients: Clients) {
        self.shared.clients.store(clients);
    }

    /// How many lines were dropped because the log is read too slowly.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped_in_all.load(Relaxed)
    }

    /// Opens the file anew, after it was renamed by a log rotation.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Relaxed);
        if let Some(queue) = &self.queue {
            // Where the queue is full, the writer is awake and sees the flag.
            let _ = queue.try_send(Order::Wake);
        }
    }

    /// Waits until all lines so far are written, for at most two seconds: the reader may have stopped.
    pub fn flush(&self) {
        let Some(queue) = &self.queue else { return };
        let deadline = Instant::now() + FLUSH;
        let (done, flushed) = mpsc::sync_channel(1);
        let mut order = Order::Flush(done);
        while let Err(TrySendError::Full(back)) = queue.try_send(order) {
            if Instant::now() >= deadline {
                return;
            }
            order = back;
            thread::sleep(GATHER);
        }
        let _ = flushed.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn output(target: &AccessLogTarget) -> io::Result<Box<dyn Write + Send>> {
    match target {
        AccessLogTarget::Off => Ok(Box::new(io::sink())),
        AccessLogTarget::Stdout => Ok(Box::new(BufWriter::with_capacity(BUFFER, io::stdout()))),
        AccessLogTarget::File(path) => {
            let file = file(path).map_err(|error| {
                let hint = match error.kind() {
                    io::ErrorKind::ReadOnlyFilesystem => {
                        "; below systemd's ProtectSystem=strict only /var/log/edge can be written to, unless \
                         ReadWritePaths= names another"
                    }
                    _ => "",
                };
                io::Error::new(error.kind(), format!("{}: {error}{hint}", path.display()))
            })?;
            Ok(Box::new(BufWriter::with_capacity(BUFFER, file)))
        }
    }
}

/// Opens a file to append to. A new file is also given to the group `edge`; the mode of an existing one is
/// left alone.
fn file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).mode(MODE);
    match options.create_new(true).open(path) {
        Ok(file) => {
            // Whatever the umask of the process.
            if let Err(error) = file.set_permissions(Permissions::from_mode(MODE)) {
                tracing::warn!(%error, "the access log cannot be given the mode {MODE:o}");
            }
            if let Some(group) = group::edge()
                && let Err(error) = fchown(&file, None, Some(group))
            {
                tracing::warn!(%error, "the access log cannot be given to the group {}", group::NAME);
            }
            Ok(file)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options.create_new(false).create(true).open(path)
        }
        Err(error) => Err(error),
    }
}

struct Writer {
    target: AccessLogTarget,
    /// `None` where it could never be opened: what is written is lost.
    output: Option<Box<dyn Write + Send>>,
    shared: Arc<Shared>,
    /// When it last could not be opened.
    tried: Option<Instant>,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        while let Ok(order) = orders.recv() {
            if matches!(order, Order::Write(_)) {
                // While this thread sleeps here, a worker that adds a line need not wake it.
                thread::sleep(GATHER);
            }
            self.obey(order);
            // One write takes all lines that arrived meanwhile. The bound keeps a flood from delaying the
            // work below.
            for order in orders.try_iter().take(QUEUE) {
                self.obey(order);
            }
            self.flush();
            let dropped = self.shared.dropped.swap(0, Relaxed);
            if dropped > 0 {
                tracing::warn!(dropped, "the access log is read too slowly: lines were dropped");
            }
        }
    }

    fn obey(&mut self, order: Order) {
        if self.shared.reopen.swap(false, Relaxed)
            || self.tried.is_some_and(|tried| tried.elapsed() >= REOPEN)
        {
            self.reopen();
        }
        match order {
            Order::Write(record) => {
                let Some(output) = &mut self.output else { return };
                let written = serde_json::to_writer(&mut *output, &record).map_err(io::Error::from);
                let written = written.and_then(|()| output.write_all(b"\n"));
                if let Err(error) = written {
                    self.note(&error);
                }
            }
            Order::Wake => {}
            Order::Flush(done) => {
                self.flush();
                let _ = done.send(());
            }
        }
    }

    fn flush(&mut self) {
        let Some(output) = &mut self.output else { return };
        match output.flush() {
            Ok(()) if self.tried.is_none() => *self.trouble() = None,
            Ok(()) => {}
            Err(error) => self.note(&error),
        }
    }

    /// A full disk is said once, not for each line.
    fn note(&self, error: &io::Error) {
        let why = match error.kind() {
            io::ErrorKind::StorageFull => "its disk is full",
            io::ErrorKind::QuotaExceeded => "the disk quota is used up",
            _ => &error.to_string(),
        };
        let trouble = format!("the access log cannot be written, lines are lost until it can: {why}");
        if self.trouble().replace(trouble.clone()).is_none() {
            tracing::error!("{trouble}");
        }
    }

    fn reopen(&mut self) {
        self.flush();
        match output(&self.target) {
            Ok(output) => {
                self.output = Some(output);
                self.tried = None;
                *self.trouble() = None;
            }
            Err(error) => {
                self.tried = Some(Instant::now());
                if self.output.is_none() {
                    return self.note(&error);
                }
                let trouble = format!("the access log goes on in the old file: {error}");
                if self.trouble().replace(trouble.clone()).is_none() {
                    tracing::error!("{trouble}");
                }
            }
        }
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        lock(&self.shared.trouble)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::spec::{ClientProtocol, Tier};

    pub(super) fn record(id: u64) -> Record {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            id,
            client: "192.0.2.7:4711".parse().unwrap(),
            local: "198.51.100.1:443".parse().unwrap(),
            listener: "https".into(),
            protocol: Some(ClientProtocol::Tls),
            sni: Some("cloud.example.com".parse().unwrap()),
            sni_raw: None,
            alpn: [&b"h2"[..]].into_iter().collect(),
            ech: false,
            route: Some("*.example.com".into()),
            backend: Some("100.64.0.2:443".parse().unwrap()),
            attempts: None,
            error: None,
            datapath: Some(Tier::Sockmap),
            spilled: false,
            bytes_up: 517,
            bytes_down: 4096,
            duration: Duration::from_micros(12_345),
            connect_time: None,
            close: "finished",
            unique_id: "0102".into(),
        }
    }

    #[test]
    fn a_connection_is_a_line_with_the_names_that_users_rely_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let log = AccessLog::open(&AccessLogTarget::File(path.clone())).unwrap();
        log.write(record(1), false);
        log.flush();
        let expected = concat!(
            r#"{"time":"2023-11-14T22:13:20.123Z","id":1,"client":"192.0.2.7:4711","local":"198.51.100.1:443","listener":"https","#,
            r#""protocol":"tls","sni":"cloud.example.com","alpn":["h2"],"ech":false,"route":"*.example.com","#,
            r#""backend":"100.64.0.2:443","datapath":"sockmap","bytes_up":517,"bytes_down":4096,"#,
            r#""duration_ms":12.345,"connect_ms":null,"close":"finished","unique_id":"0102"}"#,
            "\n"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn a_rotated_file_is_left_alone_and_a_new_one_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let (path, rotated) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
        let log = AccessLog::open(&AccessLogTarget::File(path.clone())).unwrap();
        log.write(record(1), false);
        log.flush();
        std::fs::rename(&path, &rotated).unwrap();
        log.reopen();
        log.write(record(2), false);
        log.flush();
        assert!(std::fs::read_to_string(&rotated).unwrap().contains("\"id\":1,"));
        let fresh = std::fs::read_to_string(&path).unwrap();
        assert!(fresh.contains("\"id\":2,") && fresh.lines().count() == 1);
    }

    /// Takes nothing until it is told to.
    struct Stuck(Receiver<()>, Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Once the other end is dropped it never waits again.
            let _ = self.0.recv();
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_costs_lines_but_no_connection_and_no_shutdown() {
        let (go, stopped) = mpsc::sync_channel(0);
        let written = Arc::default();
        let target = AccessLogTarget::File("unused".into());
        let log = AccessLog::start(target, Some(Box::new(Stuck(stopped, Arc::clone(&written))))).unwrap();
        let (many, started) = (2 * QUEUE as u64, Instant::now());
        for id in 0..many {
            log.write(record(id), false);
        }
        let dropped = log.shared.dropped.load(Relaxed);
        assert!(dropped >= QUEUE as u64 - 1, "{dropped}");
        log.flush();
        assert!(started.elapsed() < 2 * FLUSH);

        drop(go);
        let lines = || written.lock().unwrap().split(|&byte| byte == b'\n').count() as u64 - 1;
        // A slow machine may need longer for so many than one flush waits.
        for _ in 0..20 {
            log.flush();
            if lines() + dropped >= many {
                break;
            }
        }
        assert_eq!(lines() + dropped, many);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named_and_opened_when_it_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("later/access.log");
        let log = AccessLog::open(&AccessLogTarget::File(path.clone())).unwrap();
        assert!(log.trouble().unwrap().contains(path.to_str().unwrap()));
        log.write(record(1), false);
        log.flush();
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        log.reopen();
        log.write(record(2), false);
        log.flush();
        assert_eq!(log.trouble(), None);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("\"id\":2,") && text.lines().count() == 1, "{text}");
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o137, 0, "{mode:o}");
    }
}
