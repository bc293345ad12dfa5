//! Connections that the tier carries between real sockets, both far ends in the test's hands.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use caps::Capability;
use edge::{
    datapath::{End, Meter, Pair, Preread, Stop, Ticket, Tiers, carry},
    kernel::{Objects, Sockmap, capability},
    spec::{Choice, Tier},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Longer than anything here takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_mins(1);

/// The programs, and the task that looks after what they report.
pub(super) fn tiers(credit: u64) -> Option<Tiers> {
    for needed in [Capability::CAP_BPF, Capability::CAP_NET_ADMIN] {
        if !capability::effective().unwrap().contains(&needed) {
            eprintln!("skipped: takes {needed}");
            return None;
        }
    }
    let sockmap =
        Sockmap::load(&Objects::embedded(), credit).unwrap_or_else(|error| panic!("{}", error.words()));
    let delivering = Arc::clone(&sockmap);
    tokio::spawn(async move { delivering.deliver().await });
    let tiers = Tiers::default();
    tiers.add_sockmap(sockmap);
    Some(tiers)
}

/// Both far ends of a connection that is being carried.
pub(super) struct Carried {
    pub(super) client: TcpStream,
    pub(super) backend: TcpStream,
    pub(super) meter: Arc<Meter>,
    pub(super) stop: Arc<Stop>,
    pub(super) end: JoinHandle<End>,
}

/// Far and near end.
pub(super) async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (far, near) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (far, near) = (far.unwrap(), near.unwrap().0);
    far.set_nodelay(true).unwrap();
    (far, near)
}

pub(super) fn start(
    tiers: &Tiers,
    (client, near_client): (TcpStream, TcpStream),
    (backend, near_backend): (TcpStream, TcpStream),
    preread: Preread,
) -> Carried {
    let (meter, stop) = (Arc::new(Meter::default()), Arc::new(Stop::default()));
    let end = tokio::spawn({
        let (meter, stop, tiers) = (Arc::clone(&meter), Arc::clone(&stop), tiers.clone());
        let pair = Pair { client: near_client, backend: near_backend };
        async move {
            let ticket = Ticket::default();
            carry(pair, preread, Choice::Sockmap, &tiers, &ticket, &meter, &stop).await.end().unwrap()
        }
    });
    Carried { client, backend, meter, stop, end }
}

pub(super) async fn carried(tiers: &Tiers) -> Carried {
    start(tiers, connected().await, connected().await, Preread::default())
}

/// Bytes that show where in the stream they belong.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

pub(super) async fn end(carried: JoinHandle<End>) -> End {
    timeout(PATIENCE, carried).await.unwrap().unwrap()
}

pub(super) async fn in_kernel(meter: &Meter) {
    while meter.tier() != Tier::Sockmap {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Writes until nothing is taken any more, or all of it; returns how much was.
pub(super) async fn push(socket: &mut TcpStream, chunk: &[u8], most: u64) -> u64 {
    let mut pushed = 0;
    while pushed < most
        && let Ok(written) = timeout(
            Duration::from_millis(800),
            socket.write(&chunk[usize::try_from(pushed).unwrap() % chunk.len()..]),
        )
        .await
    {
        pushed += written.unwrap() as u64;
    }
    pushed
}
