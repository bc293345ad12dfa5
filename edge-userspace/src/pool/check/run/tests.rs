use std::{sync::Arc, time::SystemTime};

use tokio::net::TcpListener;

use super::*;
use crate::{
    pool::{
        BackendState, Backends, Obstacle,
        check::tests::{plan, pool},
    },
    spec::{BackendSpec, HealthKind, HealthSpec, PoolSpec},
};

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
    let passed = async {
        while backend.rtt().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), passed).await.expect("in time");
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
    let mut plan = plan(HealthKind::Tls);
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
    until(backend, BackendState::Unchecked).await;
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
