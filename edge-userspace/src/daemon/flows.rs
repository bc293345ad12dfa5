//! The flow tier in the daemon: taken from the kernel at the start, its reports read, its flows shown with
//! all other connections.

use std::{collections::HashMap, fs, io, iter, ops::RangeInclusive, sync::Arc};

use edge_common::flow::{FlowEvent, FlowReason};

use super::{Daemon, status};
use crate::{
    accounts::{Accounts, Admission},
    config::FlowSpec,
    connection::{Flows, LiveFlow, Passport},
    control::api,
    datapath::{
        Tiers,
        flow::{FlowTier, Ports},
    },
    kernel::{Finding, FlowEvents, Kernel, OlderFlows, State},
    observe::metrics::FlowCounts,
    places::Places,
};

/// Ports that the kernel may not give out by itself, in this network namespace.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// Those that it gives out.
const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// Takes the tier from the kernel, if it is available. Otherwise the findings name the missing part.
pub(super) fn take(
    kernel: &mut Kernel,
    tiers: &Tiers,
    accounts: &Arc<Accounts>,
    FlowSpec { ports }: &FlowSpec,
) -> Option<(Arc<Flows>, Reports)> {
    let mut program = kernel.flow.take()?;
    let older = std::mem::take(&mut kernel.older);
    let own_ports = Ports::new(ports.clone());
    let own_ports = if kernel.unread.is_empty() { own_ports } else { own_ports.from_the_middle() };
    let taken = program.events().and_then(|events| Ok((events, FlowTier::new(program, older, own_ports)?)));
    match taken {
        Ok((events, tier)) => {
            let tier = Arc::new(tier);
            tiers.add_flow(Arc::clone(&tier));
            let older = tier.older().tables().into_iter().filter_map(reports_of).collect();
            Some((Arc::new(Flows::new(tier, Arc::clone(accounts))), Reports { own: events, older }))
        }
        Err(error) => {
            let finding = Finding::new("flow tier", State::Limited, error.words());
            tracing::warn!("{}: {}: connections stay on their sockets", finding.name, finding.message);
            kernel.findings.push(finding);
            None
        }
    }
}

/// Takes over the flows of an earlier daemon and looks after all flows from now on, in tasks of the control runtime. To be
/// called before connections are accepted. With `admission`, flows count against the limit per source; each takes
/// its `places` on a route and at a backend.
pub(super) fn adopt(
    flows: &Arc<Flows>,
    mut reports: Reports,
    admission: Option<&Arc<Admission>>,
    places: impl Fn(&Passport) -> [Arc<Places>; 2],
) {
    if let Err(error) = flows.adopt(admission, places, reports.waiting()) {
        tracing::error!(
            error = error.words(),
            "flows of an earlier daemon are carried, but not all are known"
        );
    }
    reports.listen(flows);
    tokio::spawn({
        let flows = Arc::clone(flows);
        async move { flows.finish_handovers().await }
    });
    tokio::spawn({
        let tier = Arc::clone(flows.tier());
        async move { tier.tend_tracks().await }
    });
    tokio::spawn({
        let tier = Arc::clone(flows.tier());
        async move { tier.ready_connections().await }
    });
}

/// Keeps the kernel from giving out these ports, where its own range reaches into them. Needs rights.
pub(super) fn reserve_ports(ports: &RangeInclusive<u16>) {
    if let Err(error) = reserve(ports) {
        tracing::warn!(%error, "ports of flows cannot be reserved: do not let others connect from {ports:?}");
    }
}

fn reserve(ports: &RangeInclusive<u16>) -> io::Result<()> {
    let local = fs::read_to_string(LOCAL)?;
    let bounds: Vec<u16> = local.split_whitespace().filter_map(|bound| bound.parse().ok()).collect();
    if let [first, last] = *bounds
        && (last < *ports.start() || first > *ports.end())
    {
        return Ok(());
    }
    let there = fs::read_to_string(RESERVED)?;
    let ours = format!("{}-{}", ports.start(), ports.end());
    if there.trim().split(',').any(|range| range == ours) {
        return Ok(());
    }
    let all = if there.trim().is_empty() { ours } else { format!("{},{ours}", there.trim()) };
    fs::write(RESERVED, all)
}

/// The reports of the programs of all layouts.
pub(super) struct Reports {
    own: FlowEvents,
    older: Vec<(Arc<OlderFlows>, FlowEvents)>,
}

fn reports_of(table: Arc<OlderFlows>) -> Option<(Arc<OlderFlows>, FlowEvents)> {
    match table.events() {
        Ok(events) => Some((table, events)),
        Err(error) => {
            tracing::error!(
                layout = table.layout(),
                error = error.words(),
                "ends of an earlier version's flows are noticed late, and its programs stay when the last one has ended"
            );
            None
        }
    }
}

