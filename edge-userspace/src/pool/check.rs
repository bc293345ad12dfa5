//! Health checks: one task a backend, which mostly sleeps.
//!
//! What an outcome means is decided by [`health`](super::health); here is only the talking.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt,
    sync::Semaphore,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::{
    backend::Backend,
    connect::{ConnectError, connect_in},
    identity::BackendId,
    probe::{self, Answer},
};
use crate::{
    kernel::tcp,
    receive::receive,
    spec::{HealthKind, HealthSpec, HostName, ProxyProtocol},
};

/// Checks that may be under way at once: when everything is dead, each holds a socket for its whole timeout.
const AT_ONCE: usize = 1024;
/// The first check comes within this time, so that a start with thousands of backends is no storm.
const FIRST_WITHIN: Duration = Duration::from_secs(1);
/// A failed client brings the next check forward, but not closer to the last one than this.
const AFTER_SUSPICION: Duration = Duration::from_millis(200);

/// How a backend is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The pool's check.
    pub health: HealthSpec,
    /// The port for a backend that has none of its own: that of a listener whose routes lead to it. What clients
    /// find on other ports says nothing about its health.
    pub port: u16,
    /// The name in the ClientHello of a `tls` check.
    pub server_name: Option<HostName>,
    /// The PROXY header that the backend wants; a check says LOCAL or UNKNOWN.
    pub proxy_protocol: ProxyProtocol,
}

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// There was no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It broke before the answer.
    #[error("connected, but then: {0}")]
    Broken(#[from] io::Error),
    /// It was closed before the answer.
    #[error("closed the connection without answering the ClientHello")]
    Closed,
    /// The answer was something else.
    #[error("answered the ClientHello with something that is not TLS")]
    NotTls,
    /// It answered with an alert instead of a certificate.
    #[error("shows no certificate to a client of TLS 1.2, but alert {0} (70: it speaks TLS 1.3 only)")]
    NoCertificate(u8),
    /// It stayed silent.
    #[error("connected, but did not answer the ClientHello within {} ms", .0.as_millis())]
    Silent(Duration),
}

/// Checks a backend once and returns the round trip. Ends within `plan.health.timeout`.
pub async fn check(backend: &Backend, plan: &Plan) -> Result<Duration, CheckError> {
    let hello = match plan.health.kind {
        HealthKind::Tls => probe::client_hello(plan.server_name.as_ref(), 0),
        HealthKind::Tcp | HealthKind::Off => Vec::new(),
    };
    converse(backend, plan, None, hello, |received| match probe::answer(received) {
        Answer::Incomplete => None,
        Answer::ServerHello | Answer::Alert(_) => Some(Ok(())),
        Answer::NotTls => Some(Err(CheckError::NotTls)),
    })
    .await
    .map(|(rtt, _)| rtt)
}

/// Connects, says what the plan's PROXY setting and `hello` make, and reads until `understand` has an answer;
/// without a hello it reads nothing. Neither side sends larger segments than `segments`, if that is given. Returns the
/// round trip as well.
pub(super) async fn converse<T>(
    backend: &Backend,
    plan: &Plan,
    segments: Option<u16>,
    mut hello: Vec<u8>,
    mut understand: impl FnMut(&[u8]) -> Option<Result<T, CheckError>>,
) -> Result<(Duration, Option<T>), CheckError> {
    let start = Instant::now();
    let limit = plan.health.timeout;
    let (mut stream, _) = connect_in(backend, plan.port, limit, segments).await?;
    let took = start.elapsed();
    // The kernel's figure is that of the SYN alone, without our own waits.
    let rtt = tcp::info(&stream).map(|info| info.rtt).ok().filter(|rtt| !rtt.is_zero()).unwrap_or(took);
    // Reset at the end: a check that leaves TIME_WAIT behind would in time use up the ports to the backend.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    let asks = !hello.is_empty();
    let mut said = probe::proxy_local(plan.proxy_protocol).to_vec();
    said.append(&mut hello);
    let talk = async {
        stream.write_all(&said).await?;
        if !asks {
            return Ok(None);
        }
        let mut received = Vec::new();
        loop {
            if receive(&stream, &mut received).await? == 0 {
                return Err(CheckError::Closed);
            }
            if let Some(understood) = understand(&received) {
                return understood.map(Some);
            }
        }
    };
    let answer = timeout_at(start + limit, talk).await.unwrap_or(Err(CheckError::Silent(limit)))?;
    Ok((rtt, answer))
}

/// The checks that are running. Dropping it ends them.
#[derive(Debug)]
pub struct Checks {
    running: HashMap<BackendId, Running>,
    permits: Arc<Semaphore>,
}

