//! The reader of a backend's first bytes: no panic, and an answer once given stands.
#![no_main]

use edge::pool::check::probe::{Answer, answer};
use libfuzzer_sys::fuzz_target;

/// Every answer is there by then: an alert in its record.
const DECIDED: usize = 7;

fuzz_target!(|received: &[u8]| {
    let whole = answer(received);
    assert!(received.len() < DECIDED || whole != Answer::Incomplete);
    for end in 0..received.len().min(DECIDED) {
        match answer(&received[..end]) {
            Answer::Incomplete => {}
            earlier => assert_eq!(earlier, whole),
        }
    }
});
