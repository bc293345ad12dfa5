//! The programs of the flow tier: loaded, their maps and links adopted from an earlier daemon, attached to named
//! interfaces. Flows go on being carried while no daemon runs, and through the change of one program for another.
//!
//! Minimum kernel: 6.1; tc links from 6.6 on, before that filters of clsact with a priority and handle of our own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    maps::MapType,
    programs::{
        CgroupAttachMode, Link as _, LinkOrder, ProgramError, SchedClassifier, SockOps, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};
use edge_common::flow::{Flow, FlowKey, Label, Pending};

use super::{
    Framing, Interface, KernelError, Objects,
    cgroup::open_own_cgroup,
    flow_events::{FLOW_EVENTS, FlowEvents},
    flow_table::{FLOW_LABELS, FLOW_REASONS, FLOWS, FLOWS_PENDING, FlowReasons, FlowTable},
    interfaces,
    keeper::{Reply, Request, keeper},
    link_device::device_of,
    load::{Shape, load},
    pin::Pins,
    pin_name, probe,
    trace::Tracer,
};

pub(super) const OBJECT: &str = "flow";
/// The maps that outlive the daemon. Records of sockets end with the sockets.
const MAPS: [Shape; 5] = [
    Shape::of::<FlowKey, Flow>(FLOWS, MapType::Hash),
    Shape::of::<u64, Pending>(FLOWS_PENDING, MapType::Hash),
    Shape::of::<u32, Label>(FLOW_LABELS, MapType::Hash),
    Shape::of::<u32, u64>(FLOW_REASONS, MapType::PerCpuArray),
    Shape::ring(FLOW_EVENTS),
];
const ESTABLISHED: &str = "established";
/// At the hooks of [`Hook::ALL`], for devices with Ethernet headers and without.
const CLASSIFIERS: [[&str; 2]; 2] = [["ingress_l2", "egress_l2"], ["ingress_l3", "egress_l3"]];

/// Where a filter of clsact is, so that another daemon finds it: any number that nobody else is likely to use, and one
/// less with each layout, for a later one has to see a packet first: programs up to layout 2 let nobody see it after them.
const PRIORITY: u16 = priority(edge_common::LAYOUT);
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// The priority of a layout's filters.
const fn priority(layout: u32) -> u16 {
    const OF_LAYOUT_2: u16 = 0xed9e;
    #[expect(clippy::cast_possible_truncation, reason = "there will never be that many")]
    let since = layout.saturating_sub(2) as u16;
    OF_LAYOUT_2 - since
}

/// A hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// The loaded programs. Dropping it leaves flows, links and filters in place for the next daemon.
#[derive(Debug)]
pub struct FlowProgram {
    hands: Hands,
    maps: Option<Maps>,
}

/// Whose hands attach the programs.
#[derive(Debug)]
enum Hands {
    Own(FlowLinks),
    Keeper(Entrusted),
}

/// The state of the devices while the keeper attaches to them.
#[derive(Debug, Default)]
struct Entrusted {
    attached: BTreeMap<u32, String>,
    /// Refused devices and when, so that no connection tries the same again.
    refused: BTreeMap<u32, (Instant, String)>,
}

/// How long a refusal counts.
const REFUSED: Duration = Duration::from_secs(5);

/// The maps, taken out of the object; each is given away once.
#[derive(Debug)]
struct Maps {
    table: Option<FlowTable>,
    events: Option<FlowEvents>,
    reasons: Option<FlowReasons>,
}

/// The programs and where they are attached.
pub(super) struct FlowLinks {
    ebpf: Ebpf,
    directory: PathBuf,
    /// By index, which says more than the name: a device that is made anew has another. Both hooks.
    attached: BTreeMap<u32, String>,
    uses_tcx: bool,
}

impl FlowProgram {
    /// Loads the programs and adopts an earlier daemon's maps; its links and filters run its programs until [`Self::attach`].
    pub(super) fn load(
        objects: &Objects,
        pins: &Pins,
        trace: Option<&mut Tracer>,
    ) -> Result<Self, KernelError> {
        let directory = pins.of(OBJECT)?;
        let mut ebpf = load(OBJECT, &objects.flow()?, &directory, &MAPS)?;
        for name in CLASSIFIERS.into_iter().flatten() {
            classifier(&mut ebpf, name)?.load().map_err(failed("loading", name))?;
        }
        sock_ops(&mut ebpf)?.load().map_err(failed("loading", ESTABLISHED))?;
        trace.map_or(Ok(()), |tracer| tracer.add(&mut ebpf, OBJECT))?;
        let links =
            FlowLinks { ebpf, directory, attached: BTreeMap::new(), uses_tcx: probe::tcx() == Ok(true) };
        Ok(Self { hands: Hands::Own(links), maps: None })
    }

