//! The sockmap tier between real sockets on loopback. Takes the rights to load programs; without them each test
//! says so and ends.
#![expect(clippy::unwrap_used, reason = "a test ends where it fails")]

mod lab;
mod slow_readers;

use std::{io, net::Ipv4Addr, sync::Arc, time::Duration};

use edge::{
    datapath::{End, Meter, Pair, Preread, Side, Stop, StopReason, Ticket, Tiers, carry},
    kernel::{DEFAULT_CREDIT, tcp},
    spec::{Choice, Tier},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use self::lab::{Carried, PATIENCE, carried, connected, end, in_kernel, pattern, start, tiers};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_first_goes_first_and_what_was_read_in_part_goes_once() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    let (mut client, mut near) = connected().await;
    // One segment, of which user space reads a part; large enough that it takes several steps to trim.
    let sent = pattern(60_000);
    client.write_all(&sent).await.unwrap();
    while tcp::receive_queue(&near).unwrap() < 60_000 {
        sleep(Duration::from_millis(1)).await;
    }
    let mut read = vec![0; 20_000];
    near.read_exact(&mut read).await.unwrap();
    let preread = Preread { bytes: [b"HEADER", &*read].concat(), uncounted: 6, hold: None };
    let mut carried = start(&tiers, (client, near), connected().await, preread);
    in_kernel(&carried.meter).await;
    carried.client.write_all(b"and more").await.unwrap();
    let mut received = vec![0; 6 + 60_000 + 8];
    timeout(PATIENCE, carried.backend.read_exact(&mut received)).await.unwrap().unwrap();
    assert!(received == [b"HEADER", &*sent, b"and more"].concat());
    // Counted while it lives.
    assert_eq!((carried.meter.up(), carried.meter.down()), (60_008, 0));
    carried.backend.write_all(b"bye").await.unwrap();
    drop(carried.backend);
    let mut received = Vec::new();
    timeout(PATIENCE, carried.client.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, b"bye");
    drop(carried.client);
    assert_eq!(end(carried.end).await, End::Finished);
    assert_eq!((carried.meter.up(), carried.meter.down()), (60_008, 3));
    assert_eq!((carried.meter.tier(), carried.meter.spilled()), (Tier::Sockmap, false));
}

