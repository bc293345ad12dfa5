//! The accept loop of one listening socket on one worker.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::{TcpListener, TcpStream};

use super::{Accepted, Edge, serve};
use crate::{accounts::Slot, datapath};

/// The pause when the process or the machine is out of file descriptors or memory, unless a connection ends
/// sooner.
const PAUSE: Duration = Duration::from_millis(500);
/// At most one warning in this time about such pauses.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Accepts until the future is dropped. A task on this thread serves each connection.
pub async fn accept(edge: Arc<Edge>, name: Arc<str>, socket: Arc<TcpListener>) {
    let port = socket.local_addr().map_or(0, |local| local.port());
    let mut warned: Option<Instant> = None;
    loop {
        edge.admission.room().await;
        match socket.accept().await {
            // Before it takes a place. On most devices its packets do not come this far.
            Ok((client, peer)) if edge.refuses(&name, peer) => datapath::reset(&client),
            // Taken only now: a listener that waits for clients must not occupy a place that others could
            // use.
            Ok((client, peer)) => {
                let slot = edge.admission.slot().await;
                spawn(&edge, &name, port, client, peer, slot);
            }
            Err(error) if exhausted(&error) => {
                if warned.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
                    warned = Some(Instant::now());
                    tracing::warn!(
                        listener = &*name, %error,
                        "accepting pauses; raise LimitNOFILE or set limits.connections"
                    );
                }
                let _ = tokio::time::timeout(PAUSE, edge.admission.freed()).await;
            }
            // The client was gone before it was accepted, or its network failed (accept(2)): nothing to serve.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

fn spawn(edge: &Arc<Edge>, name: &Arc<str>, port: u16, client: TcpStream, peer: SocketAddr, slot: Slot) {
    // A listener that a reload took away while this connection waited: it closes.
    let Some(listener) = edge.running.load().listeners.get(name).cloned() else { return };
    tokio::spawn(serve(Arc::clone(edge), listener, port, Accepted { client, peer, slot }));
}

fn exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