    /// Gives the programs away and keeps the maps: from now on the keeper is asked.
    pub(super) fn entrust(&mut self) -> Result<FlowLinks, KernelError> {
        let maps =
            Maps { table: Some(self.table()?), events: Some(self.events()?), reasons: Some(self.reasons()?) };
        match std::mem::replace(&mut self.hands, Hands::Keeper(Entrusted::default())) {
            Hands::Own(links) => {
                self.maps = Some(maps);
                Ok(links)
            }
            Hands::Keeper(_) => Err(given("programs")),
        }
    }

    /// The flows; to be taken once.
    pub fn table(&mut self) -> Result<FlowTable, KernelError> {
        match (&mut self.maps, &mut self.hands) {
            (Some(maps), _) => maps.table.take().ok_or_else(|| given("FLOWS")),
            (None, Hands::Own(links)) => FlowTable::take(&mut links.ebpf, OBJECT),
            (None, Hands::Keeper(_)) => Err(given("FLOWS")),
        }
    }

    /// The reports of the programs; to be taken once.
    pub fn events(&mut self) -> Result<FlowEvents, KernelError> {
        match (&mut self.maps, &mut self.hands) {
            (Some(maps), _) => maps.events.take().ok_or_else(|| given(FLOW_EVENTS)),
            (None, Hands::Own(links)) => FlowEvents::take(&mut links.ebpf, OBJECT),
            (None, Hands::Keeper(_)) => Err(given(FLOW_EVENTS)),
        }
    }

    /// The counters; to be taken once.
    pub fn reasons(&mut self) -> Result<FlowReasons, KernelError> {
        match (&mut self.maps, &mut self.hands) {
            (Some(maps), _) => maps.reasons.take().ok_or_else(|| given("FLOW_REASONS")),
            (None, Hands::Own(links)) => FlowReasons::take(&mut links.ebpf, OBJECT),
            (None, Hands::Keeper(_)) => Err(given("FLOW_REASONS")),
        }
    }

    /// Notes the handshakes of this process's sockets from now on; to be called before listening. Ends with this
    /// daemon: without it there are no sockets to note.
    pub fn watch_handshakes(&mut self) -> Result<(), KernelError> {
        match &mut self.hands {
            Hands::Own(links) => links.watch_handshakes(),
            Hands::Keeper(_) => ask(&Request::WatchHandshakes).map(drop),
        }
    }

    /// Whether packets of the device with this index are carried.
    pub fn is_attached(&self, index: u32) -> bool {
        self.devices().contains_key(&index)
    }

    /// Attaches the programs to a device, or lets the links and filters that are there run them.
    pub fn attach(&mut self, index: u32) -> Result<(), KernelError> {
        match &mut self.hands {
            Hands::Own(links) => links.attach(index),
            Hands::Keeper(entrusted) => entrusted.attach(index),
        }
    }

    /// Lets the links and filters that an earlier daemon left run these programs; what leads to a device that is gone
    /// is removed.
    pub fn adopt(&mut self) -> Result<(), KernelError> {
        match &mut self.hands {
            Hands::Own(links) => links.adopt(),
            Hands::Keeper(entrusted) => entrusted.ask(&Request::AdoptFlows),
        }
    }

    /// Forgets devices that are gone, so that another one which gets the index of such a one is attached to.
    pub fn forget_gone(&mut self) -> Result<(), KernelError> {
        match &mut self.hands {
            Hands::Own(links) => links.forget_gone(),
            Hands::Keeper(entrusted) => entrusted.ask(&Request::ForgetGone),
        }
    }

    /// The names of the devices that the programs are attached to.
    pub fn attached(&self) -> impl Iterator<Item = &str> {
        self.devices().values().map(String::as_str)
    }

    const fn devices(&self) -> &BTreeMap<u32, String> {
        match &self.hands {
            Hands::Own(links) => &links.attached,
            Hands::Keeper(entrusted) => &entrusted.attached,
        }
    }
}

impl Entrusted {
    fn attach(&mut self, index: u32) -> Result<(), KernelError> {
        if self.attached.contains_key(&index) {
            return Ok(());
        }
        self.refused.retain(|_, (when, _)| when.elapsed() < REFUSED);
        if let Some((_, words)) = self.refused.get(&index) {
            return Err(KernelError::Keeper { words: words.clone(), denied: false });
        }
        self.ask(&Request::AttachFlows { index }).inspect_err(|error| {
            self.refused.insert(index, (Instant::now(), error.words()));
        })
    }

    fn ask(&mut self, request: &Request) -> Result<(), KernelError> {
        if let Reply::Flows(devices) = ask(request)? {
            self.attached = devices;
        }
        Ok(())
    }
}

