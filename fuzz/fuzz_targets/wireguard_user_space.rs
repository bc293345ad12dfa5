//! The reader of a user-space WireGuard's answer: no panic, and nothing is taken from an answer that is cut.
#![no_main]

use edge::tunnel::fuzzing::user_space_peers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &str| {
    let Some(peers) = user_space_peers(answer) else { return };
    // Each peer, address and number takes a line of its own.
    let lines = answer.lines().count();
    assert!(peers.len() < lines);
    assert!(peers.iter().map(|peer| peer.allowed.len()).sum::<usize>() < lines);
    // The answer is over at its error number: what comes before it is none, what follows does not matter.
    let end = answer.find("errno=").unwrap_or(answer.len());
    assert_eq!(user_space_peers(&answer[..end]), None);
    assert_eq!(user_space_peers(&format!("{answer}\nerrno=1\n")), Some(peers));
});
