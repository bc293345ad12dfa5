//! Reading what a client asks for, before anything is sent anywhere.

use tokio::{net::TcpStream, time::timeout};

use super::{ListenerState, account::ClientRequest, received::Received};
use crate::{
    sniff::{
        Rejection, Sniff, client_protocol,
        http::RequestHeadReader,
        proxy_header::{ProxyHeader, proxy_header},
        tls::{ClientHelloReader, alert},
    },
    spec::{AlpnList, ClientProtocol},
};

/// The hello, and every byte read so far: they go to the backend unchanged.
#[derive(Debug)]
pub(super) struct Hello {
    pub(super) request: ClientRequest,
    /// The whole ALPN list, where `request` has its start only.
    pub(super) whole_alpn: Option<AlpnList>,
    pub(super) received: Received,
    /// The version that an alert to this client carries.
    pub(super) tls_version: u16,
}

/// Why there is no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHello {
    /// The client closed or reset the connection first.
    Gone,
    /// It took too long.
    Late,
    /// There is no memory for more of it.
    NoMemory,
    /// It can become none. `tls_version` is the one that an alert to this client carries.
    Rejected { rejection: Rejection, tls_version: u16 },
}

/// Reads the PROXY header. It stays in `received` until [`Received::behind`] takes it away.
pub(super) async fn read_proxy_header(
    client: &TcpStream,
    received: &mut Received,
) -> Result<ProxyHeader, NoHello> {
    read_until(client, received, proxy_header).await
}

/// The client's protocol: the listener's only one, or the one that the first bytes show. A client that waits
/// for its server is taken for SSH, if the listener allows SSH. `None` on a tcp listener, which reads
/// nothing.
pub(super) async fn read_protocol(
    client: &TcpStream,
    listener: &ListenerState,
    received: &mut Received,
) -> Result<Option<ClientProtocol>, NoHello> {
    let ListenerState { spec, takes_any, .. } = listener;
    if spec.protocols.is_empty() {
        return Ok(spec.protocol.client_protocol());
    }
    if received.bytes.is_empty() && spec.protocols.contains(&ClientProtocol::Ssh) {
        match timeout(spec.silence_timeout, received.read(client)).await {
            Ok(read) => read?,
            Err(_) => return Ok(Some(ClientProtocol::Ssh)),
        }
    }
    match read_until(client, received, |bytes| client_protocol(bytes, &spec.protocols)).await {
        Err(NoHello::Rejected { .. }) if *takes_any => Ok(Some(ClientProtocol::Any)),
        told => told.map(Some),
    }
}

/// Reads until the hello of this protocol is complete: a ClientHello or the head of a request. Other protocols have none.
/// `received` holds what is there already.
pub(super) async fn read(
    client: &TcpStream,
    protocol: Option<ClientProtocol>,
    max_bytes: usize,
    mut received: Received,
) -> Result<Hello, NoHello> {
    let mut request = ClientRequest { protocol, ..ClientRequest::default() };
    let (mut tls_version, mut whole_alpn) = (0, None);
    if protocol.is_some_and(ClientProtocol::offers_alpn) {
        let mut reader = ClientHelloReader::new(max_bytes);
        let hello = read_until(client, &mut received, |bytes| reader.read(bytes)).await?;
        let alpn = match hello.alpn.start() {
            Some(start) => {
                whole_alpn = Some(hello.alpn);
                start
            }
            None => hello.alpn,
        };
        let (host, raw_name) = (hello.server_name, hello.raw_name);
        request = ClientRequest { host, raw_name, alpn, ech: hello.ech, ..request };
        tls_version = hello.legacy_version;
    } else if protocol.is_some_and(ClientProtocol::names_a_host) {
        let mut reader = RequestHeadReader::new(max_bytes);
        request.host = read_until(client, &mut received, |bytes| reader.read(bytes)).await?.host;
    }
    Ok(Hello { request, whole_alpn, received, tls_version })
}

/// Reads until `sniff` has an answer. It bounds what is kept: it rejects what grows too large.
pub(super) async fn read_until<T>(
    client: &TcpStream,
    received: &mut Received,
    mut sniff: impl FnMut(&[u8]) -> Sniff<T>,
) -> Result<T, NoHello> {
    loop {
        if !received.bytes.is_empty() {
            match sniff(&received.bytes) {
                Sniff::Complete(found) => return Ok(found),
                Sniff::Rejected(rejection) => {
                    let tls_version = alert::version_of(&received.bytes);
                    return Err(NoHello::Rejected { rejection, tls_version });
                }
                Sniff::Incomplete => {}
            }
        }
        received.read(client).await?;
    }
}
