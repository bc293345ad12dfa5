//! PostgreSQL begins in clear text: client and server agree on TLS before the ClientHello that names the
//! server. The edge agrees on both sides, and carries data from the ClientHello on.

mod cancel;
mod sessions;

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

pub(super) use self::cancel::pass_on;
pub use self::sessions::Sessions;
use super::{
    hello::{NoHello, read_until},
    received::Received,
};
use crate::{
    datapath::Preread,
    sniff::{
        Rejection,
        postgres::{NO, Request, SSL_REQUEST, YES, request},
    },
    spec::{AlpnList, Spoken},
};

/// The protocol that clients offer by ALPN when they begin with TLS (`sslnegotiation=direct`).
const ALPN: &[u8] = b"postgresql";

/// How a client goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    /// It sends a ClientHello.
    Hello,
    /// It has sent a `CancelRequest`, which is what has been received.
    Cancel,
}

/// Tells a client that requests TLS to go ahead. One that requests GSSAPI first gets a no, and may try TLS
/// next.
pub(super) async fn welcome(client: &mut TcpStream, received: &mut Received) -> Result<Beginning, NoHello> {
    for _ in 0..2 {
        let asked = read_until(client, received, request).await?;
        if asked == Request::Cancel {
            return Ok(Beginning::Cancel);
        }
        received.bytes.clear();
        let answer = match asked {
            Request::Tls => YES,
            Request::Gss | Request::Cancel => NO,
        };
        client.write_all(&[answer]).await.map_err(|_| NoHello::Gone)?;
        if asked == Request::Tls {
            return Ok(Beginning::Hello);
        }
    }
    Err(NoHello::Rejected { rejection: Rejection::PostgresWithoutTls, tls_version: 0 })
}

/// Whether a session of PostgreSQL begins, so that a `CancelRequest` may follow.
pub(super) fn begins(protocol: Option<Spoken>, alpn: &AlpnList) -> bool {
    protocol == Some(Spoken::Postgres) || alpn.iter().any(|name| name == ALPN)
}

/// Asks a backend for TLS, behind the PROXY header if there is one, so that the ClientHello may follow: it is all that is
/// left of `preread`. Nothing is to be agreed on with backends of other protocols.
pub(super) async fn agree(
    protocol: Option<Spoken>,
    backend: &mut TcpStream,
    preread: &mut Preread,
    limit: Duration,
) -> io::Result<()> {
    if protocol != Some(Spoken::Postgres) {
        return Ok(());
    }
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
