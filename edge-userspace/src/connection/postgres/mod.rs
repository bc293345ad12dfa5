//! PostgreSQL begins in clear text: client and server agree on TLS before the ClientHello that names the
//! server. The edge agrees on both sides, and carries data from the ClientHello on.
//!
//! `open` calls [`welcome`] before it reads the hello, and [`ready`] before the hello is sent to a backend. Both do
//! nothing for other protocols.

mod cancel;
mod sessions;

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{timeout, timeout_at},
};

pub use self::sessions::Sessions;
use super::{
    Destination,
    hello::{NoHello, read_until},
    open::{Opening, ReadHello, Refused},
    received::Received,
};
use crate::{
    datapath::Preread,
    pool::Backend,
    sniff::{
        Rejection,
        postgres::{NO, Request, SSL_REQUEST, YES, request},
    },
    spec::{AlpnList, ClientProtocol},
};

/// The protocol that clients offer by ALPN when they begin with TLS (`sslnegotiation=direct`).
const ALPN: &[u8] = b"postgresql";

/// How a client goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    /// It sends a ClientHello.
    Hello,
    /// It has sent a `CancelRequest`, which is what has been received.
    Cancel,
}

/// Answers a client until it sends its ClientHello. A `CancelRequest` is passed on, and ends the connection.
pub(super) async fn welcome(
    opening: &Opening<'_>,
    protocol: Option<ClientProtocol>,
    client: &mut TcpStream,
    received: &mut Received,
) -> Result<(), Refused> {
    if protocol != Some(ClientProtocol::Postgres) {
        return Ok(());
    }
    let beginning = timeout_at(opening.deadline, negotiate(client, received)).await;
    let beginning = beginning.unwrap_or(Err(NoHello::Late));
    match beginning.map_err(|reason| Refused::without_hello(protocol, reason))? {
        Beginning::Hello => Ok(()),
        Beginning::Cancel => Err(cancel::pass_on(opening, client, &received.bytes).await.into()),
    }
}

/// Prepares a backend for the ClientHello, which is all that is left of `preread`. Returns whether a PostgreSQL session
/// begins: it may be silent for long, and a `CancelRequest` may refer to it.
pub(super) async fn ready(
    Opening { edge, connection, .. }: &Opening<'_>,
    hello: &ReadHello<'_>,
    destination: &Destination,
    backend: &Backend,
    (stream, preread): (&mut TcpStream, &mut Preread),
) -> io::Result<bool> {
    let is_in_clear = hello.request.protocol == Some(ClientProtocol::Postgres);
    if is_in_clear {
        agree(stream, preread, destination.pool.connect_timeout()).await?;
    }
    let is_session = is_in_clear || offers_session(hello.alpn());
    if is_session {
        edge.sessions.note(connection.client().ip(), destination.identity, backend.id());
    }
    Ok(is_session)
}

fn offers_session(alpn: &AlpnList) -> bool {
    alpn.iter().any(|name| name == ALPN)
}

/// Tells a client that requests TLS to go ahead. One that requests GSSAPI first gets a no, and may try TLS
/// next.
async fn negotiate(client: &mut TcpStream, received: &mut Received) -> Result<Beginning, NoHello> {
    for _ in 0..2 {
        let request = read_until(client, received, request).await?;
        if request == Request::Cancel {
            return Ok(Beginning::Cancel);
        }
        received.bytes.clear();
        let answer = match request {
            Request::Tls => YES,
            Request::Gss | Request::Cancel => NO,
        };
        client.write_all(&[answer]).await.map_err(|_| NoHello::Gone)?;
        if request == Request::Tls {
            return Ok(Beginning::Hello);
        }
    }
    Err(NoHello::Rejected { rejection: Rejection::PostgresWithoutTls, tls_version: 0 })
}

/// Asks a backend for TLS, behind the PROXY header if there is one, so that the ClientHello may follow: it is all that is
/// left of `preread`.
async fn agree(backend: &mut TcpStream, preread: &mut Preread, limit: Duration) -> io::Result<()> {
    let hello = preread.bytes.split_off(std::mem::take(&mut preread.uncounted));
    let header = std::mem::replace(&mut preread.bytes, hello);
    let talk = async {
        backend.write_all(&[&header[..], &SSL_REQUEST].concat()).await?;
        match backend.read_u8().await? {
            YES => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it takes no TLS: see `ssl` in postgresql.conf",
            )),
        }
    };
    timeout(limit, talk).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
