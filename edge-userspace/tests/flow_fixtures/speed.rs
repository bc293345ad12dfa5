//! How long a packet takes: a measurement, not a test.
//! `cargo test --test flow_fixtures -- --ignored --nocapture speed`

use aya::{TestRun as _, TestRunOptions};
use edge_common::flow::Tuple;

use crate::{
    lab::{LOOPBACK, Lab, PASSED, Pair, REDIRECTED},
    packet::{Choice, Packet},
};

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn speed() {
    let Some(mut lab) = Lab::new() else { return };
    let stamps = [Choice::Nop, Choice::Nop, Choice::Timestamps(1, 2)];
    let sack = |blocks| [Choice::Nop, Choice::Nop, Choice::Sack(vec![(1, 2); blocks])];
    let options = [
        ("no options", vec![]),
        ("timestamps", stamps.to_vec()),
        ("timestamps and 1 SACK block", [stamps.to_vec(), sack(1).to_vec()].concat()),
        ("timestamps and 3 SACK blocks", [stamps.to_vec(), sack(3).to_vec()].concat()),
    ];
    for v6 in [false, true] {
        // Rewritten into itself, so that every repetition finds the same packet.
        let mut pair = Pair::new(v6, v6);
        pair.up.to = Tuple::new(pair.client, pair.front);
        (pair.up.seq_delta, pair.up.ack_delta) = (0, 0);
        lab.install(&pair);
        for (name, options) in &options {
            let mut packet = Packet::new(pair.client, pair.front);
            (packet.seq, packet.ack, packet.hop_limit) = (pair.up.sent(), pair.up.acked, 255);
            (packet.options, packet.data) = (options.clone(), vec![0; 1200]);
            measure(&lab, &packet.frame(), REDIRECTED, &format!("IPv{} {name}", if v6 { 6 } else { 4 }));
        }
        let stranger = Packet::new(pair.front, pair.client);
        measure(&lab, &stranger.frame(), PASSED, &format!("IPv{} no flow", if v6 { 6 } else { 4 }));
    }
}

#[expect(clippy::print_stdout, reason = "what it is for")]
fn measure(lab: &Lab, frame: &[u8], verdict: u32, name: &str) {
    // A hop limit of 255 lasts 250 repetitions.
    let mut nanoseconds: Vec<u128> = (0..2000)
        .map(|_| {
            let mut context = [0_u8; 192];
            context[36..40].copy_from_slice(&LOOPBACK.to_ne_bytes());
            let mut options = TestRunOptions::new();
            (options.data_in, options.ctx_in, options.repeat) = (Some(frame), Some(&context[..]), 250);
            let result = lab.program("ingress_l2").test_run(options).unwrap();
            assert_eq!(result.return_value, verdict);
            result.duration.as_nanos()
        })
        .collect();
    nanoseconds.sort_unstable();
    println!("{name}: {} ns (median), {} ns (least)", nanoseconds[1000], nanoseconds[0]);
}
