//! The PROXY header reader: no panic, nothing decided before the last byte, and what we write of it reads the same.
#![no_main]

use edge::{
    proxy_protocol::{Tlvs, V1_MAX, V2_MAX, V2_MAX_SENT, tlv, write},
    sniff::{
        Sniff,
        proxy_header::{ProxyHeader, ProxySource, proxy_header},
    },
    spec::{ProxyProtocol, ProxyTlvs},
};
use libfuzzer_sys::fuzz_target;

fn read(bytes: &[u8]) -> ProxyHeader {
    match proxy_header(bytes) {
        Sniff::Complete(header) => header,
        other => panic!("{other:?}"),
    }
}

fuzz_target!(|bytes: &[u8]| {
    let header = match proxy_header(bytes) {
        Sniff::Complete(header) => header,
        Sniff::Incomplete => {
            assert!(bytes.len() < if bytes.starts_with(b"P") { V1_MAX } else { V2_MAX });
            return;
        }
        // Nothing that follows makes it acceptable.
        Sniff::Rejected(_) => {
            assert!(matches!(proxy_header(&[bytes, b"\r\n\0"].concat()), Sniff::Rejected(_)));
            return;
        }
    };
    assert!(header.len <= V2_MAX && header.len <= bytes.len());
    assert!(tlv::is_whole(&header.tlvs));
    assert_eq!(read(&bytes[..header.len]), header);
    for end in [0, 1, 12, 16, header.len / 2, header.len - 1] {
        if end < header.len {
            assert_eq!(proxy_header(&bytes[..end]), Sniff::Incomplete);
        }
    }

    // Chained edges: what goes out again is read as the same connection, and its TLVs reach a fixed point.
    let out = |received: &[u8]| {
        let tlvs = Tlvs { wanted: ProxyTlvs::ALL, received, ..Tlvs::default() };
        let written = write(ProxyProtocol::V2, header.source, &tlvs).bytes;
        assert!(written.len() <= V2_MAX_SENT);
        read(&written)
    };
    let once = out(&header.tlvs);
    assert_eq!(once.source, header.source);
    assert_eq!(out(&once.tlvs), once);
    if header.source != ProxySource::Local {
        assert_eq!(read(&write(ProxyProtocol::V1, header.source, &Tlvs::default()).bytes).source, header.source);
    }
});
