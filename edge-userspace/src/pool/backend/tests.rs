use super::*;
use crate::spec::HealthKind;

fn backend(to: &str, health: HealthSpec) -> Arc<Backend> {
    let spec = BackendSpec::new(to.parse().unwrap());
    let id = BackendId { pool: "home".into(), to: spec.to.clone(), device: None };
    Arc::new(Backend::new(id, &spec, Arc::default(), health, false))
}

fn reason(backend: &Backend) -> String {
    backend.status().reason.as_deref().unwrap_or_default().to_owned()
}

#[test]
fn a_lease_is_counted_while_it_lives() {
    let backend = backend("192.0.2.1", HealthSpec::default());
    let (one, two) = (backend.lease(), backend.lease());
    one.carried(10, 0);
    two.carried(5, 7);
    backend.connected(443, Duration::from_millis(1));
    drop(one);
    let status = backend.status();
    assert_eq!((status.connections, status.connections_total), (1, 1));
    assert_eq!((status.bytes_up, status.bytes_down), (15, 7));
}

#[test]
fn weight_zero_is_drained() {
    let backend = backend("192.0.2.1", HealthSpec::default());
    let spec = BackendSpec { weight: 0, ..BackendSpec::new(backend.to().clone()) };
    backend.reconfigure(&spec, HealthSpec::default(), false);
    assert_eq!((backend.state(), reason(&backend)), (BackendState::Drained, "its weight is 0".into()));
    backend.drain();
    backend.reconfigure(&BackendSpec { weight: 1, ..spec }, HealthSpec::default(), false);
    assert_eq!(backend.state(), BackendState::Drained);
    backend.ready();
    assert_eq!(backend.state(), BackendState::Up);
}

#[test]
fn a_name_is_down_until_it_resolves_and_keeps_its_last_answer() {
    let backend = backend("caddy.home.example", HealthSpec::default());
    assert_eq!(backend.state(), BackendState::Down);
    assert!(backend.addresses(443).is_empty());
    backend.resolved(Err("no such name"));
    assert_eq!(reason(&backend), "no such name");
    let ip = "192.0.2.7".parse().unwrap();
    backend.resolved(Ok(vec![Endpoint { ip, port: None }, Endpoint { ip, port: Some(8443) }]));
    assert_eq!(backend.state(), BackendState::Up);
    assert_eq!(backend.effective_weight(), balance::FULL, "nothing to recover from");
    let expected = [SocketAddr::new(ip, 443), SocketAddr::new(ip, 8443)];
    assert_eq!(backend.addresses(443)[..], expected);
    for answer in [Err("timed out"), Ok(Vec::new())] {
        backend.resolved(answer);
        assert_eq!((backend.state(), &backend.addresses(443)[..]), (BackendState::Up, &expected[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_recovered_backend_starts_slowly() {
    let backend = backend("192.0.2.1", HealthSpec { rise: 1, ..HealthSpec::default() });
    assert_eq!(backend.effective_weight(), balance::FULL);
    backend.checked(Err("timed out"));
    backend.checked(Ok(Duration::from_millis(1)));
    assert!(backend.effective_weight() < balance::FULL / 5);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert!((balance::FULL / 3..balance::FULL).contains(&backend.effective_weight()));
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(backend.effective_weight(), balance::FULL);
}

#[test]
fn failed_connections_take_it_out_and_one_that_works_clears_the_count() {
    let health = HealthSpec { kind: HealthKind::Off, ..HealthSpec::default() };
    let backend = backend("192.0.2.1", health);
    backend.failed(443, backend.epoch(), "timed out");
    backend.failed(443, backend.epoch(), "timed out");
    backend.connected(443, Duration::from_millis(1));
    backend.failed(443, backend.epoch(), "timed out");
    backend.failed(443, backend.epoch(), "timed out");
    assert_eq!(backend.state(), BackendState::Up);
    backend.failed(443, backend.epoch(), "timed out");
    assert_eq!((backend.state(), reason(&backend)), (BackendState::Down, "timed out".into()));
    let status = backend.status();
    assert!(status.last_error.unwrap().0 >= status.last_success.unwrap());
    assert_eq!(backend.next_check(0.5), Some(health.interval));
    backend.retry();
    assert_eq!(backend.state(), BackendState::Unchecked, "nobody knows yet");
}