fn ask(request: &Request) -> Result<Reply, KernelError> {
    let keeper = keeper().ok_or_else(|| given("programs"))?;
    keeper.ask(request).map(|(reply, _)| reply)
}

/// Something is no longer here.
const fn given(part: &'static str) -> KernelError {
    KernelError::Incomplete { object: OBJECT, part }
}

impl FlowLinks {
    pub(super) fn watch_handshakes(&mut self) -> Result<(), KernelError> {
        let cgroup = open_own_cgroup()?;
        let program = sock_ops(&mut self.ebpf)?;
        program.attach(cgroup, CgroupAttachMode::Single).map_err(failed("attaching", ESTABLISHED))?;
        Ok(())
    }

    pub(super) fn attach(&mut self, index: u32) -> Result<(), KernelError> {
        if self.attached.contains_key(&index) {
            return Ok(());
        }
        let error = |words: String| KernelError::Call {
            call: "attaching the flow programs",
            source: io::Error::other(words),
        };
        let found = interfaces()?.into_iter().find(|found| found.index == index);
        let found = found.ok_or_else(|| error(format!("there is no device with index {index}")))?;
        let names = classifiers_of(&found);
        let name = found.name;
        let names = names.ok_or_else(|| error(format!("{name} has a link header that is not Ethernet's")))?;
        for (hook, program_name) in Hook::ALL.into_iter().zip(names) {
            let pin = self.pin(hook, index);
            let program = classifier(&mut self.ebpf, program_name)?;
            if self.uses_tcx {
                attach_link(program, program_name, hook, &name, &pin)?;
            } else {
                attach_filter(program, program_name, hook, &name)?;
            }
        }
        tracing::info!(device = name, tcx = self.uses_tcx, "packets of flows are carried here");
        self.attached.insert(index, name);
        Ok(())
    }

    pub(super) fn forget_gone(&mut self) -> Result<(), KernelError> {
        let there = interfaces()?;
        let (directory, uses_tcx, before) = (&self.directory, self.uses_tcx, self.attached.len());
        self.attached.retain(|index, name| {
            let Some(found) = there.iter().find(|found| found.index == *index) else { return false };
            name.clone_from(&found.name);
            // A filter goes with its device; a link is on none then.
            !uses_tcx
                || Hook::ALL.iter().all(|hook| {
                    let pin = directory.join(pin_name::link(*index, Some(hook.name())));
                    device_of(&pin).ok() == Some(*index)
                })
        });
        // A pin keeps its link in the kernel when the device is gone.
        if uses_tcx && self.attached.len() < before { self.tidy_pins() } else { Ok(()) }
    }

    fn tidy_pins(&self) -> Result<(), KernelError> {
        let error = |source| KernelError::File { call: "tidying", path: self.directory.clone(), source };
        Hook::ALL.iter().try_for_each(|hook| pin_name::tidy(&self.directory, hook.name())).map_err(error)
    }

    pub(super) fn adopt(&mut self) -> Result<(), KernelError> {
        if !self.uses_tcx {
            return self.adopt_filters();
        }
        self.tidy_pins()?;
        for device in self.left_behind()? {
            if interfaces()?.iter().any(|found| found.index == device) {
                self.attach(device)?;
            }
        }
        Ok(())
    }

    fn adopt_filters(&mut self) -> Result<(), KernelError> {
        for found in interfaces()? {
            // Nothing is pinned that tells of a filter, but only one that is there can be replaced.
            if let Some([name, _]) = classifiers_of(&found)
                && replace_filter(classifier(&mut self.ebpf, name)?, Hook::Ingress, &found.name).is_some()
            {
                self.attach(found.index)?;
            }
        }
        Ok(())
    }

    /// The devices that an earlier daemon left a link on and that this one has not attached to, by index.
    fn left_behind(&self) -> Result<BTreeSet<u32>, KernelError> {
        let error = |source| KernelError::File { call: "reading", path: self.directory.clone(), source };
        let mut left = BTreeSet::new();
        for hook in Hook::ALL {
            let links = pin_name::links(&self.directory, Some(hook.name())).map_err(error)?;
            left.extend(links.into_iter().map(|link| link.device));
        }
        left.retain(|device| *device != 0 && !self.attached.contains_key(device));
        Ok(left)
    }

    /// The devices that the programs are attached to, by index.
    pub(super) fn devices(&self) -> impl Iterator<Item = (u32, &str)> {
        self.attached.iter().map(|(index, name)| (*index, name.as_str()))
    }

    fn pin(&self, hook: Hook, index: u32) -> PathBuf {
        self.directory.join(pin_name::link(index, Some(hook.name())))
    }
}

impl fmt::Debug for FlowLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlowLinks").field("attached", &self.attached).finish_non_exhaustive()
    }
}

