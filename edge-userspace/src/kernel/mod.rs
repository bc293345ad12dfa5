//! The kernel's side of the edge: what it can do, BPF programs loaded and pinned, maps as typed handles, and
//! every system call that needs `unsafe`.
//!
//! Everything above is safe Rust and knows none of this; nothing here knows routes, connections or TOML. A
//! refusal by the kernel disables one part and becomes a [`Finding`] with a remedy, never an exit: the socket
//! tiers need nothing from here.

pub mod admin;
mod arrival;
mod batch;
pub mod capability;
mod cgroup;
mod clock;
mod conntrack;
mod error;
mod finding;
mod flow;
mod flow_events;
mod flow_table;
mod flow_walk;
mod inherit;
mod interface;
pub mod keeper;
mod link_device;
mod load;
mod memory;
mod netlink;
mod netlink_message;
mod object;
mod older;
mod pin;
mod pin_lock;
mod pin_name;
pub mod probe;
mod revive;
mod route_lookup;
pub mod sandbox;
pub mod segment;
mod shield;
mod sock_diag;
mod sockmap;
pub mod tcp;
mod trace;
mod tracker;
mod xfrm;

use std::path::PathBuf;

pub use arrival::arrival_device;
pub use clock::{boot_time, monotonic};
pub use conntrack::{Conntrack, Ends, Fill};
pub use error::KernelError;
pub use finding::{Finding, State};
pub use flow::{FlowProgram, remove_filters};
pub use flow_events::FlowEvents;
pub use flow_table::{FlowPair, FlowReasons, FlowTable, InstallError};
pub use flow_walk::FlowWalk;
pub use inherit::inherited_listeners;
pub use interface::{Framing, Interface, interfaces};
pub use memory::give_back_memory;
pub use object::Objects;
pub use older::{OlderFlows, UnreadFlows};
pub use pin::{DEFAULT_PINS, uninstall};
pub use pin_lock::{PinLock, PinsBusy, lock_pins};
pub use revive::{Standing, ask_peer, reset_peer};
pub use route_lookup::{Hop, RouteLookup, RouteQuestion};
pub use shield::{Hook, Prefix, ShieldProgram};
pub use sock_diag::connected_to;
pub use sockmap::{DEFAULT_CREDIT, Joined, JoinedSocket, NotJoined, Progress, Sockmap};
pub use trace::{TraceLine, Traced, Tracer};
pub use tracker::Tracker;
pub use xfrm::{IpsecPolicies, IpsecSource, Policies};

/// The parts that the daemon wants from the kernel.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the BPF objects come from.
    pub objects: Objects,
    /// The directory of all pins, on a BPF filesystem; [`DEFAULT_PINS`] unless several daemons share a machine.
    pub pins: PathBuf,
    /// Whether blocks and limits are wanted.
    pub shield: bool,
    /// Whether connections are to be handed to the flow tier.
    pub flow: bool,
    /// Whether the programs are to report what they do with packets.
    pub trace: bool,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            objects: Objects::embedded(),
            pins: DEFAULT_PINS.into(),
            shield: true,
            flow: true,
            trace: false,
        }
    }
}

/// The parts that the kernel granted.
#[derive(Debug, Default)]
pub struct Kernel {
    /// The program of the shield, loaded, and attached where an earlier daemon left it attached.
    pub shield: Option<ShieldProgram>,
    /// Sources of the parts that are loaded later, such as [`Sockmap`] when the first route needs it.
    pub objects: Objects,
    /// The programs of the flow tier, loaded and not attached.
    pub flow: Option<FlowProgram>,
    /// Flows that programs of older layouts carry.
    pub older: Vec<OlderFlows>,
    /// Flows that programs of layouts unknown to this version carry.
    pub unread: Vec<UnreadFlows>,
    /// The reports of the tracing objects, where they were wanted.
    pub tracer: Option<Tracer>,
    /// The wanted parts that are missing, and why.
    pub findings: Vec<Finding>,
}

