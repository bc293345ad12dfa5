//! The reader of a server's first flight: no panic, bounds kept, and an answer once given stands.
#![no_main]

use edge::pool::check::certificate::{Shown, shown};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|received: &[u8]| {
    let whole = shown(received);
    // A few places to stop: every one would make a long input quadratic.
    let step = received.len() / 16 + 1;
    for end in (0..received.len()).step_by(step) {
        match shown(&received[..end]) {
            Shown::Incomplete => {}
            answer => assert_eq!(answer, whole),
        }
    }
    if let Shown::Certificate(certificate) = &whole {
        for name in &certificate.names {
            // Names of a certificate are written to terminals and logs.
            assert!(name.bytes().all(|octet| octet.is_ascii() && !octet.is_ascii_control()), "{name:?}");
            assert!(name.starts_with("*.") || certificate.covers(name));
        }
    }
});