fn attach_link(
    program: &mut SchedClassifier,
    name: &'static str,
    hook: Hook,
    interface: &str,
    pin: &Path,
) -> Result<(), KernelError> {
    if take_over(program, pin).is_some() {
        return Ok(());
    }
    // A pin that could not be taken over belongs to an interface that is gone, or never was.
    let _ = fs::remove_file(pin);
    // Before the programs of older layouts: those up to 2 let nobody see a packet after them.
    let options = TcAttachOptions::TcxOrder(LinkOrder::first());
    let link = program
        .attach_with_options(interface, hook.attach_type(), options)
        .and_then(|link| program.take_link(link))
        .map_err(failed("attaching", name))?;
    let link = FdLink::try_from(link).map_err(|_| KernelError::Call {
        call: "attaching the flow programs",
        source: io::Error::other("this kernel has no tc links"),
    })?;
    let pinned = link.pin(pin);
    pinned.map_err(|source| KernelError::Pin { path: pin.to_owned(), source: Box::new(source) })?;
    Ok(())
}

/// Lets a pinned link run this program, in one step.
fn take_over(program: &mut SchedClassifier, pin: &Path) -> Option<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    let link = SchedClassifierLink::try_from(link).ok()?;
    let link = program.attach_to_link(link).ok()?;
    // Closes the descriptor; the pin keeps the link.
    drop(FdLink::try_from(program.take_link(link).ok()?).ok()?);
    Some(())
}

fn attach_filter(
    program: &mut SchedClassifier,
    name: &'static str,
    hook: Hook,
    interface: &str,
) -> Result<(), KernelError> {
    if replace_filter(program, hook, interface).is_some() {
        return Ok(());
    }
    match tc::qdisc_add_clsact(interface) {
        Ok(()) => {}
        // Made for the other hook, or by somebody else.
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(failed("attaching", name)(error.into())),
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let link = program
        .attach_with_options(interface, hook.attach_type(), TcAttachOptions::Netlink(options))
        .and_then(|link| program.take_link(link))
        .map_err(failed("attaching", name))?;
    // A filter stays when nobody holds it; only dropping aya's handle would take it away.
    std::mem::forget(link);
    Ok(())
}

/// Lets a filter that is there run this program.
fn replace_filter(program: &mut SchedClassifier, hook: Hook, interface: &str) -> Option<()> {
    let link = program.attach_to_link(filter(hook, interface, PRIORITY)?).ok()?;
    std::mem::forget(program.take_link(link).ok()?);
    Some(())
}

/// The handle of a filter, be there one or not.
fn filter(hook: Hook, interface: &str, priority: u16) -> Option<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, hook.attach_type(), priority, HANDLE, None).ok()
}

/// Removes the filters that daemons of any layout left where the kernel has no links. Returns whether there were any.
pub fn remove_filters() -> Result<bool, KernelError> {
    /// Layouts to come, after which somebody goes back to this version.
    const LATER: u32 = 8;
    let layouts = 2..=edge_common::LAYOUT + LATER;
    layouts.map(|layout| remove_filters_at(priority(layout))).try_fold(false, |any, found| Ok(any | found?))
}

/// The same for the filters of one layout.
pub(super) fn remove_filters_at(priority: u16) -> Result<bool, KernelError> {
    let mut any = false;
    for Interface { name, .. } in interfaces()? {
        for hook in Hook::ALL {
            any |= filter(hook, &name, priority).is_some_and(|filter| filter.detach().is_ok());
        }
    }
    Ok(any)
}

/// The programs for an interface, at both hooks; `None` where its packets begin with a header that is not known.
const fn classifiers_of(interface: &Interface) -> Option<[&'static str; 2]> {
    match interface.framing {
        Framing::Ethernet => Some(CLASSIFIERS[0]),
        Framing::RawIp => Some(CLASSIFIERS[1]),
        // Only since Linux 6.6 are packets redirected correctly out of such a device (`dev_is_mac_header_xmit`).
        Framing::Encapsulated | Framing::Other => None,
    }
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, KernelError> {
    let found = ebpf.program_mut(name).ok_or(KernelError::Incomplete { object: OBJECT, part: name })?;
    found.try_into().map_err(failed("taking", name))
}

fn sock_ops(ebpf: &mut Ebpf) -> Result<&mut SockOps, KernelError> {
    let found = ebpf.program_mut(ESTABLISHED);
    let found = found.ok_or(KernelError::Incomplete { object: OBJECT, part: ESTABLISHED })?;
    found.try_into().map_err(failed("taking", ESTABLISHED))
}

fn failed(call: &'static str, program: &'static str) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Program { call, program, source: Box::new(source) }
}
