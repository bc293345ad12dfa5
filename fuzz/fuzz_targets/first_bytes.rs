//! Telling protocols apart by the first bytes: no panic, an answer once given stands, no two protocols claim the same
//! bytes, and the readers that follow take what was told.
#![no_main]

use edge::{
    sniff::{Rejection, Sniff, http::MAX_OPENING, postgres, client_protocol},
    spec::ClientProtocol,
};
use libfuzzer_sys::fuzz_target;

const ALL: [ClientProtocol; 5] = [ClientProtocol::Tls, ClientProtocol::Http, ClientProtocol::Ssh, ClientProtocol::Openvpn, ClientProtocol::Postgres];
/// Every answer is there by then: empty lines, the longest method and the longest scheme.
const DECIDED: usize = MAX_OPENING + 1;

fuzz_target!(|bytes: &[u8]| {
    let whole = client_protocol(bytes, &ALL);
    if bytes.len() >= DECIDED {
        assert_ne!(whole, Sniff::Incomplete);
    }
    for end in 0..bytes.len().min(DECIDED) {
        match client_protocol(&bytes[..end], &ALL) {
            Sniff::Incomplete => {}
            answer => assert_eq!(answer, whole),
        }
    }
    let claims: Vec<_> =
        ALL.into_iter().filter(|one| client_protocol(bytes, &[*one]) == Sniff::Complete(*one)).collect();
    match &whole {
        Sniff::Complete(protocol) => assert_eq!(claims, [*protocol]),
        _ => assert!(claims.is_empty()),
    }
    if whole == Sniff::Complete(ClientProtocol::Postgres) {
        match postgres::request(bytes) {
            Sniff::Complete(postgres::Request::Cancel) => assert!(bytes.len() > postgres::SSL_REQUEST.len()),
            Sniff::Complete(_) => assert_eq!(bytes.len(), postgres::SSL_REQUEST.len()),
            // A CancelRequest, which is told by its code.
            Sniff::Incomplete => assert!(bytes.len() >= 8),
            Sniff::Rejected(rejection) => {
                assert!(matches!(rejection, Rejection::PostgresWithoutTls | Rejection::Malformed(_)));
            }
        }
    }
});
