//! What is dropped before the stack: blocks of the operator, lists of prefixes, and sources that connect too
//! fast. Decides; the kernel's side is [`ShieldProgram`].
//!
//! The program is attached only while there is something to drop, because even a packet that passes it costs,
//! and several drivers give up offloads for it.

mod ledger;
mod list;
mod tend;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use edge_common::shield::{Block, Counters, MAX_BLOCKS, SynLimit};
use ipnet::IpNet;
use thiserror::Error;
use tracing::warn;

use self::ledger::{Change, Full, Ledger};
pub use self::{list::Lists, tend::tend};
use crate::kernel::{KernelError, Prefix, ShieldProgram, boot_time};

/// Why a block was not made or not lifted.
#[derive(Debug, Error)]
pub enum ShieldError {
    /// It would cut off an address that must be reached.
    #[error("{net} holds {address}, which must stay reachable")]
    Cuts {
        /// The prefix.
        net: IpNet,
        /// The address in it.
        address: IpAddr,
    },
    /// An IPv6 prefix so short that it holds all of IPv4 as well.
    #[error("{0} is too wide: it would hold IPv4 too; all of the IPv6 internet is 2000::/3")]
    TooWide(IpNet),
    /// The operator did not block it.
    #[error("{0} is not blocked")]
    NotBlocked(IpNet),
    /// Only a list names it.
    #[error("{net} is blocked by {list} alone: take it out there")]
    Listed {
        /// The prefix.
        net: IpNet,
        /// The list.
        list: Arc<str>,
    },
    /// There is no room.
    #[error("{MAX_BLOCKS} prefixes are blocked, which is all there is room for")]
    Full(#[from] Full),
    /// The kernel refused.
    #[error("{}", .0.words())]
    Kernel(#[from] KernelError),
}

/// A blocked prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// The prefix.
    pub net: IpNet,
    /// When the operator's block ends; `None` means never, or that a list alone names it.
    pub until: Option<SystemTime>,
    /// Packets dropped since it was blocked.
    pub packets: u64,
    /// The list that names it; `None` when the operator blocked it.
    pub list: Option<Arc<str>>,
}

/// What came of loading lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Prefixes that the lists name now and did not before.
    pub added: usize,
    /// Prefixes that they named before and do not now.
    pub removed: usize,
    /// Prefixes left out because they would cut off an address that must be reached.
    pub spared: Vec<IpNet>,
    /// Prefixes left out for want of room.
    pub left_out: usize,
}

/// The shield. Dropping it leaves the kernel as it is: the next daemon takes it over.
#[derive(Debug)]
pub struct Shield {
    program: ShieldProgram,
    ledger: Ledger,
    limited: bool,
}

impl Shield {
    /// Takes the program with everything that an earlier daemon had blocked.
    pub fn new(program: ShieldProgram) -> Result<Self, KernelError> {
        let mut shield = Self { program, ledger: Ledger::default(), limited: false };
        shield.resume()?;
        Ok(shield)
    }

    /// Blocks a prefix until a time, or until it is unblocked. Blocking it again changes the time.
    ///
    /// `spare` are the addresses that must not be cut off; none when that is what is wanted.
    pub fn block(
        &mut self,
        net: IpNet,
        until: Option<SystemTime>,
        spare: &[IpAddr],
    ) -> Result<(), ShieldError> {
        if is_too_wide(&net) {
            return Err(ShieldError::TooWide(net));
        }
        if let Some(address) = cut(&net, spare) {
            return Err(ShieldError::Cuts { net, address });
        }
        self.program.attach()?;
        let change = self.ledger.block(net.into(), until.map_or(Block::FOREVER, to_boot_time))?;
        self.apply([change])
    }

