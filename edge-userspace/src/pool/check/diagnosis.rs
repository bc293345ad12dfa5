//! Further questions of `doctor` to a backend: do large packets arrive, and which certificate does it show?

use super::{
    CheckError, Plan,
    certificate::{self, Certificate, Shown},
    converse, probe,
};
use crate::{pool::Backend, spec::Ask};

/// Whether large packets are lost on the path: a ClientHello of post-quantum size is answered if both sides
/// use small segments, and not if they use the full MTU. That is an MTU black hole; a lower MTU of the tunnel
/// fixes it. An error means that the first attempt already failed.
pub async fn is_black_hole(backend: &Backend, plan: &Plan) -> Result<bool, CheckError> {
    /// The size of browsers' hellos since 2025 (ML-KEM-768 makes it 1.7 to 2.4 kB): two full packets on any
    /// tunnel.
    const LARGE: usize = 2400;
    /// The MSS that every line carries (RFC 9293 §3.7.1).
    const SMALL_SEGMENTS: u16 = 536;
    let ask = async |segments| {
        let hello = |_: &_| probe::client_hello(plan.server_name.as_ref(), LARGE);
        converse(backend, plan, Ask::Tls, segments, hello, |received| Ask::Tls.understand(received)).await
    };
    ask(Some(SMALL_SEGMENTS)).await?;
    Ok(matches!(ask(None).await, Err(CheckError::Silent(..))))
}

/// Asks a backend for its certificate, which it shows if it speaks TLS 1.2.
pub async fn certificate(backend: &Backend, plan: &Plan) -> Result<Certificate, CheckError> {
    let hello = |_: &_| probe::client_hello_tls12(plan.server_name.as_ref());
    let found =
        converse(backend, plan, Ask::Tls, None, hello, |received| match certificate::shown(received) {
            Shown::Incomplete if received.len() < certificate::MAX_FLIGHT => None,
            Shown::Certificate(certificate) => Some(Ok(certificate)),
            Shown::Alert(alert) => Some(Err(CheckError::NoCertificate(alert))),
            Shown::Incomplete | Shown::Nothing => Some(Err(CheckError::Foreign(Ask::Tls))),
        });
    Ok(found.await?.1)
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        kernel::tcp,
        pool::check::{
            check,
            tests::{backend, plan},
        },
        spec::{HealthKind, ProxyProtocol},
    };

    /// A TLS server of versions as given, for one client.
    async fn tls_server(versions: &[&'static rustls::SupportedProtocolVersion]) -> SocketAddr {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
        let certificate = CertificateDer::from(certificate::tests::DER);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(&include_bytes!("testdata/key.der")[..]));
        let config = rustls::ServerConfig::builder_with_protocol_versions(versions)
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let listener = listener.into_std().unwrap();
            listener.set_nonblocking(false).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nonblocking(false).unwrap();
            let mut tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
            // Ends in an error, whatever is asked: nobody finishes the handshake.
            while tls.complete_io(&mut stream).is_ok() {}
        });
        address
    }

    #[tokio::test]
    async fn a_real_server_answers_and_shows_its_certificate() {
        use rustls::version::{TLS12, TLS13};
        let plan = Plan { proxy_protocol: ProxyProtocol::Off, ..plan(HealthKind::Tls) };
        for versions in [&[&TLS12][..], &[&TLS13], &[&TLS12, &TLS13]] {
            check(&backend(tls_server(versions).await), &plan).await.unwrap();
        }
        let found = certificate(&backend(tls_server(&[&TLS12, &TLS13]).await), &plan).await.unwrap();
        assert_eq!(found.names[0], "cloud.example.com");
        let error = certificate(&backend(tls_server(&[&TLS13]).await), &plan).await.unwrap_err();
        assert!(matches!(error, CheckError::NoCertificate(70)), "{error}");
    }

    #[tokio::test]
    async fn a_black_hole_is_recognised() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = backend(listener.local_addr().unwrap());
        let plan = Plan { proxy_protocol: ProxyProtocol::Off, ..plan(HealthKind::Tcp) };
        // With `lossy`, large segments and their data are lost.
        let home = async |lossy: bool| {
            let mut held = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut hello = vec![0; 5];
                stream.read_exact(&mut hello).await.unwrap();
                hello.resize(usize::from(u16::from_be_bytes([hello[3], hello[4]])), 0);
                stream.read_exact(&mut hello).await.unwrap();
                if !lossy || tcp::info(&stream).unwrap().send_mss <= 536 {
                    stream.write_all(&[22, 3, 3, 0, 90, 2]).await.unwrap();
                }
                held.push(stream);
            }
        };
        for lossy in [true, false] {
            tokio::select! {
                found = is_black_hole(&backend, &plan) => assert_eq!(found.unwrap(), lossy),
                () = home(lossy) => {}
            }
        }
    }
}
