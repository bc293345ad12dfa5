//! Blocked sources: the operator's blocks, lists of prefixes, and sources that connect too fast. This module
//! decides. In the kernel [`ShieldProgram`] drops their packets before the stack. [`BlockedSources`] checks
//! again at accept, for devices that take no program and machines without XDP.
//!
//! The program is attached only while there is something to drop: it costs time even for packets that pass,
//! and several drivers disable offloads for it.

#![forbid(unsafe_code)]

mod devices;
mod error;
mod ledger;
mod list;
mod sources;
mod spare;
mod tend;
mod times;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use edge_common::shield::{Block, Counters};
use ipnet::IpNet;
use tracing::warn;

pub use self::{
    devices::{Devices, Guard},
    error::ShieldError,
    list::Lists,
    sources::BlockedSources,
    spare::{Vital, cut, forbid_sweeping},
    tend::tend,
};
use self::{
    ledger::{Change, Ledger},
    spare::{is_too_wide, one},
    times::{from_boot_time, limit, to_boot_time},
};
use crate::kernel::{KernelError, Prefix, ShieldProgram, boot_time};

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

/// The result of loading lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Prefixes that the lists name now and did not before.
    pub added: usize,
    /// Prefixes that they named before and do not now.
    pub removed: usize,
    /// Prefixes left out because they would cut off what must stay reachable, and what that is.
    pub spared: Vec<(IpNet, String)>,
    /// Prefixes left out for want of room.
    pub left_out: usize,
}

/// The shield. Dropping it leaves the kernel as it is: the next daemon takes it over.
#[derive(Debug)]
pub struct Shield {
    /// `None` where this machine has no XDP: connections are refused at accept alone then.
    program: Option<ShieldProgram>,
    ledger: Ledger,
    limited: bool,
    devices: Devices,
    sources: Arc<BlockedSources>,
}

/// The operator's setting for a prefix at some moment, to restore it.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    prefix: Prefix,
    until: Option<u64>,
}

impl Shield {
    /// Takes the program with everything that an earlier daemon had blocked.
    pub fn new(program: ShieldProgram) -> Result<Self, KernelError> {
        let mut shield = Self { program: Some(program), ..Self::at_accept() };
        shield.resume()?;
        Ok(shield)
    }

    /// A shield for a machine without XDP: it drops no packets.
    pub fn at_accept() -> Self {
        Self {
            program: None,
            ledger: Ledger::default(),
            limited: false,
            devices: Devices::default(),
            sources: Arc::default(),
        }
    }

    /// The blocked sources, for the accept loops.
    pub fn sources(&self) -> &Arc<BlockedSources> {
        &self.sources
    }

    /// Blocks a prefix until a time, or until it is unblocked. Blocking it again changes the time.
    ///
    /// `spare` are the addresses that must not be cut off; empty to allow that.
    pub fn block(
        &mut self,
        net: IpNet,
        until: Option<SystemTime>,
        spare: &[Vital],
    ) -> Result<(), ShieldError> {
        if is_too_wide(&net) {
            return Err(ShieldError::TooWide(net));
        }
        if let Some(vital) = cut(&net, spare) {
            return Err(ShieldError::Cuts { net, vital: vital.clone() });
        }
        let change = self.ledger.block(net.into(), until.map_or(Block::FOREVER, to_boot_time))?;
        self.apply([change])?;
        self.arm();
        Ok(())
    }

    /// Unblocks a prefix that the operator blocked. If a list names it too, it stays blocked; returns the
    /// name of that list.
    pub fn unblock(&mut self, net: IpNet) -> Result<Option<Arc<str>>, ShieldError> {
        let prefix = net.into();
        let list = self.ledger.list(prefix);
        match (self.ledger.unblock(prefix), &list) {
            (Some(change), _) => self.apply([change])?,
            (None, Some(list)) => return Err(ShieldError::Listed { net, list: list.clone() }),
            (None, None) => return Err(ShieldError::NotBlocked(net)),
        }
        self.arm();
        Ok(list)
    }