    /// Lets a prefix in again that the operator blocked. A list that names it too goes on blocking it; the
    /// name of that list is returned.
    pub fn unblock(&mut self, net: IpNet) -> Result<Option<Arc<str>>, ShieldError> {
        let prefix = net.into();
        let list = self.ledger.list(prefix);
        match (self.ledger.unblock(prefix), &list) {
            (Some(change), _) => self.apply([change])?,
            (None, Some(list)) => return Err(ShieldError::Listed { net, list: list.clone() }),
            (None, None) => return Err(ShieldError::NotBlocked(net)),
        }
        self.disarm()?;
        Ok(list)
    }

    /// Everything blocked, sorted.
    pub fn blocked(&self) -> Result<Vec<Blocked>, KernelError> {
        let mut blocked = Vec::with_capacity(self.ledger.len());
        for (prefix, entry) in self.ledger.iter() {
            let until = entry.until.filter(|&until| until != Block::FOREVER).map(from_boot_time);
            let list = if entry.until.is_some() { None } else { entry.list.clone() };
            let packets = self.program.packets(entry.counter)?;
            blocked.push(Blocked { net: prefix.into(), until, packets, list });
        }
        blocked.sort_by_key(|blocked| blocked.net);
        Ok(blocked)
    }

    /// Blocks what these lists name, beside what the operator blocked. Each prefix comes with the name of its
    /// list; what holds an address of `spare` is left out.
    ///
    /// What lists named before and do not name now is let in, unless `is_partial`.
    pub fn load_prefixes(
        &mut self,
        prefixes: impl IntoIterator<Item = (IpNet, Arc<str>)>,
        spare: &[IpAddr],
        is_partial: bool,
    ) -> Result<Loaded, ShieldError> {
        let mut loaded = Loaded::default();
        let wanted = prefixes.into_iter().filter_map(|(net, list)| {
            if is_too_wide(&net) || cut(&net, spare).is_some() {
                loaded.spared.push(net);
                return None;
            }
            Some((Prefix::from(net), list))
        });
        let outcome = self.ledger.replace_lists(wanted.collect(), is_partial);
        if !self.ledger.is_empty() {
            self.program.attach()?;
        }
        self.apply(outcome.changes)?;
        self.disarm()?;
        Ok(Loaded { added: outcome.added, removed: outcome.removed, left_out: outcome.left_out, ..loaded })
    }

    /// Lets each source (IPv4 address or IPv6 /64) open this many connections a second to these ports, and as
    /// many at once when it was quiet before; 0 means no limit.
    pub fn set_syn_rate(
        &mut self,
        rate: u32,
        ports: impl IntoIterator<Item = u16>,
    ) -> Result<(), ShieldError> {
        self.limited = rate > 0;
        if self.limited {
            self.program.attach()?;
        }
        self.program.set_ports(ports)?;
        self.program.set_limit(limit(rate))?;
        self.disarm()?;
        Ok(())
    }

    /// Changes the interfaces that are shielded.
    pub fn watch(&mut self, interfaces: Vec<String>) -> Result<(), KernelError> {
        self.program.watch(interfaces)?;
        if self.is_needed() { self.program.attach() } else { Ok(()) }
    }

    /// Takes out what is over, and returns how long it is until there is more to take out.
    pub fn expire(&mut self) -> Result<Option<Duration>, ShieldError> {
        let now = boot_time();
        let changes = self.ledger.expire(now);
        if !changes.is_empty() {
            self.apply(changes)?;
            self.disarm()?;
        }
        Ok(self.ledger.next_expiry().map(|until| Duration::from_nanos(until.saturating_sub(now))))
    }

