//! Complete TLS 1.3 handshakes, end to end through the edge; never resumed, so that each costs the same.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
};

use anyhow::{Context, Result};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, Stream,
    client::Resumption,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::TLS13,
};

pub(crate) fn server(certificate: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

pub(crate) fn client(authority: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        roots.add(certificate?).context("an authority that cannot be trusted")?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The service's side: one octet over TLS, then the end.
pub(crate) fn answer(mut stream: TcpStream, config: &Arc<ServerConfig>) -> io::Result<()> {
    let mut tls = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
    Stream::new(&mut tls, &mut stream).write_all(&[1])?;
    tls.send_close_notify();
    tls.complete_io(&mut stream).map(drop)
}

/// The client's side: shakes hands and reads the octet.
pub(crate) fn greet(
    mut stream: TcpStream,
    config: &Arc<ClientConfig>,
    name: &ServerName<'static>,
) -> io::Result<()> {
    let mut tls = ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
    Stream::new(&mut tls, &mut stream).read_exact(&mut [0])
}
