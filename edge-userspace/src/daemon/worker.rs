//! Worker threads: each has a runtime, listening sockets and connections of its own.
//!
//! A connection stays on the thread that accepted it, so that its two sockets, its buffers and its wake-ups
//! never move between processors.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, thread, time::Duration};

use tokio::{
    net::TcpListener,
    runtime,
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use crate::{
    connection::{self, Edge},
    kernel::{admin, segment},
    pool::connect::warm,
};

/// One address of one listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Binding {
    pub(super) listener: Arc<str>,
    pub(super) address: SocketAddr,
}

#[derive(Debug)]
enum Order {
    Listen(Binding, std::net::TcpListener),
    Close(Binding),
    Announce(Arc<str>, Option<u16>),
    CloseAll,
    Answer(oneshot::Sender<()>),
}

/// The worker threads. They end with the process: dropping this value never ends a connection.
#[derive(Debug)]
pub(super) struct Workers(Vec<mpsc::UnboundedSender<Order>>);

impl Workers {
    /// Starts `count` threads.
    pub(super) fn start(count: usize, edge: &Arc<Edge>) -> io::Result<Self> {
        let start = |index| {
            let (orders, inbox) = mpsc::unbounded_channel();
            let edge = Arc::clone(edge);
            let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
            let builder = thread::Builder::new().name(format!("worker-{index}"));
            // Hands connections over, which takes CAP_NET_ADMIN.
            admin::spawn(builder, move || {
                warm::enable(count);
                runtime.block_on(work(edge, inbox));
            })?;
            Ok(orders)
        };
        (0..count).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Accepts on these sockets, one for each worker.
    pub(super) fn listen(&self, binding: &Binding, sockets: Vec<std::net::TcpListener>) {
        for (worker, socket) in self.0.iter().zip(sockets) {
            // A worker ends only with the process.
            let _ = worker.send(Order::Listen(binding.clone(), socket));
        }
    }

    /// Stops accepting on this address.
    pub(super) fn close(&self, binding: &Binding) {
        for worker in &self.0 {
            let _ = worker.send(Order::Close(binding.clone()));
        }
    }

    /// Sets the largest MSS that a listener announces; `None` means the kernel's choice.
    pub(super) fn announce(&self, listener: &Arc<str>, mss: Option<u16>) {
        for worker in &self.0 {
            let _ = worker.send(Order::Announce(Arc::clone(listener), mss));
        }
    }

    /// Returns once every worker has taken this order.
    pub(super) async fn answer(&self) {
        for worker in &self.0 {
            let (answer, answered) = oneshot::channel();
            let _ = worker.send(Order::Answer(answer));
            let _ = answered.await;
        }
    }

    /// Stops accepting everywhere.
    pub(super) fn close_all(&self) {
        for worker in &self.0 {
            let _ = worker.send(Order::CloseAll);
        }
    }
}

/// A timer that always expires next. Without it each time limit of a connection would be the next, and
/// setting it would write to the runtime's wake-up descriptor and end its `epoll_wait` for nothing.
async fn beat() {
    /// Shorter than the usual limits of a hello and of connecting.
    const EVERY: Duration = Duration::from_secs(1);
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
    }
}

async fn work(edge: Arc<Edge>, mut inbox: mpsc::UnboundedReceiver<Order>) {
    tokio::spawn(beat());
    let mut accepting: HashMap<Binding, (AbortHandle, Arc<TcpListener>)> = HashMap::new();
    let mut ending = false;
    while let Some(order) = inbox.recv().await {
        match order {
            // An address that came while the daemon began to end.
            Order::Listen(..) if ending => {}
            Order::Listen(binding, socket) => match TcpListener::from_std(socket) {
                Ok(socket) => {
                    let socket = Arc::new(socket);
                    let loop_ = tokio::spawn(connection::accept(
                        Arc::clone(&edge),
                        Arc::clone(&binding.listener),
                        Arc::clone(&socket),
                    ));
                    if let Some((old, _)) = accepting.insert(binding, (loop_.abort_handle(), socket)) {
                        old.abort();
                    }
                }
                Err(error) => tracing::error!(listener = &*binding.listener, %error, "cannot accept"),
            },
            Order::Close(binding) => {
                if let Some((accept, _)) = accepting.remove(&binding) {
                    accept.abort();
                }
            }
            Order::Announce(listener, mss) => {
                let own = accepting.iter().filter(|(binding, _)| binding.listener == listener);
                for (binding, (_, socket)) in own {
                    // 0 removes the limit. Later clients see the change (`user_mss` in `tcp_mss_clamp`).
                    if let Err(error) = segment::set_limit(&**socket, mss.unwrap_or(0)) {
                        tracing::warn!(address = %binding.address, %error, "the MSS cannot be set");
                    }
                }
            }
            Order::Answer(answer) => {
                let _ = answer.send(());
            }
            Order::CloseAll => {
                ending = true;
                for (_, (accept, _)) in accepting.drain() {
                    accept.abort();
                }
            }
        }
    }
}
