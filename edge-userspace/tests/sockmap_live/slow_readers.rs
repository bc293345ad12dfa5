//! Readers that stop or are slow: what the credit bounds, and what user space carries from there on.

use std::{
    fs,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use edge::{
    datapath::{End, Preread, Side},
    kernel::{DEFAULT_CREDIT, tcp},
};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::lab::{Carried, PATIENCE, carried, connected, end, in_kernel, pattern, push, start, tiers};

/// Memory that is free, in octets: what the kernel takes for sockets is missing from it, whatever it accounts it to.
fn memory_available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// How far the machine's memory has fallen. Others use it as well, and give it back in the end: asked until it
/// is little, which it would never be for what waits here.
async fn taken_since(before: u64) -> u64 {
    let until = Instant::now() + PATIENCE;
    loop {
        let taken = before.saturating_sub(memory_available());
        if taken < 256 << 20 {
            return taken;
        }
        assert!(Instant::now() < until, "the memory fell by {taken}");
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_takes_bounded_memory_and_gets_everything_in_the_end() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    let mut carried = carried(&tiers).await;
    in_kernel(&carried.meter).await;
    let before = memory_available();
    let chunk = pattern(1 << 16);
    let pushed = push(&mut carried.client, &chunk, 2 << 30).await;
    let taken = taken_since(before).await;
    println!("{} MiB were taken of 2048, the machine's memory fell by {} MiB", pushed >> 20, taken >> 20);
    assert!(carried.meter.spilled());
    assert!(pushed < 64 << 20, "{pushed}");
    let reading = async {
        let (mut at, mut buffer) = (0_u64, vec![0; 1 << 16]);
        while at < pushed {
            let read = carried.backend.read(&mut buffer).await.unwrap();
            assert!(read > 0);
            for byte in &buffer[..read] {
                assert_eq!(*byte, chunk[usize::try_from(at).unwrap() % chunk.len()], "at {at}");
                at += 1;
            }
        }
    };
    timeout(PATIENCE, reading).await.unwrap();
    // The other direction never left the kernel, and ends as always.
    carried.backend.write_all(b"done").await.unwrap();
    carried.backend.shutdown().await.unwrap();
    let mut received = Vec::new();
    timeout(PATIENCE, carried.client.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, b"done");
    carried.client.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, carried.backend.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    assert_eq!(end(carried.end).await, End::Finished);
    assert_eq!((carried.meter.up(), carried.meter.down()), (pushed, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_segments_take_no_more_memory_than_large_ones() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    let mut carried = carried(&tiers).await;
    in_kernel(&carried.meter).await;
    let before = memory_available();
    // Every octet a segment of its own.
    let until = Instant::now() + Duration::from_secs(4);
    let mut pushed = 0;
    while Instant::now() < until && !carried.meter.spilled() {
        if timeout(Duration::from_millis(300), carried.client.write(b"1")).await.is_err() {
            break;
        }
        pushed += 1;
    }
    let taken = taken_since(before).await;
    println!("{pushed} segments of one octet, memory fell by {} MiB", taken >> 20);
    drop(carried.backend);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_is_noticed_behind_a_reader_that_stopped() {
    let Some(tiers) = tiers(1 << 20) else { return };
    let mut carried = carried(&tiers).await;
    in_kernel(&carried.meter).await;
    push(&mut carried.client, &pattern(1 << 16), 2 << 30).await;
    tcp::reset_on_close(&carried.client).unwrap();
    drop(carried.client);
    assert_eq!(end(carried.end).await, End::Reset(Side::Client));
}

/// Reads `length` octets of the pattern in pieces of `chunk`, and then the end.
async fn read_whole(socket: &mut TcpStream, chunk: &[u8], length: u64) {
    let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        let read = socket.read(&mut buffer).await.unwrap();
        if read == 0 {
            break;
        }
        let mut got = &buffer[..read];
        while !got.is_empty() {
            let expected = &chunk[usize::try_from(at).unwrap() % chunk.len()..];
            let both = got.len().min(expected.len());
            assert!(got[..both] == expected[..both], "wrong bytes at {at}");
            got = &got[both..];
            at += both as u64;
        }
    }
    assert_eq!(at, length);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_read_all_the_same() {
    // More than the kernel lets a send buffer grow to by itself.
    let Some(tiers) = tiers(16 << 20) else { return };
    let mut carried = carried(&tiers).await;
    in_kernel(&carried.meter).await;
    let chunk = pattern(1 << 16);
    // Both directions stop at readers that do not read, and user space takes over.
    let down = push(&mut carried.backend, &chunk, 2 << 30).await;
    let up = push(&mut carried.client, &chunk, 2 << 30).await;
    println!("{} MiB were taken up and {} MiB down", up >> 20, down >> 20);
    assert!(carried.meter.spilled());
    assert!(up < 128 << 20 && down < 128 << 20);
    carried.client.shutdown().await.unwrap();
    // One of them goes on to its end while the other stands.
    timeout(PATIENCE, read_whole(&mut carried.backend, &chunk, up)).await.unwrap();
    carried.backend.shutdown().await.unwrap();
    timeout(PATIENCE, read_whole(&mut carried.client, &chunk, down)).await.unwrap();
    assert_eq!(end(carried.end).await, End::Finished);
    assert_eq!((carried.meter.up(), carried.meter.down()), (up, down));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_told_before_its_time_is_not_believed() {
    let Some(tiers) = tiers(DEFAULT_CREDIT) else { return };
    let (client, near) = connected().await;
    let held = near.as_fd().try_clone_to_owned().unwrap();
    let mut carried = start(&tiers, (client, near), connected().await, Preread::default());
    in_kernel(&carried.meter).await;
    // Data to the client waits in the kernel for room, and data from the client waits behind it.
    set_socket_send_buffer_size(&held, 128 << 10).unwrap();
    let chunk = pattern(1 << 16);
    let down = push(&mut carried.backend, &chunk, 3 << 20).await;
    let up = push(&mut carried.client, &chunk, 24 << 20).await;
    assert!(carried.meter.spilled());
    carried.client.shutdown().await.unwrap();
    carried.backend.shutdown().await.unwrap();
    let Carried { mut client, mut backend, .. } = carried;
    let reading =
        async { tokio::join!(read_whole(&mut backend, &chunk, up), read_whole(&mut client, &chunk, down)) };
    timeout(PATIENCE, reading).await.unwrap();
    assert_eq!(end(carried.end).await, End::Finished);
    assert_eq!((carried.meter.up(), carried.meter.down()), (up, down));
}
