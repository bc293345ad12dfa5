//! The programs loaded for one test, and the way of a packet through them.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{HashMap, MapData, PerCpuArray, RingBuf},
    programs::SchedClassifier,
};
use edge_common::flow::{CHANGES_FAMILY, DOWN, Flow, FlowEvent, FlowKey, FlowReason, Pending, Tuple, UP};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The loopback device, in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// The verdicts of tc (`linux/pkt_cls.h`). Packets of no flow are left to the next program: `TC_ACT_UNSPEC`.
pub(crate) const PASSED: u32 = u32::MAX;
pub(crate) const DROPPED: u32 = 2;
pub(crate) const REDIRECTED: u32 = 7;

/// A packet as seen from outside.
#[derive(Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) device: u32,
    pub(crate) segment_size: u32,
}

impl Default for Arrival {
    fn default() -> Self {
        Self { device: LOOPBACK, segment_size: 0 }
    }
}

pub(crate) struct Lab {
    ebpf: Ebpf,
    pub(crate) flows: HashMap<MapData, FlowKey, Flow>,
    pub(crate) pending: HashMap<MapData, u64, Pending>,
    reasons: PerCpuArray<MapData, u64>,
    events: RingBuf<MapData>,
}

impl Lab {
    /// `None`, said aloud, where the kernel lets this user load no programs.
    pub(crate) fn new() -> Option<Self> {
        let object = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("bpf/flow.bpf.o");
        let bytes = std::fs::read(object).unwrap();
        // A map of the production size would take 8 MiB for every test.
        let loaded = EbpfLoader::new().map_max_entries("FLOWS", 64).load(&bytes);
        let mut ebpf = match loaded {
            Ok(ebpf) => ebpf,
            Err(error) if !rustix::process::geteuid().is_root() => {
                eprintln!("skipped: BPF needs privileges: {error}");
                return None;
            }
            Err(error) => panic!("{error:?}"),
        };
        for name in ["ingress_l2", "egress_l2", "ingress_l3", "egress_l3"] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("{name}: {error:?}"));
        }
        let flows = ebpf.take_map("FLOWS").unwrap().try_into().unwrap();
        let pending = ebpf.take_map("FLOWS_PENDING").unwrap().try_into().unwrap();
        let reasons = ebpf.take_map("FLOW_REASONS").unwrap().try_into().unwrap();
        let events = ebpf.take_map("FLOW_EVENTS").unwrap().try_into().unwrap();
        Some(Self { ebpf, flows, pending, reasons, events })
    }

    pub(crate) fn program(&self, name: &str) -> &SchedClassifier {
        self.ebpf.program(name).unwrap().try_into().unwrap()
    }

    /// Sends a frame through `ingress_l2`.
    pub(crate) fn ingress(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        self.ingress_from(frame, Arrival::default())
    }

    pub(crate) fn ingress_from(&self, frame: &[u8], arrival: Arrival) -> (u32, Vec<u8>) {
        self.through("ingress_l2", frame, arrival)
    }

    /// Sends a frame that starts here through `egress_l2`.
    pub(crate) fn egress(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        self.through("egress_l2", frame, Arrival { device: 0, segment_size: 0 })
    }

    /// Sends a frame through a program.
    pub(crate) fn through(&self, program: &str, frame: &[u8], arrival: Arrival) -> (u32, Vec<u8>) {
        // `struct __sk_buff`: `ingress_ifindex` is its tenth word, `gso_size` its 45th.
        let mut context = [0_u8; 192];
        context[36..40].copy_from_slice(&arrival.device.to_ne_bytes());
        context[176..180].copy_from_slice(&arrival.segment_size.to_ne_bytes());
        let mut out = vec![0; 4096];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        let result = self.program(program).test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    pub(crate) fn count(&self, reason: FlowReason) -> u64 {
        self.reasons.get(&(reason as u32), 0).unwrap().iter().sum()
    }

    pub(crate) fn events(&mut self) -> Vec<FlowEvent> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            let word = |at: usize| u64::from_ne_bytes(item[at..at + 8].try_into().unwrap());
            let half = |at: usize| u32::from_ne_bytes(item[at..at + 4].try_into().unwrap());
            let (id, bytes, peer_bytes) = (word(0), word(8), word(16));
            let (kind, direction, resets) = (half(120), half(124), half(132));
            events.push(FlowEvent { id, bytes, peer_bytes, kind, direction, resets, ..FlowEvent::default() });
        }
        events
    }

    pub(crate) fn install(&mut self, pair: &Pair) {
        self.flows.insert(pair.up_key(), pair.up, 0).unwrap();
        self.flows.insert(pair.down_key(), pair.down, 0).unwrap();
    }

    pub(crate) fn up(&self, pair: &Pair) -> Flow {
        self.flows.get(&pair.up_key(), 0).unwrap()
    }

    pub(crate) fn down(&self, pair: &Pair) -> Flow {
        self.flows.get(&pair.down_key(), 0).unwrap()
    }
}

