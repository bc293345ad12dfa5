//! Very many flows: what they take in the kernel, and how long a daemon needs to know them. A measurement, not a test:
//! `cargo test --release --test flow_scale -- --ignored --nocapture`
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the measurement")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Instant,
};

use edge::kernel::{FlowPair, FlowProgram, Kernel, Wanted, uninstall};
use edge_common::flow::{DOWN, Flow, FlowKey, Tuple, UP};

const FLOWS: u32 = 200_000;
const PINS: &str = "/sys/fs/bpf/edge-flow-scale";

fn program() -> FlowProgram {
    let wanted = Wanted { pins: PINS.into(), shield: false, ..Wanted::default() };
    let kernel = Kernel::open(&wanted);
    kernel.flow.unwrap_or_else(|| panic!("{:?}", kernel.findings))
}

/// Memory that is not in use, in bytes.
fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn pair(number: u32, label: u32) -> FlowPair {
    let client = SocketAddr::from((Ipv4Addr::from_bits(0x0a00_0000 + number), 50_000));
    let port = u16::try_from(10_240 + number % 20_000).unwrap();
    let backend = SocketAddr::from((Ipv4Addr::from_bits(0xc0a8_0000 + number / 20_000), 443));
    let (front, back) = (SocketAddr::from(([192, 0, 2, 1], 443)), SocketAddr::from(([192, 0, 2, 1], port)));
    let common = Flow { id: u64::from(number), label, ingress: 1, egress: 1, ..Flow::default() };
    FlowPair {
        up_key: FlowKey::new(client, front),
        up: Flow { to: Tuple::new(back, backend), direction: UP, ..common },
        down: Flow { to: Tuple::new(front, client), direction: DOWN, ..common },
    }
}

#[test]
#[ignore = "a measurement"]
fn two_hundred_thousand_flows() {
    uninstall(Path::new(PINS)).unwrap();
    let mut first = program();
    let mut table = first.table().unwrap();
    let label = table.label("{\"l\":\"https\"}").unwrap();
    let (before, own) = (available(), resident());
    let started = Instant::now();
    for number in 0..FLOWS {
        table.install(&pair(number, label)).unwrap();
    }
    let took = started.elapsed();
    let grown = before.saturating_sub(available()).saturating_sub(resident().saturating_sub(own));
    println!(
        "{FLOWS} flows installed in {took:?}; {} bytes of memory each; this process grew by {} KiB",
        grown / u64::from(FLOWS),
        resident().saturating_sub(own) >> 10
    );
    drop((table, first));
    let started = Instant::now();
    let mut second = program();
    let table = second.table().unwrap();
    let loaded = started.elapsed();
    let mut entries = 0;
    let started = Instant::now();
    table.walk().unwrap().each_entry(|_, flow| entries += u32::from(flow.label == label)).unwrap();
    println!("taken over in {loaded:?}, {entries} entries looked over in {:?}", started.elapsed());
    assert_eq!(entries, 2 * FLOWS);
    drop((table, second));
    uninstall(Path::new(PINS)).unwrap();
}