impl Reports {
    /// Those that are there already.
    fn waiting(&mut self) -> impl Iterator<Item = FlowEvent> {
        let older = self.older.iter_mut();
        let mut all: Vec<&mut FlowEvents> =
            iter::once(&mut self.own).chain(older.map(|(_, events)| events)).collect();
        iter::from_fn(move || all.iter_mut().find_map(Iterator::next))
    }

    /// Reads them from now on.
    fn listen(self, flows: &Arc<Flows>) {
        tokio::spawn(listen(Arc::clone(flows), self.own));
        for (table, events) in self.older {
            tokio::spawn(outlive(Arc::clone(flows), table, events));
        }
    }
}

/// Reads what the programs report, for as long as the daemon lives.
async fn listen(flows: Arc<Flows>, mut events: FlowEvents) {
    listen_to(&flows, &mut events).await;
}

/// Ends only where the kernel refuses.
async fn listen_to(flows: &Flows, events: &mut FlowEvents) {
    loop {
        if let Err(error) = events.readable().await {
            tracing::error!(%error, "ends of flows are noticed late from now on");
            return;
        }
        events.for_each(|event| flows.happened(&event));
    }
}

/// Reads what an older layout's programs report until the last of their flows has ended, and takes them away then.
async fn outlive(flows: Arc<Flows>, table: Arc<OlderFlows>, mut events: FlowEvents) {
    tokio::select! {
        () = listen_to(&flows, &mut events) => table.emptied().await,
        () = table.emptied() => {}
    }
    // The last flows to end were reported before their entries went.
    events.for_each(|event| flows.happened(&event));
    if let Err(error) = table.detach().and_then(|()| flows.tier().older().remove(&table)) {
        tracing::warn!(
            layout = table.layout(),
            error = error.words(),
            "the programs of an earlier version stay until edged starts again"
        );
    }
}

/// The counters of the tier.
pub(super) fn measured(flows: &Flows) -> FlowCounts {
    let tier = flows.tier();
    let packets = FlowReason::ALL.into_iter().map(|reason| (name(reason), tier.count(reason)));
    FlowCounts { packets: packets.collect(), stays: tier.stay_counts() }
}

/// As the metrics have it.
const fn name(reason: FlowReason) -> &'static str {
    match reason {
        FlowReason::Forwarded => "forwarded",
        FlowReason::UnusualOptions => "unusual_options",
        FlowReason::Fragment => "fragment",
        FlowReason::ExtensionHeader => "extension_header",
        FlowReason::SynOnClosed => "syn_on_closed",
        FlowReason::SynOnLive => "syn_on_live",
        FlowReason::SynAck => "syn_ack",
        FlowReason::WrongDevice => "wrong_device",
        FlowReason::Malformed => "malformed",
        FlowReason::HopLimit => "hop_limit",
        FlowReason::TooBig => "too_big",
        FlowReason::Refused => "refused",
        FlowReason::OutOfWindow => "out_of_window",
        FlowReason::ResetOutOfWindow => "reset_out_of_window",
        FlowReason::TooBigTranslated => "too_big_translated",
        FlowReason::TooBigDisbelieved => "too_big_disbelieved",
        FlowReason::Guarded => "guarded",
        FlowReason::SynRewritten => "syn_rewritten",
        FlowReason::ForSocket => "for_socket",
        FlowReason::EventLost => "event_lost",
    }
}

impl Daemon {
    /// All flows, as connections.
    pub(super) fn flows(&self) -> Vec<api::Connection> {
        let Some(flows) = &self.edge.flows else { return Vec::new() };
        match flows.list() {
            Ok(list) => {
                let running = self.edge.running.load();
                let backends: HashMap<_, _> =
                    running.backends().map(|backend| (backend.id().key(), &**backend)).collect();
                let backend = |flow: &LiveFlow| backends.get(&flow.passport.backend).copied();
                list.iter().map(|flow| status::connection(flow.view(), flow.idle, backend(flow))).collect()
            }
            Err(error) => {
                tracing::warn!(error = error.words(), "the flows cannot be listed");
                Vec::new()
            }
        }
    }

    /// Layouts of other versions that still exist, for `status` and `doctor`.
    pub(super) fn left_by_others(&self) -> Vec<api::OtherLayout> {
        let older = self.edge.flows.iter().flat_map(|flows| flows.tier().older().tables());
        let older = older.map(|table| api::OtherLayout {
            layout: table.layout().into(),
            flows: Some(table.live()),
            readable: true,
        });
        let unread = self.unread.iter().map(|unread| api::OtherLayout {
            layout: unread.layout.as_str().into(),
            flows: unread.count(),
            readable: false,
        });
        older.chain(unread).collect()
    }
}
