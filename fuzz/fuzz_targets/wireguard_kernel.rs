//! The reader of kernel WireGuard's answer by netlink: no panic, and peers that come in several parts are one.
//!
//! The first byte cuts the rest into two messages, as a long answer comes.
#![no_main]

use edge::tunnel::fuzzing::kernel_peers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((cut, attributes)) = bytes.split_first() else { return };
    let cut = attributes.len() * usize::from(*cut) / 256;
    let (first, second) = attributes.split_at(cut);
    for peers in [kernel_peers(&[attributes]), kernel_peers(&[first, second])] {
        assert!(peers.windows(2).all(|pair| pair[0].key != pair[1].key));
        for net in peers.iter().flat_map(|peer| &peer.allowed) {
            assert!(net.prefix_len() <= net.max_prefix_len());
        }
    }
});