    /// The operator's current setting for a prefix, for [`Self::go_back`].
    pub fn before(&self, net: IpNet) -> Before {
        let prefix = net.into();
        Before { prefix, until: self.ledger.operators(prefix) }
    }

    /// Takes back what the operator said of a prefix since [`Self::before`].
    pub fn go_back(&mut self, Before { prefix, until }: Before) -> Result<(), ShieldError> {
        let change = match until {
            Some(until) => Some(self.ledger.block(prefix, until)?),
            None => self.ledger.unblock(prefix),
        };
        self.apply(change)?;
        self.arm();
        Ok(())
    }

    /// Makes these the operator's only blocks, whatever an earlier daemon left: it may have died before a
    /// change reached the disk. Returns those that could not be blocked.
    pub fn restore(&mut self, blocks: &[(IpNet, Option<SystemTime>)]) -> Vec<(IpNet, ShieldError)> {
        let wanted = |prefix: Prefix| blocks.iter().any(|(net, _)| Prefix::from(*net) == prefix);
        let stray: Vec<Prefix> = self
            .ledger
            .iter()
            .filter(|(prefix, entry)| entry.until.is_some() && !wanted(*prefix))
            .map(|(prefix, _)| prefix)
            .collect();
        let mut failed = Vec::new();
        for prefix in stray {
            let change = self.ledger.unblock(prefix);
            failed.extend(self.apply(change).err().map(|error| (prefix.into(), error)));
        }
        for (net, until) in blocks {
            failed.extend(self.block(*net, *until, &[]).err().map(|error| (*net, error)));
        }
        // Only now that the same is in force here.
        if let Some(program) = &mut self.program
            && let Err(error) = program.succeed()
        {
            warn!(error = error.words(), "the shield of another version stays where it is");
        }
        self.arm();
        failed
    }

    /// Everything blocked, sorted.
    pub fn blocked(&self) -> Result<Vec<Blocked>, KernelError> {
        let mut blocked = Vec::with_capacity(self.ledger.len());
        for (prefix, entry) in self.ledger.iter() {
            let until = entry.until.filter(|&until| until != Block::FOREVER).map(from_boot_time);
            let list = if entry.until.is_some() { None } else { entry.list.clone() };
            let packets = self.program.as_ref().map_or(Ok(0), |program| program.packets(entry.counter))?;
            blocked.push(Blocked { net: prefix.into(), until, packets, list });
        }
        blocked.sort_by_key(|blocked| blocked.net);
        Ok(blocked)
    }

    /// Blocks the prefixes of these lists, beside the operator's blocks. Each prefix comes with the name of
    /// its list; a prefix that contains an address of `spare` is left out.
    ///
    /// Unblocks prefixes that the previous lists named and these do not, unless `is_partial`.
    pub fn load_prefixes(
        &mut self,
        prefixes: impl IntoIterator<Item = (IpNet, Arc<str>)>,
        spare: &[Vital],
        is_partial: bool,
    ) -> Result<Loaded, ShieldError> {
        let mut loaded = Loaded::default();
        let wanted = prefixes.into_iter().filter_map(|(net, list)| {
            let vital = cut(&net, spare);
            if is_too_wide(&net) || vital.is_some() {
                let why = vital.map(|vital| format!("it holds {}: {}", one(&vital.net), vital.what));
                loaded.spared.push((net, why.unwrap_or_else(|| "it holds all of IPv4".to_owned())));
                return None;
            }
            Some((Prefix::from(net), list))
        });
        let outcome = self.ledger.replace_lists(wanted.collect(), is_partial);
        let is_changed = outcome.added + outcome.removed > 0;
        self.change(outcome.changes)?;
        if is_changed {
            self.publish_lists();
        }
        self.arm();
        Ok(Loaded { added: outcome.added, removed: outcome.removed, left_out: outcome.left_out, ..loaded })
    }

