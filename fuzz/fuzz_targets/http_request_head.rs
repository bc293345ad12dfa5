//! The request head reader: no panic, and one answer whatever the pieces. A redirect is one line.
//!
//! The last byte of the input also sets the limit and the size of the pieces, so that a recording is a seed as it is.
#![no_main]

use edge::sniff::{
    Rejection, Sniff,
    http::{RequestHeadReader, request_head, to_https},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let shape = bytes.last().copied().unwrap_or_default();
    let max = [32, 256, 4096, 16384][usize::from(shape >> 6)];
    let step = 1 + usize::from(shape & 0x3f);

    let whole = request_head(bytes, max);
    match &whole {
        Sniff::Complete(head) => {
            assert!(head.head_len <= max && head.head_len <= bytes.len());
            assert!(bytes[..head.head_len].ends_with(b"\n"));
            assert_eq!(request_head(&bytes[..head.head_len], max), whole);
            assert_eq!(request_head(&bytes[..head.head_len - 1], max), Sniff::Incomplete);
            if let Ok(Some(location)) = to_https(bytes) {
                // No byte of the request ends the line of the answer.
                assert!(location.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
        Sniff::Incomplete => assert!(bytes.len() < max),
        Sniff::Rejected(rejection) => {
            // An HTTP client gets a reason.
            let is_other = matches!(rejection, Rejection::TlsOnHttp | Rejection::UnknownProtocol);
            assert!(rejection.http_answer().is_some() != is_other);
        }
    }

    let mut reader = RequestHeadReader::new(max);
    let mut end = 0;
    let in_pieces = loop {
        match reader.read(&bytes[..end]) {
            Sniff::Incomplete if end < bytes.len() => end = bytes.len().min(end + step),
            answer => break answer,
        }
    };
    assert_eq!(in_pieces, whole);
});
