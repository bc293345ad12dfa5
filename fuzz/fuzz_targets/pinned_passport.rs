//! The text of a label in a pinned map, which another version may have written: no panic, and what is written of it
//! fits a label and reads the same.
#![no_main]

use edge::connection::Passport;
use edge_common::flow::LABEL_BYTES;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let passport = Passport::read(&String::from_utf8_lossy(bytes));
    let text = passport.text();
    assert!(text.len() <= LABEL_BYTES);
    // Fields that did not fit were left out; the rest is a fixed point.
    let again = Passport::read(&text);
    assert_eq!(again.text(), text);
    assert_eq!(
        (again.destination, again.backend, again.run),
        (passport.destination, passport.backend, passport.run)
    );
    assert_eq!(passport.common_text().is_none(), passport.client.is_some());
    let _ = again.alpn();
});
