//! Against listeners of this machine, and addresses where nobody is.

use std::net::{Ipv4Addr, TcpListener as StdListener};

use super::*;
use crate::{
    pool::{Backends, Endpoint, Obstacle},
    spec::{BackendSpec, HealthKind, HealthSpec, PoolSpec},
};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LIMIT: Duration = Duration::from_secs(5);

fn listener() -> (StdListener, SocketAddr) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An address where nothing listens.
fn closed() -> SocketAddr {
    listener().1
}

/// A listener whose queue is full: SYNs to it are dropped, as in a tunnel that swallows them.
fn silent() -> (Vec<socket2::Socket>, SocketAddr) {
    use socket2::{Domain, Socket, Type};
    let server = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    server.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    server.listen(0).unwrap();
    let address = server.local_addr().unwrap().as_socket().unwrap();
    let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    filler.connect(&address.into()).unwrap();
    (vec![server, filler], address)
}

fn pool(backends: &[SocketAddr], health: HealthKind) -> Pool {
    let spec = |to: &SocketAddr| BackendSpec::new(to.to_string().parse().unwrap());
    Backends::default().pool(&PoolSpec {
        health: HealthSpec { kind: health, ..HealthSpec::default() },
        connect_timeout: Duration::from_secs(1),
        ..PoolSpec::new("home", backends.iter().map(spec).collect())
    })
}

#[tokio::test]
async fn a_refused_backend_costs_nothing_but_a_look_at_the_next() {
    let (_listener, good) = listener();
    let pool = pool(&[closed(), good], HealthKind::Tcp);
    for _ in 0..10 {
        let connection = pool.connect(CLIENT, 443).await.unwrap();
        assert_eq!(connection.address, good.into());
        assert_eq!(connection.lease.backend().connections(), 1);
    }
    let [bad, good] = pool.backends() else { panic!() };
    assert!(bad.status().last_error.unwrap().1.contains("refused"));
    assert_eq!(bad.state(), super::super::BackendState::Down, "three clients said so");
    assert_eq!((bad.connections(), good.connections()), (0, 0));
    assert_eq!((bad.status().connections_total, good.status().connections_total), (0, 10));
}

#[tokio::test]
async fn a_silent_backend_leaves_time_for_the_next() {
    let (_sockets, bad) = silent();
    let (_listener, good) = listener();
    let pool = pool(&[bad, good], HealthKind::Tcp);
    let connection = pool.connect(CLIENT, 443).await.unwrap();
    assert_eq!((connection.address, connection.attempts), (good.into(), 2));
    assert!((Duration::from_millis(450)..Duration::from_millis(900)).contains(&connection.took));
    let error = pool.backends()[0].status().last_error.unwrap().1;
    assert!(error.contains("did not answer within 500 ms"), "{error}");
}

#[tokio::test]
async fn one_that_goes_down_is_not_waited_for() {
    let (_sockets, bad) = silent();
    let (_listener, good) = listener();
    let pool = pool(&[bad, good], HealthKind::Tcp);
    let fall = async {
        sleep(Duration::from_millis(50)).await;
        pool.backends()[0].obstacle(Obstacle::Tunnel, Some("wg0 is gone"));
    };
    let (connection, ()) = tokio::join!(pool.connect(CLIENT, 443), fall);
    let connection = connection.unwrap();
    assert_eq!((connection.address, connection.attempts), (good.into(), 2));
    assert!(connection.took < Duration::from_millis(400), "{:?}", connection.took);
    assert!(pool.backends()[0].status().last_error.is_none(), "nothing new is known of it");
}

#[tokio::test]
async fn all_down_fails_and_recovers_by_itself() {
    let pool = pool(&[closed(), closed()], HealthKind::Tcp);
    for _ in 0..5 {
        let error = pool.connect(CLIENT, 443).await.unwrap_err();
        assert!(matches!(error, ConnectError::Refused { .. }), "{error}");
    }
    let address = pool.backends()[1].addresses(0)[0];
    let _listener = StdListener::bind(address).unwrap();
    assert_eq!(pool.connect(CLIENT, 443).await.unwrap().address, address.into());
    pool.backends().iter().for_each(|backend| backend.drain());
    assert!(matches!(pool.connect(CLIENT, 443).await, Err(ConnectError::Drained)));
}

#[tokio::test]
async fn without_its_device_nothing_leaves() {
    let (listener, good) = listener();
    listener.set_nonblocking(true).unwrap();
    let by = |device: &str| BackendSpec {
        device: Some(device.into()),
        ..BackendSpec::new(good.to_string().parse().unwrap())
    };
    let spec = PoolSpec::new("home", vec![by("no-such-device")]);
    let error = Backends::default().pool(&spec).connect(CLIENT, 443).await.unwrap_err();
    assert!(matches!(error, ConnectError::Device { .. }) && error.blames_backend(), "{error}");
    assert!(error.to_string().ends_with("does not exist"), "{error}");
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    let spec = PoolSpec::new("home", vec![by("lo")]);
    Backends::default().pool(&spec).connect(CLIENT, 443).await.unwrap();
}

fn named(addresses: &[SocketAddr]) -> Arc<Backend> {
    let spec = PoolSpec::new("home", vec![BackendSpec::new("caddy.home.example".parse().unwrap())]);
    let backend = Arc::clone(&Backends::default().pool(&spec).backends()[0]);
    let endpoint = |address: &SocketAddr| Endpoint { ip: address.ip(), port: Some(address.port()) };
    backend.resolved(Ok(addresses.iter().map(endpoint).collect()));
    backend
}

#[tokio::test]
async fn addresses_are_raced_with_a_head_start() {
    let (_listener, good) = listener();
    let (_sockets, bad) = silent();
    let start = Instant::now();
    let (_, address) = connect(&named(&[bad, good]), 443, LIMIT).await.unwrap();
    assert_eq!(address, good.into());
    assert!((ATTEMPT_DELAY..ATTEMPT_DELAY * 3).contains(&start.elapsed()), "{:?}", start.elapsed());

    let start = Instant::now();
    let (_, address) = connect(&named(&[closed(), good]), 443, LIMIT).await.unwrap();
    assert_eq!(address, good.into());
    assert!(start.elapsed() < ATTEMPT_DELAY, "a refusal is not waited out");

    let error = connect(&named(&[closed(), closed()]), 443, LIMIT).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }));
    let error = connect(&named(&[]), 443, LIMIT).await.unwrap_err();
    assert!(matches!(error, ConnectError::Unresolved(_)));
}

#[test]
fn what_this_machine_lacks_is_not_the_backends_fault() {
    let error = ConnectError::Local { address: closed(), error: io::Error::from_raw_os_error(24) };
    assert!(!error.blames_backend() && error.to_string().contains("doctor"));
}