    /// Lets each source (IPv4 address or IPv6 /64) open this many connections per second to these ports, and
    /// as many at once after a pause; 0 means no limit. `false` if that has no effect, because no program is
    /// loaded.
    pub fn set_syn_rate(
        &mut self,
        rate: u32,
        ports: impl IntoIterator<Item = u16>,
    ) -> Result<bool, ShieldError> {
        let Some(program) = &mut self.program else { return Ok(rate == 0) };
        if rate > 0 {
            // Without a limit nothing reads the ports, and writing them takes thousands of words.
            program.set_ports(ports)?;
        }
        program.set_limit(limit(rate))?;
        self.limited = rate > 0;
        self.arm();
        Ok(true)
    }

    /// Follows the devices of the machine: attaches to new ones that belong to it, and detaches from the
    /// others.
    pub fn watch(&mut self, devices: Devices) {
        self.devices = devices;
        if let Some(program) = &mut self.program
            && let Err(error) = program.watch(self.devices.watched.clone())
        {
            warn!("the shield cannot be taken off a device: {}", error.words());
        }
        self.arm();
    }

    /// How blocked sources are kept out, device by device; none while nobody is blocked.
    pub fn guards(&self) -> Vec<Guard> {
        if !self.is_needed() {
            return Vec::new();
        }
        let others = self.devices.others.iter();
        let others = others.map(|(device, reason)| Guard {
            device: Arc::clone(device),
            hook: None,
            reason: (*reason).to_owned(),
        });
        let mut guards: Vec<Guard> = match &self.program {
            Some(program) => program
                .devices()
                .map(|(device, hook)| Guard {
                    device: device.name.as_str().into(),
                    hook: hook.ok(),
                    reason: hook.err().map(str::to_owned).unwrap_or_default(),
                })
                .collect(),
            None => self
                .devices
                .watched
                .iter()
                .map(|device| Guard {
                    device: device.name.as_str().into(),
                    hook: None,
                    reason: "the shield's programs are not loaded".to_owned(),
                })
                .collect(),
        };
        guards.extend(others);
        guards
    }

    /// Takes out what is over, and returns how long it is until there is more to take out.
    pub fn expire(&mut self) -> Result<Option<Duration>, ShieldError> {
        let now = boot_time();
        let changes = self.ledger.expire(now);
        if !changes.is_empty() {
            self.apply(changes)?;
            self.arm();
        }
        Ok(self.ledger.next_expiry().map(|until| Duration::from_nanos(until.saturating_sub(now))))
    }