#[derive(Debug)]
struct Running {
    backend: Arc<Backend>,
    plan: Plan,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Default for Checks {
    fn default() -> Self {
        Self { running: HashMap::new(), permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Checks {
    /// Checks these backends and no others from now on; those with an unchanged plan go on undisturbed.
    /// Backends whose checks are off belong here too: the same task brings them back after failures.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime; the checks run on the one that this is called in.
    pub fn set(&mut self, wanted: impl IntoIterator<Item = (Arc<Backend>, Plan)>) {
        let mut before = std::mem::take(&mut self.running);
        for (backend, plan) in wanted {
            // Routes may lead to the same backend with other plans: the first one's counts.
            if self.running.contains_key(backend.id()) {
                continue;
            }
            let kept = before.remove(backend.id());
            let kept = kept.filter(|kept| kept.plan == plan && Arc::ptr_eq(&kept.backend, &backend));
            let running = kept.unwrap_or_else(|| {
                backend.check_on(plan.port);
                let permits = Arc::clone(&self.permits);
                let task = tokio::spawn(run(Arc::clone(&backend), plan.clone(), permits));
                Running { backend: Arc::clone(&backend), plan, task: task.abort_handle() }
            });
            self.running.insert(backend.id().clone(), running);
        }
    }
}

async fn run(backend: Arc<Backend>, plan: Plan, permits: Arc<Semaphore>) {
    let checked = plan.health.kind != HealthKind::Off;
    if checked {
        sleep(plan.health.interval.min(FIRST_WITHIN).mul_f64(fastrand::f64())).await;
    }
    loop {
        let mut start = Instant::now();
        // A name that is not resolved keeps the backend down by itself, and says so better.
        if checked && !backend.addresses(plan.port).is_empty() {
            // The semaphore is never closed; were it, checking without a limit would be the lesser harm.
            let _permit = permits.acquire().await;
            start = Instant::now();
            match check(&backend, &plan).await {
                Ok(rtt) => backend.checked(Ok(rtt)),
                // Out of sockets: no news of the backend.
                Err(CheckError::Connect(error)) if !error.blames_backend() => {
                    tracing::warn!(backend = %backend.id(), %error, "health check not done");
                }
                Err(error) => backend.checked(Err(&error.to_string())),
            }
        }
        let next = backend.next_check(fastrand::f64());
        tokio::select! {
            () = sleep(next.unwrap_or(Duration::MAX).saturating_sub(start.elapsed())), if next.is_some() => {
                backend.retry();
            }
            () = backend.suspected() => sleep_until(start + AFTER_SUSPICION).await,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{net::SocketAddr, time::SystemTime};

    use tokio::{io::AsyncReadExt, net::TcpListener, task::JoinHandle};

    use super::*;
    use crate::{
        pool::{BackendState, Backends, Obstacle, Pool},
        spec::{BackendSpec, PoolSpec},
    };

    pub(in crate::pool) fn plan(kind: HealthKind) -> Plan {
        Plan {
            health: HealthSpec {
                kind,
                interval: Duration::from_millis(200),
                timeout: Duration::from_millis(300),
                ..HealthSpec::default()
            },
            port: 443,
            server_name: Some("cloud.example.com".parse().unwrap()),
            proxy_protocol: ProxyProtocol::V2,
        }
    }

    fn pool(to: &str, plan: &Plan) -> Pool {
        let backends = [to, "127.0.0.1:1"].map(|to| BackendSpec::new(to.parse().unwrap())).to_vec();
        Backends::default().pool(&PoolSpec { health: plan.health, ..PoolSpec::new("home", backends) })
    }

    pub(in crate::pool) fn backend(to: SocketAddr) -> Arc<Backend> {
        Arc::clone(&pool(&to.to_string(), &plan(HealthKind::Tcp)).backends()[0])
    }

    /// A backend that reads `expect` bytes, answers once and returns what it read.
    async fn server(expect: usize, answer: &'static [u8]) -> (SocketAddr, JoinHandle<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = vec![0; expect];
            stream.read_exact(&mut received).await.unwrap();
            stream.write_all(answer).await.unwrap();
            received
        });
        (address, task)
    }

    #[tokio::test]
    async fn a_tls_check_wants_tls() {
        for (answer, expected) in [
            (&[22, 3, 3, 0, 90, 2][..], None),
            (&[21, 3, 3, 0, 2, 2, 112], None),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", Some("not TLS")),
            (b"", Some("without answering")),
        ] {
            let (address, server) = server(16 + 3, answer).await;
            let outcome = check(&backend(address), &plan(HealthKind::Tls)).await;
            match (outcome, expected) {
                (Ok(_), None) => {}
                (Err(error), Some(part)) if error.to_string().contains(part) => {}
                // A server that closes with our bytes unread resets.
                (Err(CheckError::Broken(error)), Some(_))
                    if error.kind() == io::ErrorKind::ConnectionReset => {}
                (outcome, _) => panic!("{answer:?}: {outcome:?}"),
            }
            let received = server.await.unwrap();
            assert_eq!(&received[..16], probe::proxy_local(ProxyProtocol::V2));
            assert_eq!(&received[16..], [22, 3, 1]);
        }
    }

    #[tokio::test]
    async fn a_silent_tls_backend_fails_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = backend(listener.local_addr().unwrap());
        let start = Instant::now();
        let error = check(&backend, &plan(HealthKind::Tls)).await.unwrap_err();
        assert!(matches!(error, CheckError::Silent(_)), "{error}");
        assert!(start.elapsed() < Duration::from_millis(600));
        assert!(check(&backend, &plan(HealthKind::Tcp)).await.is_ok(), "though its port is open");
    }

    async fn until(backend: &Backend, state: BackendState) {
        let wait = async {
            loop {
                let changed = backend.changed();
                if backend.state() == state {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time");
    }

    #[tokio::test]
    async fn checks_follow_a_backend_down_and_up_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let plan = plan(HealthKind::Tcp);
        let pool = pool(&address.to_string(), &plan);
        let backend = &pool.backends()[0];
        let mut checks = Checks::default();
        checks.set([(Arc::clone(backend), plan.clone())]);
        listener.accept().await.unwrap();
        drop(listener);
        until(backend, BackendState::Down).await;
        assert!(backend.status().since <= SystemTime::now());
        assert!(backend.status().reason.unwrap().contains("refused"));
        let _listener = TcpListener::bind(address).await.unwrap();
        until(backend, BackendState::Up).await;
        checks.set([]);
        assert!(checks.running.is_empty());
    }

    #[tokio::test]
    async fn a_clients_failure_brings_the_check_forward() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut plan = plan(HealthKind::Tcp);
        plan.health.interval = Duration::from_mins(10);
        let pool = pool(&address.to_string(), &plan);
        let mut checks = Checks::default();
        checks.set([(Arc::clone(&pool.backends()[0]), plan)]);
        listener.accept().await.unwrap();
        let first = Instant::now();
        pool.backends()[0].failed(443, pool.backends()[0].epoch(), "connection reset");
        listener.accept().await.unwrap();
        assert!(first.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_client_that_gets_through_is_no_proof_but_brings_the_check_forward() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut plan = plan(HealthKind::Tcp);
        plan.health = HealthSpec { interval: Duration::from_mins(10), rise: 1, ..plan.health };
        let pool = pool(&address.to_string(), &plan);
        let backend = &pool.backends()[0];
        drop(listener);
        let mut checks = Checks::default();
        checks.set([(Arc::clone(backend), plan)]);
        until(backend, BackendState::Down).await;
        let _listener = TcpListener::bind(address).await.unwrap();
        for _ in 0..10 {
            backend.connected(443, Duration::from_millis(1));
        }
        assert_eq!(backend.state(), BackendState::Down);
        until(backend, BackendState::Up).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_unchecked_backend_comes_back_by_time() {
        let plan = plan(HealthKind::Off);
        let pool = pool("127.0.0.1:1", &plan);
        let backend = &pool.backends()[0];
        let mut checks = Checks::default();
        checks.set([(Arc::clone(backend), plan)]);
        for _ in 0..3 {
            backend.failed(443, backend.epoch(), "connection refused");
        }
        assert_eq!(backend.state(), BackendState::Down);
        until(backend, BackendState::Up).await;
        backend.failed(443, backend.epoch(), "connection refused");
        assert_eq!(backend.state(), BackendState::Down, "on probation");
    }

    #[tokio::test(start_paused = true)]
    async fn an_unchanged_plan_keeps_its_task() {
        let plan = plan(HealthKind::Tcp);
        let pool = pool("127.0.0.1:2", &plan);
        let mut checks = Checks::default();
        let [one, two] = pool.backends() else { panic!() };
        checks.set([(Arc::clone(one), plan.clone()), (Arc::clone(two), plan.clone())]);
        let id = |checks: &Checks, backend: &Backend| checks.running[backend.id()].task.id();
        let before = (id(&checks, one), id(&checks, two));
        checks.set([(Arc::clone(one), plan.clone()), (Arc::clone(two), Plan { port: 80, ..plan })]);
        assert_eq!(id(&checks, one), before.0);
        assert_ne!(id(&checks, two), before.1);
    }

    #[tokio::test]
    async fn what_clients_find_on_other_ports_is_no_health() {
        let plan = plan(HealthKind::Tcp);
        let spec = PoolSpec::new("home", vec![BackendSpec::new("127.0.0.1".parse().unwrap())]);
        let pool = Backends::default().pool(&spec);
        let backend = &pool.backends()[0];
        backend.check_on(plan.port);
        for _ in 0..10 {
            backend.failed(80, backend.epoch(), "connection refused");
        }
        assert_eq!(backend.state(), BackendState::Up);
        assert!(backend.status().last_error.is_some());
        for _ in 0..3 {
            backend.failed(443, backend.epoch(), "connection refused");
        }
        backend.connected(80, Duration::from_millis(1));
        backend.connected(80, Duration::from_millis(1));
        assert_eq!(backend.state(), BackendState::Down);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unresolved_name_is_not_checked() {
        let plan = plan(HealthKind::Tcp);
        let pool = pool("caddy.home.example", &plan);
        let backend = &pool.backends()[0];
        let mut checks = Checks::default();
        checks.set([(Arc::clone(backend), plan)]);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(backend.status().reason.as_deref(), Some("the name is not resolved yet"));
        backend.obstacle(Obstacle::Name, None);
        assert_eq!(backend.state(), BackendState::Up, "no check has spoken against it");
    }
}