    /// What the kernel counted since the maps were made.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        self.program.counters()
    }

    /// The interfaces that packets are dropped at now; none while there is nothing to drop.
    pub fn attached(&self) -> impl Iterator<Item = &str> {
        self.program.attached()
    }

    fn is_needed(&self) -> bool {
        self.limited || !self.ledger.is_empty()
    }

    fn disarm(&mut self) -> Result<(), KernelError> {
        if self.is_needed() { Ok(()) } else { self.program.detach() }
    }

    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), ShieldError> {
        let result = changes.into_iter().try_for_each(|change| match change {
            Change::Put(prefix, block) => self.program.put(prefix, &block),
            Change::Remove(prefix, counter) => {
                self.program.remove(prefix)?;
                self.program.reset_packets(counter)
            }
        });
        if result.is_err() {
            // The kernel's word counts: go on from what it has.
            self.resume()?;
        }
        Ok(result?)
    }

    /// Reads the ledger from the kernel.
    fn resume(&mut self) -> Result<(), KernelError> {
        let (ledger, faulty) = Ledger::adopt(self.program.blocks()?);
        self.ledger = ledger;
        for prefix in faulty {
            warn!(?prefix, "took out a block whose counter another one has");
            self.program.remove(prefix)?;
        }
        Ok(())
    }
}

/// Whether an IPv6 prefix holds the mapped IPv4 addresses, `::ffff:0:0/96`, without being one of them.
fn is_too_wide(net: &IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.prefix_len() < 96 && v6.contains(&std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()))
}

/// The first of these addresses that the prefix holds, whichever way it is written.
fn cut(net: &IpNet, spare: &[IpAddr]) -> Option<IpAddr> {
    let net = IpNet::from(Prefix::from(*net));
    spare.iter().find(|address| net.contains(&address.to_canonical())).copied()
}

fn limit(rate: u32) -> SynLimit {
    if rate == 0 {
        return SynLimit::default();
    }
    let interval = (1_000_000_000 / u64::from(rate)).max(1);
    SynLimit { interval, tolerance: interval * u64::from(rate - 1) }
}

fn to_boot_time(time: SystemTime) -> u64 {
    let ahead = time.duration_since(SystemTime::now()).unwrap_or_default();
    // One nanosecond less than forever at most.
    boot_time().saturating_add(u64::try_from(ahead.as_nanos()).unwrap_or(u64::MAX)).min(Block::FOREVER - 1)
}

fn from_boot_time(until: u64) -> SystemTime {
    let now = (SystemTime::now(), boot_time());
    match until.checked_sub(now.1) {
        Some(ahead) => now.0 + Duration::from_nanos(ahead),
        None => now.0 - Duration::from_nanos(now.1 - until),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn what_must_be_reached_is_found_in_either_spelling() {
        let spare = ["::ffff:192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap()];
        for (prefix, cuts) in [
            ("192.0.2.0/24", true),
            ("::ffff:192.0.2.0/120", true),
            ("192.0.3.0/24", false),
            ("2001:db8::/32", true),
            ("2001:db9::/32", false),
            ("0.0.0.0/0", true),
        ] {
            assert_eq!(cut(&net(prefix), &spare).is_some(), cuts, "{prefix}");
        }
    }

    #[test]
    fn ipv6_prefixes_that_hold_ipv4_are_too_wide() {
        for prefix in ["::/0", "::/1", "::/80"] {
            assert!(is_too_wide(&net(prefix)), "{prefix}");
        }
        for prefix in ["2000::/3", "::ffff:0:0/96", "0.0.0.0/0", "::1/128"] {
            assert!(!is_too_wide(&net(prefix)), "{prefix}");
        }
    }

    #[test]
    fn a_rate_is_a_schedule_with_a_second_of_slack() {
        assert_eq!(limit(0).interval, 0);
        assert_eq!(limit(1), SynLimit { interval: 1_000_000_000, tolerance: 0 });
        assert_eq!(limit(10), SynLimit { interval: 100_000_000, tolerance: 900_000_000 });
        assert_eq!(limit(u32::MAX).interval, 1, "not 0, which means no limit");
    }

    #[test]
    fn times_survive_the_way_to_the_kernels_clock_and_back() {
        let time = SystemTime::now() + Duration::from_hours(1);
        let back = from_boot_time(to_boot_time(time));
        let error = back.duration_since(time).unwrap_or_else(|error| error.duration());
        assert!(error < Duration::from_secs(1), "{error:?}");
        assert!(to_boot_time(SystemTime::UNIX_EPOCH) <= boot_time(), "over already");
    }
}
