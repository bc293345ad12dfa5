//! The socket tiers between real sockets on loopback.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{End, Meter, Pair, Preread, Side, Stop, StopReason, Ticket, Tiers, carry, reset};
use crate::spec::{Choice, Tier};

/// Both far ends of a connection that is being carried.
struct Carried {
    client: TcpStream,
    backend: TcpStream,
    meter: Arc<Meter>,
    stop: Arc<Stop>,
    end: JoinHandle<End>,
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (far, near) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (far.unwrap(), near.unwrap().0)
}

async fn carried(preread: Preread, choice: Choice) -> Carried {
    let (client, near_client) = connected().await;
    let (backend, near_backend) = connected().await;
    let (meter, stop) = (Arc::new(Meter::default()), Arc::new(Stop::default()));
    let end = tokio::spawn({
        let (meter, stop) = (Arc::clone(&meter), Arc::clone(&stop));
        let pair = Pair { client: near_client, backend: near_backend };
        async move {
            let fate =
                carry(pair, preread, choice, &Tiers::default(), &Ticket::default(), &meter, &stop).await;
            fate.end().unwrap()
        }
    });
    Carried { client, backend, meter, stop, end }
}

/// Bytes that show where in the stream they belong.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

#[tokio::test]
async fn what_was_read_first_goes_first_and_our_own_header_is_not_counted() {
    let preread = Preread { bytes: b"HEADERhello".to_vec(), uncounted: 6, hold: None };
    let mut carried = carried(preread, Choice::Auto).await;
    carried.client.write_all(b" world").await.unwrap();
    carried.client.shutdown().await.unwrap();
    let mut received = Vec::new();
    carried.backend.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"HEADERhello world");
    carried.backend.write_all(b"bye").await.unwrap();
    drop(carried.backend);
    let mut received = Vec::new();
    carried.client.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"bye");
    assert_eq!(carried.end.await.unwrap(), End::Finished);
    assert_eq!((carried.meter.up(), carried.meter.down()), (11, 3));
}

/// Both directions at once, the readers stopping now and then; then half-close either way.
async fn bulk_arrives_unchanged(choice: Choice) -> Tier {
    const LENGTH: usize = 40 << 20;
    let Carried { client, backend, meter, end, stop: _stop } = carried(Preread::default(), choice).await;
    let sent = Arc::new(pattern(LENGTH));
    let mut tasks = Vec::new();
    for side in [client, backend] {
        let (mut reader, mut writer) = side.into_split();
        let (sent, expected) = (Arc::clone(&sent), Arc::clone(&sent));
        tasks.push(tokio::spawn(async move { writer.write_all(&sent).await.unwrap() }));
        tasks.push(tokio::spawn(async move {
            let mut at = 0;
            let mut buffer = vec![0; 300_000];
            loop {
                let read = reader.read(&mut buffer).await.unwrap();
                if read == 0 {
                    break;
                }
                assert!(buffer[..read] == expected[at..at + read], "wrong bytes at {at}");
                at += read;
                if fastrand::u8(..) < 4 {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
            assert_eq!(at, LENGTH);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(end.await.unwrap(), End::Finished);
    assert_eq!((meter.up(), meter.down()), (LENGTH as u64, LENGTH as u64));
    meter.tier()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_by_copy_arrives_unchanged() {
    assert_eq!(bulk_arrives_unchanged(Choice::Copy).await, Tier::Copy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_by_splice_arrives_unchanged() {
    bulk_arrives_unchanged(Choice::Splice).await;
}

#[tokio::test]
async fn a_direction_goes_on_after_the_other_was_closed() {
    let mut carried = carried(Preread::default(), Choice::Auto).await;
    carried.client.shutdown().await.unwrap();
    assert_eq!(carried.backend.read(&mut [0; 8]).await.unwrap(), 0);
    let sent = pattern(3 << 20);
    let (mut client, mut backend) = (carried.client, carried.backend);
    let (received, ()) = tokio::join!(
        async {
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            received
        },
        async {
            backend.write_all(&sent).await.unwrap();
            backend.shutdown().await.unwrap();
        }
    );
    assert!(received == sent);
    assert_eq!(carried.end.await.unwrap(), End::Finished);
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset_after_what_came_before() {
    let mut carried = carried(Preread::default(), Choice::Auto).await;
    carried.backend.write_all(b"last words").await.unwrap();
    reset(&carried.backend);
    drop(carried.backend);
    let mut received = Vec::new();
    let error = carried.client.read_to_end(&mut received).await.unwrap_err();
    assert_eq!((error.kind(), &*received), (io::ErrorKind::ConnectionReset, &b"last words"[..]));
    assert_eq!(carried.end.await.unwrap(), End::Reset(Side::Backend));
}

#[tokio::test]
async fn a_reset_is_noticed_behind_a_reader_that_stopped() {
    let mut carried = carried(Preread::default(), Choice::Auto).await;
    // Until the way to the backend, which reads nothing, is full.
    let chunk = pattern(1 << 16);
    while tokio::time::timeout(Duration::from_millis(300), carried.client.write(&chunk)).await.is_ok() {}
    reset(&carried.client);
    drop(carried.client);
    let end = tokio::time::timeout(Duration::from_secs(5), carried.end).await;
    assert_eq!(end.unwrap().unwrap(), End::Reset(Side::Client));
}

#[tokio::test]
async fn the_order_to_stop_resets_both_sides_and_idleness_closes_them() {
    let mut cut = carried(Preread::default(), Choice::Auto).await;
    cut.stop.order(StopReason::Operator);
    assert_eq!(cut.end.await.unwrap(), End::Stopped(StopReason::Operator));
    for side in [&mut cut.client, &mut cut.backend] {
        let error = side.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let mut idle = carried(Preread::default(), Choice::Auto).await;
    idle.stop.order(StopReason::Idle);
    assert_eq!(idle.end.await.unwrap(), End::Stopped(StopReason::Idle));
    for side in [&mut idle.client, &mut idle.backend] {
        assert_eq!(side.read(&mut [0; 8]).await.unwrap(), 0);
    }
}
