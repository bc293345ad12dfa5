//! The life of one connection: opened, carried or refused, accounted for.

use std::{
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, FutureExt as _};
use tokio::net::TcpStream;

use super::{
    CloseReason, Connection, Edge, ListenerState,
    open::{Opened, Refused, open},
    outcome::Ended,
    refusal,
};
use crate::{
    accounts::Slot,
    datapath::{self, Fate, Pair, Passenger, StopReason, Ticket},
    kernel::{monotonic, tcp},
    spec::ClientProtocol,
};

/// A client's connection, as accepted.
#[derive(Debug)]
pub struct Accepted {
    /// Its socket.
    pub client: TcpStream,
    /// The far end.
    pub peer: SocketAddr,
    /// Its place among the connections that there may be.
    pub slot: Slot,
}

/// Serves a connection from accept to its line in the access log.
///
/// This future lives as long as the connection, so it holds little: the steps before the connection is
/// carried, and those instead of it, are boxed and dropped afterwards.
///
/// `port` is the one on which it was accepted, and the default for a backend without a port.
pub fn serve(
    edge: Arc<Edge>,
    listener: Arc<ListenerState>,
    port: u16,
    Accepted { mut client, peer, slot }: Accepted,
) -> impl Future<Output = ()> + Send {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let local = client.local_addr().unwrap_or_else(|_| (Ipv6Addr::UNSPECIFIED, port).into());
    let (id, name) = (edge.accounts.next_id(), Arc::clone(&listener.spec.name));
    let connection = Arc::new(Connection::new(id, canonical(peer), canonical(local), name));
    edge.registry.insert(Arc::clone(&connection));
    let registered = Registered { edge, connection, _slot: slot };
    async move {
        let Registered { edge, connection, .. } = &registered;
        let opened = tokio::select! {
            biased;
            opened = Box::pin(open(edge, connection, &listener, port, &mut client)) => opened,
            reason = connection.stop.ordered_end() => Err(match reason {
                StopReason::HelloMemory => CloseReason::HelloMemory.into(),
                reason => CloseReason::Stopped(reason).into(),
            }),
        };
        let ended = finish(opened, client, &registered, listener.spec.protocol.client_protocol()).await;
        if let Some(ended) = ended {
            edge.account(connection, ended);
        }
    }
}

/// Carries the connection or refuses it; `None` if it continues as a flow. Deliberately neither `async` nor
/// part of [`serve`]: locals destructured there would live in the future across the await and enlarge every
/// idle connection.
fn finish(
    opened: Result<Opened, Refused>,
    client: TcpStream,
    registered: &Registered,
    listener: Option<ClientProtocol>,
) -> impl Future<Output = Option<Ended>> + Send {
    let Registered { edge, connection, .. } = registered;
    match opened {
        Ok(Opened { backend, preread, places, guard, datapath: choice }) => {
            let pair = Pair { client, backend };
            let (meter, stop) = (&connection.meter, &connection.stop);
            let carried = datapath::carry(pair, preread, choice, &edge.tiers, registered, meter, stop);
            Either::Left(carried.map(move |fate| {
                drop(guard);
                match fate {
                    Fate::Ended(end) => Some(CloseReason::Carried(end).into()),
                    Fate::HandedOver => {
                        edge.became_flow(connection, *places);
                        None
                    }
                }
            }))
        }
        Err(Refused { outcome, failure, protocol, tls_version, location }) => {
            Either::Right(Box::pin(async move {
                let sent_nothing = || tcp::info(&client).is_ok_and(|info| info.data_segments_in == 0);
                let is_empty = outcome.is_silent() && sent_nothing();
                refusal::refuse(client, outcome, protocol.or(listener), tls_version, location).await;
                Some(Ended { outcome, failure, is_empty })
            }))
        }
    }
}

/// A connection in the registry and among those admitted, out of both whatever becomes of its task.
struct Registered {
    edge: Arc<Edge>,
    connection: Arc<Connection>,
    _slot: Slot,
}

impl Passenger for Registered {
    fn ticket(&self) -> Ticket {
        let Self { edge, connection, .. } = self;
        let age = u64::try_from(connection.accepted.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let microseconds = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        Ticket {
            id: connection.id,
            label: edge.passport(connection).text(),
            accepted: monotonic().saturating_sub(age),
            connect_time: connection.upstream().map_or(0, |upstream| microseconds(upstream.connect_time)),
        }
    }

    fn common_label(&self) -> Option<String> {
        self.edge.passport(&self.connection).common_text()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.edge.registry.remove(self.connection.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand idle connections hold ten thousand of these futures.
    #[test]
    fn an_idle_connection_holds_little() {
        fn size<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        assert!(size(serve) <= 408, "{} bytes", size(serve));
        assert!(size_of::<Connection>() <= 256, "{} bytes", size_of::<Connection>());
    }
}
