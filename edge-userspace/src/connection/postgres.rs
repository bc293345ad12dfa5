//! PostgreSQL begins in clear text: client and server agree on TLS before the ClientHello that names the
//! server. The edge agrees on both sides, and carries data from the ClientHello on.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    hello::{NoHello, read_until},
    received::Received,
};
use crate::sniff::{
    Rejection,
    postgres::{NO, Request, SSL_REQUEST, YES, request},
};

/// The protocol that clients offer by ALPN when they begin with TLS (`sslnegotiation=direct`).
pub(super) const ALPN: &[u8] = b"postgresql";

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

/// Asks a backend for TLS, behind our own header if there is one. A ClientHello may follow then.
pub(super) async fn agree(backend: &mut TcpStream, header: &[u8], limit: Duration) -> io::Result<()> {
    let talk = async {
        backend.write_all(&[header, &SSL_REQUEST].concat()).await?;
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