impl Kernel {
    /// Loads the wanted parts and adopts those that an earlier daemon left under the same pins.
    ///
    /// Must be called with all capabilities and before threads are started, so that [`capability::keep_only`]
    /// later drops capabilities in all threads.
    pub fn open(wanted: &Wanted) -> Self {
        let mut kernel = Self { objects: wanted.objects.clone(), ..Self::default() };
        kernel.tracer = wanted.trace.then(Tracer::default);
        if wanted.shield {
            let shield = kernel.open_part(wanted, "shield", Self::open_shield);
            kernel.shield = kernel.or_find(
                shield,
                "shield",
                "blocked sources are refused at accept alone, and syn_rate has no effect",
            );
        }
        if wanted.flow {
            kernel.find_others(wanted);
            let flow = kernel.open_part(wanted, "flow tier", Self::open_flow);
            kernel.flow = kernel.or_find(flow, "flow tier", "connections stay on their sockets");
            if kernel.flow.is_none() {
                // Nobody is there to list them.
                let older = std::mem::take(&mut kernel.older);
                kernel.unread.extend(older.into_iter().map(UnreadFlows::from));
            }
        }
        kernel
    }

    /// Finds the layouts that daemons of other versions left. They continue beside this version's own.
    fn find_others(&mut self, wanted: &Wanted) {
        // Where pins are not to be had, the parts that need them say so.
        let Ok(others) = pin::Pins::open(&wanted.pins).and_then(|pins| pins.others()) else { return };
        (self.older, self.unread) = older::find(&others);
        for UnreadFlows { layout, .. } in &self.unread {
            let directory = wanted.pins.join(layout);
            let message = format!(
                "{} was left by a version of edged whose layout this one cannot read: its flows go on, but cannot be \
                 listed or closed",
                directory.display()
            );
            let finding = Finding::new("flows of another version", State::Limited, message);
            self.findings.push(finding.remedy("`edged --uninstall` ends them, and all other flows too"));
        }
    }

    /// The programs, for the keeper. The maps stay here, and so do the handles, which send requests to the
    /// [`keeper`] from now on.
    pub fn wards(&mut self) -> keeper::Wards {
        let mut flow = None;
        if let Some(mut program) = self.flow.take() {
            let links = program.entrust();
            flow = self.or_find(links, "flow tier", "connections stay on their sockets");
            self.flow = flow.is_some().then_some(program);
        }
        let shield = self.shield.as_mut().and_then(ShieldProgram::entrust);
        let older = self.older.iter().map(OlderFlows::pins).collect();
        keeper::Wards { flow, shield, older, objects: self.objects.clone() }
    }

    /// Opens a part: the tracing objects where they are wanted, the ordinary ones where those are refused.
    fn open_part<T>(
        &mut self,
        wanted: &Wanted,
        name: &str,
        open: fn(&Wanted, Option<&mut Tracer>) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        if let Some(tracer) = &mut self.tracer {
            let traced = Wanted { objects: wanted.objects.clone().traced(), ..wanted.clone() };
            match open(&traced, Some(tracer)) {
                Ok(part) => return Ok(part),
                Err(error) => {
                    self.findings.push(error.finding("tracing", &format!("the {name} reports nothing")));
                }
            }
        }
        open(wanted, None)
    }

    fn open_flow(wanted: &Wanted, tracer: Option<&mut Tracer>) -> Result<FlowProgram, KernelError> {
        let pins = pin::Pins::open(&wanted.pins)?;
        FlowProgram::load(&wanted.objects, &pins, tracer)
    }

    /// The part, or `None` and a finding that says why.
    fn or_find<T>(&mut self, part: Result<T, KernelError>, name: &'static str, effect: &str) -> Option<T> {
        part.map_err(|error| self.findings.push(error.finding(name, effect))).ok()
    }

    fn open_shield(wanted: &Wanted, tracer: Option<&mut Tracer>) -> Result<ShieldProgram, KernelError> {
        let pins = pin::Pins::open(&wanted.pins)?;
        ShieldProgram::load(&wanted.objects, &pins, tracer)
    }
}