/// Both directions at once, each closed at its end; returns whether the kernel carried all of it.
async fn bulk(tiers: &Tiers, length: usize, pauses: bool) -> bool {
    let Carried { client, backend, meter, end: ended, stop: _stop } = carried(tiers).await;
    let sent = Arc::new(pattern(length));
    let mut tasks = JoinSet::new();
    for side in [client, backend] {
        let (mut reader, mut writer) = side.into_split();
        let (sent, expected) = (Arc::clone(&sent), Arc::clone(&sent));
        tasks.spawn(async move {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        });
        tasks.spawn(async move {
            let mut at = 0;
            let mut buffer = vec![0; 300_000];
            loop {
                let read = timeout(PATIENCE, reader.read(&mut buffer)).await.unwrap().unwrap();
                if read == 0 {
                    break;
                }
                assert!(buffer[..read] == expected[at..at + read], "wrong bytes at {at}");
                at += read;
                if pauses && fastrand::u8(..) < 8 {
                    sleep(Duration::from_millis(2)).await;
                }
            }
            assert_eq!(at, expected.len());
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(end(ended).await, End::Finished);
    assert_eq!((meter.up(), meter.down()), (length as u64, length as u64));
    assert_eq!(meter.tier(), Tier::Sockmap);
    !meter.spilled()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_arrives_unchanged_in_the_kernel_and_beside_it() {
    let Some(ample) = tiers(1 << 40) else { return };
    assert!(bulk(&ample, 40 << 20, true).await, "no credit was used up");
    let Some(scarce) = tiers(256 << 10) else { return };
    for _ in 0..8 {
        bulk(&scarce, 10 << 20, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direction_goes_on_after_the_other_was_closed() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    for client_first in [true, false] {
        let carried = carried(&tiers).await;
        in_kernel(&carried.meter).await;
        let (mut first, mut second) = (carried.client, carried.backend);
        if !client_first {
            std::mem::swap(&mut first, &mut second);
        }
        first.shutdown().await.unwrap();
        assert_eq!(timeout(PATIENCE, second.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
        let sent = pattern(3 << 20);
        let writing = async {
            second.write_all(&sent).await.unwrap();
            second.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let (read, ()) = tokio::join!(timeout(PATIENCE, first.read_to_end(&mut received)), writing);
        read.unwrap().unwrap();
        assert!(received == sent);
        assert_eq!(end(carried.end).await, End::Finished);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_passed_on_as_a_reset_after_what_came_before() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    for side in [Side::Client, Side::Backend] {
        let carried = carried(&tiers).await;
        in_kernel(&carried.meter).await;
        let (mut gone, mut other) = match side {
            Side::Client => (carried.client, carried.backend),
            Side::Backend => (carried.backend, carried.client),
        };
        gone.write_all(b"last words").await.unwrap();
        tcp::reset_on_close(&gone).unwrap();
        drop(gone);
        let mut received = Vec::new();
        let error = timeout(PATIENCE, other.read_to_end(&mut received)).await.unwrap().unwrap_err();
        assert_eq!((error.kind(), &*received), (io::ErrorKind::ConnectionReset, &b"last words"[..]));
        assert_eq!(end(carried.end).await, End::Reset(side));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_bytes_are_never_lost_whenever_they_come() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    let races = std::env::var("RACES").map_or(1500, |races| races.parse().unwrap());
    let (mut lost, mut kernel) = (0, 0);
    for race in 0..races {
        let ((client, near), backend) = (connected().await, connected().await);
        let (mut reader, mut writer) = client.into_split();
        let writing = tokio::spawn(async move {
            // Before, during and after the hand-over.
            for part in pattern(3000).chunks(100) {
                writer.write_all(part).await.unwrap();
                for _ in 0..race % 7 {
                    tokio::task::yield_now().await;
                }
            }
            writer
        });
        for _ in 0..race % 11 {
            tokio::task::yield_now().await;
        }
        let (far, near_backend) = backend;
        let (meter, stop) = (Meter::default(), Stop::default());
        let pair = Pair { client: near, backend: near_backend };
        let ticket = Ticket::default();
        let carrying = carry(pair, Preread::default(), Choice::Sockmap, &tiers, &ticket, &meter, &stop);
        let answering = async {
            let (mut far_reader, mut far_writer) = far.into_split();
            far_writer.write_all(b"greeting").await.unwrap();
            let mut received = vec![0; 3000];
            let read = timeout(Duration::from_secs(5), far_reader.read_exact(&mut received)).await;
            let mut writer = writing.await.unwrap();
            writer.shutdown().await.unwrap();
            let rest = timeout(Duration::from_secs(5), far_reader.read(&mut [0])).await;
            far_writer.shutdown().await.unwrap();
            (read.is_ok() && matches!(rest, Ok(Ok(0))), received, writer)
        };
        let listening = async {
            let mut received = Vec::new();
            let _ = timeout(Duration::from_secs(11), reader.read_to_end(&mut received)).await;
            received
        };
        let (ended, (complete, received, _writer), answer) =
            tokio::join!(timeout(Duration::from_secs(20), carrying), answering, listening);
        if !complete || received != pattern(3000) || answer != b"greeting" {
            lost += 1;
        } else {
            assert_eq!(ended.unwrap().end(), Some(End::Finished));
        }
        kernel += u32::from(meter.tier() == Tier::Sockmap);
    }
    println!("{races} races, {kernel} of them in the kernel, {lost} lost");
    assert_eq!(lost, 0);
    assert_eq!(kernel, races);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_to_stop_resets_both_sides_and_idleness_closes_them() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    let mut cut = carried(&tiers).await;
    in_kernel(&cut.meter).await;
    cut.stop.order(StopReason::Operator);
    assert_eq!(end(cut.end).await, End::Stopped(StopReason::Operator));
    for side in [&mut cut.client, &mut cut.backend] {
        let error = side.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let mut idle = carried(&tiers).await;
    in_kernel(&idle.meter).await;
    idle.stop.order(StopReason::Idle);
    assert_eq!(end(idle.end).await, End::Stopped(StopReason::Idle));
    for side in [&mut idle.client, &mut idle.backend] {
        assert_eq!(side.read(&mut [0; 8]).await.unwrap(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_joined_is_carried_by_the_other_tiers() {
    let older = (connected().await, connected().await);
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    let closed = (connected().await, connected().await);
    for (mut client, mut backend) in [older, closed] {
        client.0.write_all(b"and goodbye").await.unwrap();
        client.0.shutdown().await.unwrap();
        backend.0.write_all(b"hello").await.unwrap();
        backend.0.shutdown().await.unwrap();
        while tcp::receive_queue(&client.1).unwrap() < 11 || tcp::receive_queue(&backend.1).unwrap() < 5 {
            sleep(Duration::from_millis(1)).await;
        }
        let mut carried = start(&tiers, client, backend, Preread::default());
        let (mut up, mut down) = (Vec::new(), Vec::new());
        timeout(PATIENCE, carried.backend.read_to_end(&mut up)).await.unwrap().unwrap();
        timeout(PATIENCE, carried.client.read_to_end(&mut down)).await.unwrap().unwrap();
        assert_eq!((&*up, &*down), (&b"and goodbye"[..], &b"hello"[..]));
        assert_eq!(end(carried.end).await, End::Finished);
        assert_eq!(carried.meter.tier(), Tier::Copy);
    }
}

/// RFC 1071 over RFC 9293 §3.1's pseudo header and segment.
fn checksum(segment: &[u8]) -> u16 {
    let loopback = Ipv4Addr::LOCALHOST.octets();
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let mut bytes = [&loopback[..], &loopback, &[0, 6], &length, segment].concat();
    bytes.push(0);
    let sum: u32 = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// A segment as `sender` would send it: `back` octets before what it sends next.
fn segment(sender: &TcpStream, back: u32, payload: &[u8]) -> Vec<u8> {
    tcp::enter_repair(sender).unwrap();
    let sequence = tcp::sequence(sender, tcp::Queue::Send).unwrap() - back;
    let acknowledgement = tcp::sequence(sender, tcp::Queue::Receive).unwrap();
    tcp::leave_repair(sender).unwrap();
    let ports = [sender.local_addr().unwrap().port(), sender.peer_addr().unwrap().port()];
    let mut segment = ports.map(u16::to_be_bytes).concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledgement.to_be_bytes());
    // Five words of header; PSH and ACK; a window; no checksum yet; nothing urgent.
    segment.extend([0x50, 0x18, 0x02, 0x00, 0, 0, 0, 0]);
    segment.extend(payload);
    let sum = checksum(&segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn octets_sent_again_with_other_borders_arrive_once() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    let raw = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::TCP));
    let Ok(raw) = raw else {
        eprintln!("skipped: takes CAP_NET_RAW");
        return;
    };
    let mut carried = carried(&tiers).await;
    in_kernel(&carried.meter).await;
    carried.client.write_all(b"first").await.unwrap();
    let mut received = [0; 5];
    timeout(PATIENCE, carried.backend.read_exact(&mut received)).await.unwrap().unwrap();
    let local = socket2::SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    raw.send_to(&segment(&carried.client, 5, b"firstsecond"), &local).unwrap();
    let mut received = [0; 6];
    timeout(PATIENCE, carried.backend.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(&received, b"second");
    // The sender has not sent "second" yet, as far as it knows.
    carried.client.write_all(b"secondthird").await.unwrap();
    carried.client.shutdown().await.unwrap();
    let mut received = Vec::new();
    timeout(PATIENCE, carried.backend.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, b"third");
    drop(carried.backend);
    assert_eq!(end(carried.end).await, End::Finished);
    assert_eq!(carried.meter.up(), 16);
}
