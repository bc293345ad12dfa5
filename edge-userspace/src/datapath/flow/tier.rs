//! The tier's share of the machine: programs, the table of flows, ports, and the backends that it trusts.
//!
//! One for the whole daemon. [`super::carry`] decides when to hand over; this module decides whether a
//! connection can be handed over, and computes its numbers.

mod older;

use std::{
    collections::HashMap,
    io::{
        self,
        ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable},
    },
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use edge_common::flow::{
    Flow, FlowKey, FlowReason, HAS_ECN, HAS_TIMESTAMPS, NO_SACK, NO_TIMESTAMPS, NO_WINDOW_SCALE, Pending,
    WITH_ECN,
};
use socket2::SockRef;

pub use self::older::Older;
use super::{
    agreement::{self, Account, Leg, Mismatch},
    ports::{PortLease, Ports},
    ready::Readying,
    stay::Stay,
    survey::{self, Surroundings, Survey},
    tracks::{self, Tracks},
    trust::{BackendPath, Distrusted, MEMORY, Suspected, Trust},
};
use crate::{
    datapath::Pair,
    kernel::{
        Ends, FlowPair, FlowProgram, FlowReasons, FlowTable, FlowWalk, InstallError, KernelError, OlderFlows,
        Standing, ask_peer, reset_peer, segment,
        tcp::{self, TcpInfo},
    },
    lock::lock,
};

/// The MTU of most devices.
const ETHERNET_MTU: u32 = 1500;
/// The default of IPv4 (RFC 9293 §3.7.1).
const LEAST_MSS: u32 = 536;

/// The options of the client's connection that the backend's has to match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// As in [`TcpInfo::options`].
    agreed: u8,
    path_mtu: u32,
    is_ipv4: bool,
}

impl Options {
    /// Of an established connection with `peer`.
    pub fn of(socket: impl AsFd, peer: IpAddr) -> io::Result<Self> {
        let TcpInfo { options, path_mtu, .. } = tcp::info(socket)?;
        Ok(Self { agreed: options, path_mtu, is_ipv4: peer.to_canonical().is_ipv4() })
    }

    /// The MSS to announce to a backend, if the device's own may be too large: packets of this size fit the
    /// client's path even with its address family's header.
    fn max_segment(self, backend: IpAddr) -> Option<u16> {
        let is_narrow = self.path_mtu < ETHERNET_MTU || self.is_ipv4 != backend.is_ipv4();
        let fitting = segment::fitting(self.path_mtu, self.is_ipv4);
        // No less than any path carries (RFC 9293 §3.7.1). A path of no bytes is one that is not known.
        (is_narrow && fitting > 0).then(|| segment::limit(fitting.max(LEAST_MSS))).flatten()
    }

    /// How a SYN that offers the same differs from the kernel's own.
    const fn wishes(self) -> u32 {
        let mut wishes = 0;
        if self.agreed & TcpInfo::TIMESTAMPS == 0 {
            wishes |= NO_TIMESTAMPS;
        }
        if self.agreed & TcpInfo::SACK == 0 {
            wishes |= NO_SACK;
        }
        if self.agreed & TcpInfo::WINDOW_SCALE == 0 {
            wishes |= NO_WINDOW_SCALE;
        }
        if self.agreed & TcpInfo::ECN != 0 {
            wishes |= WITH_ECN;
        }
        wishes
    }
}

/// The tier, ready to carry.
#[derive(Debug)]
pub struct FlowTier {
    program: Mutex<FlowProgram>,
    table: Mutex<FlowTable>,
    walk: FlowWalk,
    older: Older,
    reasons: FlowReasons,
    surroundings: Surroundings,
    readying: Readying,
    tracks: Tracks,
    ports: Arc<Ports>,
    trust: Mutex<Trust>,
    crowded: Mutex<Vec<IpAddr>>,
    stays: Mutex<HashMap<&'static str, u64>>,
}

