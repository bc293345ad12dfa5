//! The edge's resources before the day and after it, and how far the two may differ. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Something that is counted before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// Resident memory of edged, bytes.
    Resident,
    /// Resident memory of its keeper, bytes.
    KeeperResident,
    /// Kernel memory of the daemon's cgroup (sockets, maps, slab), bytes.
    KernelMemory,
    /// Open files of edged.
    Descriptors,
    /// Open files of its keeper.
    KeeperDescriptors,
    /// Threads of edged.
    Threads,
    /// TCP sockets on the edge, but for listeners and TIME-WAIT.
    Sockets,
    /// Connections that edged lists.
    Connections,
    /// Connections that home's services have.
    AtHome,
    /// Established TCP connections that connection tracking knows on the edge.
    Tracked,
    /// Entries of the flow table; two a flow.
    FlowEntries,
    /// Hand-overs in the kernel's notes.
    Pending,
    /// Bytes of unfinished hellos.
    HelloMemory,
    /// Blocks.
    Blocks,
    /// Routes.
    Routes,
    /// Processes on the edge.
    Processes,
    /// How many connections of one source to one backend become flows: half of the free ports. A lower number
    /// is a leak.
    FreePorts,
}

const MIB: u64 = 1 << 20;

impl Item {
    /// How far the figure may be off in the bad direction, and why.
    const fn tolerance(self) -> u64 {
        match self {
            // Arenas of the allocator, and the pools of pipes and buffers that a busy day leaves.
            Self::Resident => 24 * MIB,
            Self::KeeperResident => 4 * MIB,
            // Per-processor caches of the kernel.
            Self::KernelMemory => 16 * MIB,
            // Pipes for splice, which threads keep for the next stream.
            Self::Descriptors => 64,
            // Blocking threads come and go; a health check or a call of edgectl may be in progress.
            Self::KeeperDescriptors | Self::Threads | Self::Sockets | Self::Tracked => 4,
            Self::Connections
            | Self::AtHome
            | Self::FlowEntries
            | Self::Pending
            | Self::HelloMemory
            | Self::Blocks
            | Self::Routes
            | Self::Processes
            | Self::FreePorts => 0,
        }
    }

    /// Whether more is better.
    fn is_stock(self) -> bool {
        self == Self::FreePorts
    }

    /// Its name in the report.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Resident => "resident memory, KiB",
            Self::KeeperResident => "keeper's memory, KiB",
            Self::KernelMemory => "kernel memory, KiB",
            Self::Descriptors => "descriptors",
            Self::KeeperDescriptors => "keeper's descriptors",
            Self::Threads => "threads",
            Self::Sockets => "sockets",
            Self::Connections => "connections listed",
            Self::AtHome => "connections at home",
            Self::Tracked => "conntrack, established",
            Self::FlowEntries => "flow table entries",
            Self::Pending => "pending hand-overs",
            Self::HelloMemory => "hello memory, bytes",
            Self::Blocks => "blocks",
            Self::Routes => "routes",
            Self::Processes => "processes",
            Self::FreePorts => "free ports, half of",
        }
    }

    /// The divisor for its figures in the report.
    const fn unit(self) -> u64 {
        match self {
            Self::Resident | Self::KeeperResident | Self::KernelMemory => 1024,
            _ => 1,
        }
    }
}

/// The figures of one moment. Figures that could not be read are missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// The numbers.
    pub counts: BTreeMap<Item, u64>,
    /// The pins, by path.
    pub pins: BTreeSet<String>,
}

/// A line of the balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The counted resource.
    pub item: Item,
    /// Before the day.
    pub before: u64,
    /// After the day, `None` where it could not be counted any more.
    pub after: Option<u64>,
}

impl Line {
    /// Whether it came back to what it was.
    pub fn is_even(&self) -> bool {
        let Some(after) = self.after else { return false };
        let worse = if self.item.is_stock() {
            self.before.saturating_sub(after)
        } else {
            after.saturating_sub(self.before)
        };
        worse <= self.item.tolerance()
    }

    /// The numbers before and after and the tolerance, in the report's unit.
    pub fn shown(&self) -> (u64, Option<u64>, u64) {
        let unit = self.item.unit();
        (self.before / unit, self.after.map(|after| after / unit), self.item.tolerance() / unit)
    }
}

/// The balance of a day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// A line for each figure.
    pub lines: Vec<Line>,
    /// Pins that were not there before, and those that have gone.
    pub pins: Vec<String>,
}

impl Balance {
    /// Compares.
    pub fn of(before: &Figures, after: &Figures) -> Self {
        let line = |(&item, &before)| Line { item, before, after: after.counts.get(&item).copied() };
        let pins = after
            .pins
            .difference(&before.pins)
            .map(|pin| format!("+ {pin}"))
            .chain(before.pins.difference(&after.pins).map(|pin| format!("- {pin}")))
            .collect();
        Self { lines: before.counts.iter().map(line).collect(), pins }
    }

    /// Whether everything came back to what it was.
    pub fn is_even(&self) -> bool {
        self.pins.is_empty() && self.lines.iter().all(Line::is_even)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(counts: &[(Item, u64)], pins: &[&str]) -> Figures {
        Figures {
            counts: counts.iter().copied().collect(),
            pins: pins.iter().map(|&pin| pin.to_owned()).collect(),
        }
    }

    #[test]
    fn what_comes_back_is_even() {
        let before = figures(&[(Item::Resident, 30 * MIB), (Item::FlowEntries, 0)], &["v3/flow/FLOWS"]);
        let mut after = before.clone();
        assert!(Balance::of(&before, &after).is_even());
        after.counts.insert(Item::Resident, 31 * MIB);
        assert!(Balance::of(&before, &after).is_even(), "within the tolerance");
        after.counts.insert(Item::Resident, 10 * MIB);
        assert!(Balance::of(&before, &after).is_even(), "less is no leak");
    }

    #[test]
    fn every_leak_is_found() {
        let before: Vec<_> = [
            Item::Resident,
            Item::Descriptors,
            Item::Sockets,
            Item::Tracked,
            Item::FlowEntries,
            Item::Pending,
            Item::AtHome,
        ]
        .map(|item| (item, 10))
        .into();
        for &(item, count) in &before {
            let mut after = before.clone();
            after.iter_mut().filter(|(other, _)| *other == item).for_each(|entry| {
                entry.1 = count + item.tolerance() + 1;
            });
            let balance = Balance::of(&figures(&before, &[]), &figures(&after, &[]));
            let uneven: Vec<_> =
                balance.lines.iter().filter(|line| !line.is_even()).map(|line| line.item).collect();
            assert_eq!(uneven, [item]);
        }
    }

    #[test]
    fn ports_are_a_stock() {
        let of = |before, after| {
            Balance::of(
                &figures(&[(Item::FreePorts, before)], &[]),
                &figures(&[(Item::FreePorts, after)], &[]),
            )
        };
        assert!(of(256, 256).is_even() && of(250, 256).is_even());
        assert!(!of(256, 255).is_even());
    }

    #[test]
    fn pins_and_what_is_missing_count() {
        let before = figures(&[(Item::Sockets, 0)], &["a", "b"]);
        let after = figures(&[], &["b", "c"]);
        let balance = Balance::of(&before, &after);
        assert_eq!(balance.pins, ["+ c", "- a"]);
        assert!(!balance.lines[0].is_even(), "it could not be counted any more");
    }
}