    /// The kernel's counters since the maps were created.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        self.program.as_ref().map_or_else(|| Ok(Counters::default()), ShieldProgram::counters)
    }

    /// The devices that packets are dropped at now; none while there is nothing to drop.
    pub fn attached(&self) -> impl Iterator<Item = &str> {
        let devices = self.program.iter().flat_map(ShieldProgram::devices);
        devices.filter(|(_, hook)| hook.is_ok()).map(|(device, _)| &*device.name)
    }

    fn is_needed(&self) -> bool {
        self.limited || !self.ledger.is_empty()
    }

    /// Attaches the program to its devices while there is something to drop, and detaches it otherwise.
    fn arm(&mut self) {
        let is_needed = self.is_needed();
        let Some(program) = &mut self.program else { return };
        if is_needed {
            program.attach();
        } else if let Err(error) = program.detach() {
            // It drops nothing where it is left.
            warn!("the shield cannot be taken off: {}", error.words());
        }
    }

    /// Makes changes of what the operator wants.
    fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), ShieldError> {
        self.change(changes)?;
        self.publish_operators();
        Ok(())
    }

    /// Makes changes, all of them, or goes on from what the kernel has by then.
    fn change(&mut self, changes: impl IntoIterator<Item = Change>) -> Result<(), ShieldError> {
        let Some(program) = &mut self.program else { return Ok(()) };
        let result = changes.into_iter().try_for_each(|change| match change {
            Change::Put(prefix, block) => program.put(prefix, &block),
            Change::Remove(prefix, counter) => {
                program.remove(prefix)?;
                program.reset_packets(counter)
            }
        });
        if result.is_err() {
            self.resume()?;
        }
        Ok(result?)
    }

    /// Reads the ledger from the kernel.
    fn resume(&mut self) -> Result<(), KernelError> {
        if let Some(program) = &mut self.program {
            let (ledger, faulty) = Ledger::adopt(program.blocks()?);
            self.ledger = ledger;
            for prefix in faulty {
                warn!(?prefix, "took out a block whose counter another one has");
                program.remove(prefix)?;
            }
        }
        self.publish_operators();
        self.publish_lists();
        Ok(())
    }

    fn publish_operators(&self) {
        self.sources
            .set_operator(self.ledger.iter().filter_map(|(prefix, entry)| Some((prefix, entry.until?))));
    }

    fn publish_lists(&self) {
        let listed = self.ledger.iter().filter(|(_, entry)| entry.list.is_some());
        self.sources.set_lists(listed.map(|(prefix, _)| prefix));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    /// The blocks on a machine without XDP, and their ends.
    fn held(shield: &Shield) -> Vec<(String, Option<SystemTime>)> {
        shield.blocked().unwrap().into_iter().map(|block| (block.net.to_string(), block.until)).collect()
    }

    #[test]
    fn without_a_program_blocked_sources_are_known_at_accept() {
        let mut shield = Shield::at_accept();
        let sources = Arc::clone(shield.sources());
        let hold = |text: &str| sources.hold(text.parse().unwrap());
        shield.block(net("192.0.2.0/24"), None, &[]).unwrap();
        shield.load_prefixes([(net("198.51.100.7/32"), "feed".into())], &[], false).unwrap();
        assert!(hold("192.0.2.9") && hold("198.51.100.7") && !hold("198.51.100.8"));
        let devices = vec![crate::kernel::Interface {
            name: "eth0".into(),
            is_up: true,
            framing: crate::kernel::Framing::Ethernet,
            addresses: vec![[192, 0, 2, 1].into()],
            ..Default::default()
        }];
        shield.watch(Devices::sort(devices, &BTreeSet::new()));
        let guards = shield.guards();
        assert_eq!((&*guards[0].device, guards[0].hook), ("eth0", None));
        shield.unblock(net("192.0.2.0/24")).unwrap();
        shield.load_prefixes([], &[], false).unwrap();
        assert!(!hold("192.0.2.9") && !hold("198.51.100.7"));
        assert_eq!(shield.guards(), [], "nobody is blocked");
        assert!(!shield.set_syn_rate(5, [443]).unwrap(), "that takes the kernel");
    }

    #[test]
    fn a_word_that_is_taken_back_leaves_what_was_before() {
        let mut shield = Shield::at_accept();
        let one = net("192.0.2.1/32");
        let new = shield.before(one);
        shield.block(one, None, &[]).unwrap();
        shield.go_back(new).unwrap();
        assert_eq!(held(&shield), []);
        shield.block(one, None, &[]).unwrap();
        let again = shield.before(one);
        shield.block(one, Some(SystemTime::now() + Duration::from_mins(1)), &[]).unwrap();
        assert!(held(&shield)[0].1.is_some());
        shield.go_back(again).unwrap();
        assert_eq!(held(&shield), [("192.0.2.1/32".into(), None)]);
        let removed = shield.before(one);
        shield.unblock(one).unwrap();
        shield.go_back(removed).unwrap();
        assert_eq!(held(&shield), [("192.0.2.1/32".into(), None)]);
        assert!(shield.sources().hold([192, 0, 2, 1].into()));
    }

    #[test]
    fn what_is_on_disk_is_what_the_operator_blocks() {
        let mut shield = Shield::at_accept();
        for known in ["192.0.2.1/32", "192.0.2.2/32"] {
            shield.block(net(known), None, &[]).unwrap();
        }
        shield.load_prefixes([(net("192.0.2.1/32"), "feed".into())], &[], false).unwrap();
        let until = SystemTime::now() + Duration::from_mins(1);
        let failed = shield.restore(&[(net("192.0.2.2/32"), Some(until)), (net("192.0.2.3/32"), None)]);
        assert_eq!(failed.len(), 0);
        let blocked = shield.blocked().unwrap();
        let lists: Vec<_> = blocked.iter().map(|block| block.list.is_some()).collect();
        assert_eq!(lists, [true, false, false], "a list goes on blocking the first");
        assert!(blocked[1].until.is_some() && blocked[2].until.is_none());
    }
}