/// Both legs of a flow and both its entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) client: SocketAddr,
    /// The edge as the client knows it, and as the backend does.
    pub(crate) front: SocketAddr,
    pub(crate) back: SocketAddr,
    pub(crate) backend: SocketAddr,
    pub(crate) up: Flow,
    pub(crate) down: Flow,
}

/// Numbers that both sides of a fixture start from; chosen to overflow soon.
pub(crate) const CLIENT_SEQ: u32 = 0xffff_fe00;
pub(crate) const BACKEND_SEQ: u32 = 0x7fff_ff80;
pub(crate) const WINDOW: u32 = 65_000;

impl Pair {
    /// `families`: whether the client's and the backend's leg are IPv6.
    pub(crate) fn new(client_v6: bool, backend_v6: bool) -> Self {
        let address = |v6: bool, last: u8, port: u16| -> SocketAddr {
            if v6 {
                format!("[2001:db8:f0{last}1:ffff::{last}:8001]:{port}").parse().unwrap()
            } else {
                format!("198.51.{last}.{}:{port}", 250 - last).parse().unwrap()
            }
        };
        let (client, front) = (address(client_v6, 1, 50_001), address(client_v6, 2, 443));
        Self::of([client, front, address(backend_v6, 3, 20_007), address(backend_v6, 4, 8443)])
    }

    /// Between `[client, front, back, backend]`.
    pub(crate) fn of([client, front, back, backend]: [SocketAddr; 4]) -> Self {
        let (seq_delta, ack_delta) = (0x9000_1234_u32, 0x2222_fff1_u32);
        let (tsval_delta, tsecr_delta) = (0x8000_1234_u32, 0xffff_ff01_u32);
        let common = Flow {
            ingress: LOOPBACK,
            egress: LOOPBACK,
            shape: if client.is_ipv6() == backend.is_ipv6() { 0 } else { CHANGES_FAMILY },
            id: 77,
            window: WINDOW,
            ..Flow::default()
        };
        // The acknowledgement deltas are in the sender's numbers: what the client acknowledges is what the
        // backend sent, moved.
        let client_acks = BACKEND_SEQ.wrapping_sub(ack_delta);
        let backend_acks = CLIENT_SEQ.wrapping_add(seq_delta);
        let up = Flow {
            to: Tuple::new(back, backend),
            seq_delta,
            ack_delta,
            tsval_delta,
            tsecr_delta,
            scales: Flow::with_scales(7, 3),
            direction: UP,
            start: CLIENT_SEQ,
            acked: client_acks,
            floor: CLIENT_SEQ,
            ceiling: CLIENT_SEQ.wrapping_add(WINDOW),
            ack_ceiling: client_acks,
            ..common
        };
        let down = Flow {
            to: Tuple::new(front, client),
            seq_delta: ack_delta.wrapping_neg(),
            ack_delta: seq_delta.wrapping_neg(),
            tsval_delta: tsecr_delta.wrapping_neg(),
            tsecr_delta: tsval_delta.wrapping_neg(),
            scales: Flow::with_scales(2, 8),
            direction: DOWN,
            start: BACKEND_SEQ,
            acked: backend_acks,
            floor: BACKEND_SEQ,
            ceiling: BACKEND_SEQ.wrapping_add(WINDOW),
            ack_ceiling: backend_acks,
            ..common
        };
        Self { client, front, back, backend, up, down }
    }

    pub(crate) fn up_key(&self) -> FlowKey {
        FlowKey::new(self.client, self.front)
    }

    pub(crate) fn down_key(&self) -> FlowKey {
        FlowKey::new(self.backend, self.back)
    }
}

/// A network namespace that this thread is in, removed when dropped.
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn enter(name: &str) -> Self {
        let name = format!("flow-fixtures-{name}-{}", std::process::id());
        let namespace = Self(name);
        ip(&["netns", "add", &namespace.0]);
        let file = std::fs::File::open(format!("/run/netns/{}", namespace.0)).unwrap();
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
        namespace
    }

    /// A device with an MTU; its index.
    pub(crate) fn device(&self, name: &str, mtu: u32) -> u32 {
        let (mtu, peer) = (mtu.to_string(), format!("{name}-peer"));
        ip(&["-n", &self.0, "link", "add", name, "mtu", &mtu, "type", "veth", "peer", "name", &peer]);
        let index = Command::new("ip")
            .args(["netns", "exec", &self.0, "cat"])
            .arg(format!("/sys/class/net/{name}/ifindex"))
            .output()
            .unwrap();
        String::from_utf8(index.stdout).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().unwrap();
    assert!(status.success(), "ip {arguments:?}");
}