impl FlowTier {
    /// Takes over the programs' state, and runs them in place of an earlier daemon's. Flows of older layouts
    /// continue beside them.
    pub fn new(mut program: FlowProgram, older: Vec<OlderFlows>, ports: Ports) -> Result<Self, KernelError> {
        program.watch_handshakes()?;
        let mut table = program.table()?;
        let older = Older::new(older, &mut table);
        let reasons = program.reasons()?;
        program.adopt()?;
        Ok(Self {
            program: Mutex::new(program),
            walk: table.walk()?,
            table: Mutex::new(table),
            older,
            reasons,
            surroundings: Surroundings::new()?,
            readying: Readying::default(),
            tracks: Tracks::new(),
            ports: Arc::new(ports),
            trust: Mutex::default(),
            crowded: Mutex::default(),
            stays: Mutex::default(),
        })
    }

    /// The flows of this layout. Must not be held across an await, nor longer than a few kernel calls: every
    /// hand-over needs it.
    pub fn table(&self) -> MutexGuard<'_, FlowTable> {
        lock(&self.table)
    }

    /// The programs.
    pub fn program(&self) -> MutexGuard<'_, FlowProgram> {
        lock(&self.program)
    }

    /// Packets that met this fate, in all layouts.
    pub fn count(&self, reason: FlowReason) -> u64 {
        self.reasons.count(reason).unwrap_or(0) + self.older.count(reason)
    }

    /// The local ports kept for flows.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// Prepares a socket that is about to connect to `backend` for a later hand-over: a port of the range,
    /// and a SYN with the options that the client offered. `None` if no port is left for this client: it
    /// stays on sockets.
    pub fn prepare(
        &self,
        socket: BorrowedFd<'_>,
        backend: SocketAddr,
        client: IpAddr,
        options: Options,
    ) -> Option<PortLease> {
        let lease = self.ports.lease(backend, client)?;
        let any: SocketAddr = if backend.is_ipv4() {
            ([0, 0, 0, 0], lease.port()).into()
        } else {
            ([0_u16; 8], lease.port()).into()
        };
        let socket_ref = SockRef::from(&socket);
        // Towards other backends the port may be in use.
        let bound = socket_ref.set_reuse_address(true).and_then(|()| socket_ref.bind(&any.into()));
        if let Err(error) = bound {
            tracing::debug!(%backend, port = lease.port(), %error, "a port cannot be bound");
            return None;
        }
        if let Some(octets) = options.max_segment(backend.ip())
            && let Err(error) = segment::set_limit(socket, octets)
        {
            tracing::debug!(%backend, %error, "an MSS stays as it is");
        }
        if options.wishes() != 0
            && let Err(error) = self.shape(socket, backend, options)
        {
            tracing::debug!(%backend, %error, "a SYN goes as it is");
        }
        Some(lease)
    }

    fn shape(&self, socket: BorrowedFd<'_>, backend: SocketAddr, client: Options) -> Result<(), Stay> {
        let device = self.device_to(socket, backend.ip())?;
        self.program().attach(device)?;
        Ok(self.table().shape_syn(socket, client.wishes())?)
    }

    /// The index of the device that a socket's packets to an address leave by.
    fn device_to(&self, socket: impl AsFd, address: IpAddr) -> io::Result<u32> {
        match tcp::bound_index(socket)? {
            0 => self.surroundings.device_to(address),
            bound => Ok(bound),
        }
    }

    /// The entries for a flow of these two sockets, whose ways are known.
    pub(super) fn agree(&self, pair: &Pair, survey: &Survey, account: &Account) -> Result<FlowPair, Stay> {
        let client = self.leg(&pair.client, &survey.client, 0)?;
        let backend = self.leg(&pair.backend, &survey.backend, 1)?;
        Ok(agreement::agree(&client, &backend, account)?)
    }

    /// `syns`: how many SYNs the kernel counts among the acknowledged bytes.
    fn leg(&self, socket: impl AsFd, way: &survey::Leg, syns: u64) -> Result<Leg, Stay> {
        let mut handshake = self.table().handshake(&socket)?.ok_or(Mismatch::Unseen)?;
        let clock = if handshake.flags & HAS_TIMESTAMPS != 0 { tcp::timestamp(&socket)? } else { 0 };
        let read = tcp::read_so_far(&socket)?;
        let (written, info) = tcp::written(&socket)?;
        let unacknowledged = u32::try_from(written - info.bytes_acked).unwrap_or(u32::MAX);
        let written = written.saturating_sub(syns);
        let survey::Leg { ends: Ends { local, peer }, device, .. } = *way;
        // The kernel reports the options that its own handshake agreed to; the note has those that a changed
        // SYN requested.
        if info.options & TcpInfo::ECN != 0 {
            handshake.flags |= HAS_ECN;
        }
        Ok(Leg { local, peer, device, handshake, info, clock, read, written, unacknowledged })
    }

    /// Notes the hand-over and installs the flow.
    pub fn install(&self, pair: &FlowPair, pending: &Pending) -> Result<(), InstallError> {
        let mut table = self.table();
        table.begin(pair.up.id, pending)?;
        if let Err(error) = table.install(pair) {
            // The next daemon looks again at an entry that cannot be removed; it is no flow.
            let _ = table.finish(pair.up.id);
            return Err(error);
        }
        let to = pair.up.to;
        self.ports.take_for_flow(to.destination(), to.source().port(), pair.up_key.source().ip());
        Ok(())
    }

    /// Removes a flow that has ended: its packets go to the stack from now on, which does not know them. Does
    /// nothing if another connection has its addresses.
    pub fn remove(&self, pair: &FlowPair) {
        if let Some(now) = self.now(pair) {
            self.take(&now);
        }
    }

    /// Removes a flow and resets both sides. `false` if it was gone or both sides had closed it: it then
    /// reports its end itself.
    pub fn cut(&self, pair: &FlowPair) -> bool {
        let Some(pair) = self.now(pair).filter(|now| !now.is_closed()) else { return false };
        self.take(&pair);
        for (standing, _) in legs(&pair) {
            self.tracks.admit(&standing.ends());
            if let Err(error) = reset_peer(&standing) {
                // It will be told by the stack when it sends something.
                tracing::debug!(peer = %standing.peer, %error, "a peer of a flow cannot be reset");
            }
        }
        true
    }

    /// Probes the sender of a direction, with a timestamp or without. Its answer passes through the flow,
    /// which records it. `false` if the probe cannot leave the machine now, so that the peer's silence means
    /// nothing.
    pub fn ask(&self, pair: &FlowPair, direction: u8, with_timestamp: bool) -> bool {
        let (standing, timestamp) = legs(pair)[usize::from(direction & 1)];
        let ends = standing.ends();
        if !self.tracks.admit(&ends) {
            return false;
        }
        let asked = ask_peer(&standing, timestamp.filter(|_| with_timestamp));
        // The probe has left, and its answer passes below conntrack. Otherwise the entries of thousands of idle flows
        // would fill the table.
        self.tracks.forget(&[ends]);
        match asked {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(peer = %standing.peer, %error, "a peer of a flow cannot be asked");
                !matches!(error.kind(), HostUnreachable | NetworkDown | NetworkUnreachable)
            }
        }
    }

    /// A flow as it is now, unless a SYN has given its addresses to another connection.
    fn now(&self, pair: &FlowPair) -> Option<FlowPair> {
        self.pair(&pair.up_key, pair.up.id).unwrap_or_default()
    }

    fn take(&self, pair: &FlowPair) {
        // Before: then no other connection has these addresses yet.
        self.tracks.forget(&tracks::ends_of(pair));
        let older = self.older.find(&pair.up_key, pair.up.id).unwrap_or_default();
        let (up_key, down_key) = (&pair.up_key, &pair.down_key());
        let removed = match older {
            Some((table, _)) => table.remove(up_key, down_key),
            None => self.table().remove(up_key, down_key),
        };
        if let Err(error) = removed {
            tracing::warn!(error = error.words(), "a flow cannot be removed");
        }
        let to = pair.up.to;
        self.ports.give_back(to.destination(), to.source().port());
    }

    /// A flow does not work: connections of its source to its backend stay on sockets for a while.
    /// [`Self::judge`] decides whether the backend is to blame.
    pub fn failed(&self, pair: &FlowPair, reason: &str) {
        let (client, backend) = (pair.up_key.source().ip(), pair.up.to.destination().ip());
        if lock(&self.trust).failed(client, backend, Instant::now()) {
            let minutes = MEMORY.as_secs() / 60;
            tracing::info!(
                %client, %backend, reason,
                "a flow does not work: connections of its source to this backend stay on sockets for {minutes} minutes"
            );
        }
    }

    /// A flow was seen to work, so long ago.
    pub fn worked(&self, client: IpAddr, backend: IpAddr, ago: Duration) {
        let now = Instant::now();
        lock(&self.trust).worked(client, backend, now.checked_sub(ago).unwrap_or(now));
    }

    /// Of whose flows it matters whether they work, for [`Self::judge`].
    pub fn suspected(&self) -> Suspected {
        lock(&self.trust).suspected()
    }

    /// Decides whether these backends are to blame for the flows that have failed.
    pub fn judge(&self, suspected: &Suspected) {
        for (BackendPath { backend, .. }, pause) in lock(&self.trust).judge(suspected, Instant::now()) {
            let minutes = pause.as_secs() / 60;
            tracing::warn!(
                %backend,
                "flows to this backend do not work: its connections stay on sockets for {minutes} minutes"
            );
        }
    }

    /// Nothing of this flow goes to the stack any more: connection tracking need not keep it.
    pub fn is_flow(&self, id: u64, up_key: FlowKey) {
        self.tracks.is_flow(id, up_key);
    }

    /// The same for a flow whose addresses belong to another connection from now on: only the leg to its
    /// backend is sure to have none.
    pub fn was_flow(&self, backend: Ends) {
        self.tracks.forget(&[backend]);
    }

    pub(super) const fn readying(&self) -> &Readying {
        &self.readying
    }

    pub(super) fn tracks(&self) -> &Tracks {
        &self.tracks
    }

    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    pub(super) fn doubt(&self, client: IpAddr, backend: IpAddr) -> Option<Distrusted> {
        lock(&self.trust).doubt(client, backend, Instant::now())
    }

    pub(super) fn is_crowded(&self, source: IpAddr) -> bool {
        lock(&self.crowded).contains(&source)
    }

    /// These sources have as many flows as they may have.
    pub fn set_crowded(&self, sources: Vec<IpAddr>) {
        *lock(&self.crowded) = sources;
    }

    /// Counts a connection that stays on its sockets.
    pub(super) fn stays(&self, reason: &Stay) {
        *lock(&self.stays).entry(reason.label()).or_insert(0) += 1;
    }

    /// How many connections stayed on their sockets, by reason.
    pub fn stay_counts(&self) -> Vec<(&'static str, u64)> {
        let mut counts: Vec<_> = lock(&self.stays).iter().map(|(reason, count)| (*reason, *count)).collect();
        counts.sort_unstable();
        counts
    }
}

