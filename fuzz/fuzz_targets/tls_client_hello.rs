//! The ClientHello reader: no panic, and one answer whatever the pieces.
//!
//! The last byte of the input also sets the limit and the size of the pieces, so that a recording is a seed as it is.
#![no_main]

use edge::sniff::{
    Sniff,
    tls::{ClientHelloReader, client_hello},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|wire: &[u8]| {
    let shape = wire.last().copied().unwrap_or_default();
    let max = [64, 512, 16384, 65536][usize::from(shape >> 6)];
    let step = 1 + usize::from(shape & 0x3f);

    let whole = client_hello(wire, max);
    match &whole {
        Sniff::Complete(hello) => {
            assert!(hello.wire_len <= wire.len() && hello.wire_len <= ClientHelloReader::max_wire(max));
            // Bytes behind the last record do not matter, and without the last byte nothing is decided.
            assert_eq!(client_hello(&wire[..hello.wire_len], max), whole);
            assert_eq!(client_hello(&wire[..hello.wire_len - 1], max), Sniff::Incomplete);
        }
        Sniff::Incomplete => assert!(wire.len() <= ClientHelloReader::max_wire(max)),
        Sniff::Rejected(_) => {}
    }

    let mut reader = ClientHelloReader::new(max);
    let mut end = 0;
    let in_pieces = loop {
        match reader.read(&wire[..end]) {
            Sniff::Incomplete if end < wire.len() => end = wire.len().min(end + step),
            answer => break answer,
        }
    };
    assert_eq!(in_pieces, whole);
});
