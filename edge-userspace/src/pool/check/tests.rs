use std::{net::SocketAddr, sync::Arc};

use tokio::{io::AsyncReadExt, net::TcpListener, task::JoinHandle};

use super::*;
use crate::{
    pool::{Backends, Pool},
    spec::{BackendSpec, HealthKind, PoolSpec},
};

pub(in crate::pool) fn plan(kind: HealthKind) -> Plan {
    Plan {
        health: HealthSpec {
            kind,
            interval: Duration::from_millis(200),
            timeout: Duration::from_millis(300),
            ..HealthSpec::default()
        },
        asks: match kind {
            HealthKind::Off => Vec::new(),
            HealthKind::Tcp => vec![Ask::Connect],
            _ => vec![Ask::Tls],
        },
        port: 443,
        server_name: Some("cloud.example.com".parse().unwrap()),
        proxy_protocol: ProxyProtocol::V2,
    }
}

pub(super) fn pool(to: &str, plan: &Plan) -> Pool {
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

/// A header with IPv4 addresses.
fn header() -> usize {
    let nobody = "127.0.0.1:1".parse().unwrap();
    write(ProxyProtocol::V2, ProxySource::Client { source: nobody, destination: nobody }, &Tlvs::default())
        .bytes
        .len()
}

#[tokio::test]
async fn a_tls_check_wants_tls() {
    for (answer, expected) in [
        (&[22, 3, 3, 0, 90, 2][..], None),
        (&[21, 3, 3, 0, 2, 2, 112], None),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", Some("not TLS")),
        (b"", Some("without answering")),
    ] {
        let (address, server) = server(header() + 3, answer).await;
        let outcome = check(&backend(address), &plan(HealthKind::Tls)).await;
        match (outcome, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(part)) if error.to_string().contains(part) => {}
            // A server that closes with our bytes unread resets.
            (Err(CheckError::Broken(error)), Some(_)) if error.kind() == io::ErrorKind::ConnectionReset => {}
            (outcome, _) => panic!("{answer:?}: {outcome:?}"),
        }
        let received = server.await.unwrap();
        let SocketAddr::V4(backend) = address else { panic!("{address}") };
        assert_eq!(received[..14], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11", "version 2, PROXY, TCP over IPv4");
        assert_eq!(received[16..24], [[127, 0, 0, 1], backend.ip().octets()].concat());
        assert_eq!(received[26..28], backend.port().to_be_bytes());
        assert_eq!(received[header()..], [22, 3, 1]);
    }
}

#[tokio::test]
async fn a_silent_tls_backend_fails_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = backend(listener.local_addr().unwrap());
    let start = Instant::now();
    let error = check(&backend, &plan(HealthKind::Tls)).await.unwrap_err();
    assert!(matches!(error, CheckError::Silent(Ask::Tls, _)), "{error}");
    assert!(start.elapsed() < Duration::from_millis(600));
    assert!(check(&backend, &plan(HealthKind::Tcp)).await.is_ok(), "though its port is open");
}

#[tokio::test]
async fn a_check_of_the_port_alone_is_accepted_by_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = backend(listener.local_addr().unwrap());
    for _ in 0..50 {
        check(&backend, &plan(HealthKind::Tcp)).await.unwrap();
    }
    // Earlier connections are ahead of this one in the queue.
    let client = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (_, first) = listener.accept().await.unwrap();
    assert_eq!(first, client.local_addr().unwrap());
    drop(listener);
    let error = check(&backend, &plan(HealthKind::Tcp)).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn each_protocol_is_asked_in_its_own_words() {
    for (ask, question, answer) in [
        (
            Ask::Http,
            &b"HEAD / HTTP/1.1\r\nHost: cloud.example.com\r\n"[..],
            &b"HTTP/1.1 404 Not Found\r\n\r\n"[..],
        ),
        (Ask::Ssh, b"SSH-2.0-", b"SSH-2.0-OpenSSH_9.6\r\n"),
        (Ask::Postgres, &crate::sniff::postgres::SSL_REQUEST, b"N"),
    ] {
        let plan = Plan { asks: vec![ask], proxy_protocol: ProxyProtocol::Off, ..plan(HealthKind::Auto) };
        let (address, server) = server(question.len(), answer).await;
        assert_eq!(check(&backend(address), &plan).await.unwrap().0, ask);
        assert_eq!(server.await.unwrap(), question);
    }
}

#[tokio::test]
async fn of_several_questions_one_answer_is_enough() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let backend = backend(listener.local_addr().unwrap());
    // Closes at once on what is no HTTP.
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if stream.read_u8().await.is_ok_and(|first| first == b'H') {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            }
        }
    });
    let plan = |asks| Plan { asks, proxy_protocol: ProxyProtocol::Off, ..plan(HealthKind::Auto) };
    assert_eq!(check(&backend, &plan(vec![Ask::Tls, Ask::Http])).await.unwrap().0, Ask::Http);
    let error = check(&backend, &plan(vec![Ask::Tls, Ask::Ssh])).await.unwrap_err();
    assert!(
        error.to_string().contains("TLS")
            || matches!(error, CheckError::Broken(_) | CheckError::Closed(Ask::Tls))
    );
}