/// The numbers of both legs of a flow, by the direction of the peer's packets, and the last timestamp that
/// each peer has seen.
fn legs(pair: &FlowPair) -> [(Standing, Option<u32>); 2] {
    let FlowPair { up_key, up, down } = pair;
    let leg = |key: &FlowKey, from: &Flow, to: &Flow| {
        let standing = Standing {
            local: key.destination(),
            peer: key.source(),
            next: from.acked,
            sent: to.sent().wrapping_add(to.seq_delta),
            expected: from.sent(),
            device: from.ingress,
        };
        (standing, Some(to.stamp).filter(|stamp| *stamp != 0))
    };
    [leg(up_key, up, down), leg(&pair.down_key(), down, up)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_offers_what_the_client_offered() {
        let usual = TcpInfo::TIMESTAMPS | TcpInfo::SACK | TcpInfo::WINDOW_SCALE;
        let wishes = |agreed| Options { agreed, path_mtu: 1500, is_ipv4: true }.wishes();
        assert_eq!(wishes(usual), 0);
        assert_eq!(wishes(usual | TcpInfo::ECN), WITH_ECN);
        assert_eq!(wishes(0), NO_TIMESTAMPS | NO_SACK | NO_WINDOW_SCALE);
    }

    #[test]
    fn a_backend_is_told_what_fits_the_clients_path() {
        let (v4, v6): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), "fd00::1".parse().unwrap());
        let segment =
            |path_mtu, is_ipv4, backend| Options { agreed: 0, path_mtu, is_ipv4 }.max_segment(backend);
        assert_eq!(segment(1500, true, v4), None);
        assert_eq!(segment(1420, true, v4), Some(1380));
        // 20 bytes more of header on the client's leg.
        assert_eq!(segment(1500, false, v4), Some(1440));
        assert_eq!(segment(1500, true, v6), Some(1460));
        assert_eq!(segment(0, true, v6), None);
        assert_eq!(segment(300, true, v4), Some(536));
    }
}
