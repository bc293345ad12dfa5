//! The blocked sources for the accept loops: a snapshot that is read without a lock and replaced as a whole.
//!
//! This check backs up the programs in the kernel. It refuses connections that arrive through a device which
//! takes no program, or which has just appeared.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use edge_common::shield::Block;

use crate::kernel::{Prefix, boot_time};

/// The sources that are blocked now.
#[derive(Debug, Default)]
pub struct BlockedSources {
    // Apart, so that a word of the operator does not cost a long list anew.
    operator: ArcSwap<Ranges>,
    lists: ArcSwap<Ranges>,
}

impl BlockedSources {
    /// Whether connections of this address are refused now: O(log n).
    pub fn hold(&self, address: IpAddr) -> bool {
        let (operator, lists) = (self.operator.load(), self.lists.load());
        if operator.0.is_empty() && lists.0.is_empty() {
            return false;
        }
        let number = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        lists.until(number).max(operator.until(number)).is_some_and(|until| is_ahead(until, boot_time()))
    }

    /// The operator blocks these, each until a time of `CLOCK_BOOTTIME` in nanoseconds.
    pub(super) fn set_operator(&self, blocks: impl IntoIterator<Item = (Prefix, u64)>) {
        self.operator.store(Arc::new(Ranges::of(blocks)));
    }

    /// Lists name these.
    pub(super) fn set_lists(&self, prefixes: impl IntoIterator<Item = Prefix>) {
        let blocks = prefixes.into_iter().map(|prefix| (prefix, Block::FOREVER));
        self.lists.store(Arc::new(Ranges::of(blocks)));
    }
}

/// As the program in the kernel has it.
fn is_ahead(until: u64, now: u64) -> bool {
    until == Block::FOREVER || now < until
}

/// Ranges of addresses that do not meet, in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges(Box<[Range]>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u128,
    last: u128,
    /// The latest end of all blocks that hold it.
    until: u64,
}

impl Ranges {
    /// Of two prefixes one holds the other, or they do not meet: what is open forms a stack.
    fn of(blocks: impl IntoIterator<Item = (Prefix, u64)>) -> Self {
        let mut blocks: Vec<Range> = blocks
            .into_iter()
            .map(|(prefix, until)| {
                let (first, last) = prefix.range();
                Range { first, last, until }
            })
            .collect();
        // The one that holds another goes before it.
        blocks.sort_unstable_by_key(|block| (block.first, std::cmp::Reverse(block.last)));
        let mut ranges = Growing::default();
        let mut open: Vec<Range> = Vec::new();
        for mut block in blocks {
            while let Some(done) = open.pop_if(|outer| outer.last < block.first) {
                ranges.extend_to(done.last, done.until);
            }
            if let Some(outer) = open.last() {
                if let Some(before) = block.first.checked_sub(1) {
                    ranges.extend_to(before, outer.until);
                }
                block.until = block.until.max(outer.until);
            }
            ranges.next = Some(block.first);
            open.push(block);
        }
        while let Some(done) = open.pop() {
            ranges.extend_to(done.last, done.until);
        }
        Self(ranges.done.into())
    }

    /// Until when the block of an address holds, if there is one.
    fn until(&self, address: u128) -> Option<u64> {
        let behind = self.0.partition_point(|range| range.first <= address);
        let range = self.0.get(behind.checked_sub(1)?)?;
        (address <= range.last).then_some(range.until)
    }
}

#[derive(Default)]
struct Growing {
    done: Vec<Range>,
    /// The first address that is not yet in a range; `None` behind the last of all.
    next: Option<u128>,
}

impl Growing {
    /// A range from where the last one ended, if that leaves any address.
    fn extend_to(&mut self, last: u128, until: u64) {
        let Some(first) = self.next.filter(|first| *first <= last) else { return };
        match self.done.last_mut() {
            Some(range) if range.until == until && range.last.checked_add(1) == Some(first) => {
                range.last = last;
            }
            _ => self.done.push(Range { first, last, until }),
        }
        self.next = last.checked_add(1);
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn sources_are_held_in_either_spelling_until_their_time_is_over() {
        let sources = BlockedSources::default();
        let hold = |text: &str| sources.hold(text.parse().unwrap());
        assert!(!hold("192.0.2.1"));
        sources.set_operator([
            (net("192.0.2.0/24").into(), Block::FOREVER),
            (net("198.51.100.1/32").into(), boot_time()),
            (net("2001:db8::/32").into(), boot_time() + 3_600_000_000_000),
        ]);
        assert!(hold("192.0.2.1") && hold("::ffff:192.0.2.255") && hold("2001:db8:ffff::1"));
        assert!(!hold("192.0.3.0") && !hold("198.51.100.1") && !hold("2001:db9::"));
        sources.set_lists([net("198.51.100.0/24").into()]);
        assert!(hold("198.51.100.1") && hold("192.0.2.1"));
        sources.set_operator([]);
        assert!(!hold("192.0.2.1") && hold("198.51.100.1"));
    }

    #[test]
    fn neighbours_become_one_range_and_the_last_address_has_its_place() {
        let ranges = |texts: &[&str]| Ranges::of(texts.iter().map(|text| (net(text).into(), 1))).0.len();
        assert_eq!(ranges(&["10.0.0.0/9", "10.128.0.0/9", "10.1.0.0/16"]), 1);
        assert_eq!(ranges(&["10.0.0.0/9", "11.0.0.0/9"]), 2);
        let last = net("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128");
        let all = Ranges::of([(net("ff00::/8").into(), 1), (last.into(), 2)]);
        assert_eq!((all.until(u128::MAX), all.until(u128::MAX - 1)), (Some(2), Some(1)));
    }

    proptest! {
        /// Each address is held until the latest end of the prefixes that hold it.
        #[test]
        fn ranges_say_what_the_prefixes_say(
            blocks in prop::collection::vec((0_u32..64, 26_u8..=32, 1_u64..5), 0..12),
            address in 0_u32..70,
        ) {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 | address);
            let blocks: Vec<(IpNet, u64)> = blocks
                .into_iter()
                .map(|(host, length, until)| {
                    let host = std::net::Ipv4Addr::from(0x0a00_0000 | host);
                    (ipnet::Ipv4Net::new(host, length).unwrap().trunc().into(), until)
                })
                .collect();
            let expected =
                blocks.iter().filter(|(net, _)| net.contains(&IpAddr::V4(address))).map(|(_, until)| *until).max();
            let ranges = Ranges::of(blocks.iter().map(|(net, until)| (Prefix::from(*net), *until)));
            prop_assert_eq!(ranges.until(address.to_ipv6_mapped().to_bits()), expected);
            prop_assert!(ranges.0.is_sorted_by(|a, b| a.last < b.first));
        }
    }
}
