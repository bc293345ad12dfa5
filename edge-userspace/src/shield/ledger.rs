//! Records which prefixes are blocked, by whom and until when, and computes the changes for the kernel's
//! trie. Pure.

use std::{
    collections::{HashMap, HashSet, hash_map},
    sync::Arc,
};

use edge_common::shield::{Block, MAX_BLOCKS};
use thiserror::Error;

use crate::kernel::Prefix;

/// All slots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no room for another prefix")]
pub struct Full;

/// A blocked prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The slot of its packet counter.
    pub(super) counter: u32,
    /// The end of the operator's block, in the kernel's clock; `None` if the operator does not block it.
    pub(super) until: Option<u64>,
    /// The list that names it.
    pub(super) list: Option<Arc<str>>,
}

impl Entry {
    fn block(&self, prefix: Prefix) -> Block {
        let operator = if self.until.is_some() { Block::OPERATOR } else { 0 };
        let list = if self.list.is_some() { Block::LIST } else { 0 };
        Block {
            until: self.until.unwrap_or(0),
            counter: self.counter,
            origins: operator | list,
            prefix_len: prefix.length().into(),
        }
    }
}

/// The changes that the trie must follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// This prefix, blocked so.
    Put(Prefix, Block),
    /// Not this prefix any more; its counter goes back to nothing.
    Remove(Prefix, u32),
}

/// The changes that a new set of lists requires.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replaced {
    pub(super) changes: Vec<Change>,
    pub(super) added: usize,
    pub(super) removed: usize,
    pub(super) left_out: usize,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    entries: HashMap<Prefix, Entry>,
    slots: Slots,
}

impl Ledger {
    /// The ledger that a trie represents, and its inconsistent prefixes.
    ///
    /// The kernel does not have the lists' names: until they are read again they appear as "list".
    pub(super) fn adopt(blocks: Vec<(Prefix, Block)>) -> (Self, Vec<Prefix>) {
        let mut used = HashSet::new();
        let mut faulty = Vec::new();
        let unnamed: Arc<str> = "list".into();
        let mut entries = HashMap::new();
        for (prefix, block) in blocks {
            if block.counter >= MAX_BLOCKS || !used.insert(block.counter) {
                faulty.push(prefix);
                continue;
            }
            let until = (block.origins & Block::OPERATOR != 0).then_some(block.until);
            let list = (block.origins & Block::LIST != 0).then(|| unnamed.clone());
            entries.insert(prefix, Entry { counter: block.counter, until, list });
        }
        (Self { entries, slots: Slots::around(&used) }, faulty)
    }

    /// The operator blocks a prefix, or changes for how long.
    pub(super) fn block(&mut self, prefix: Prefix, until: u64) -> Result<Change, Full> {
        let entry = self.entry(prefix)?;
        entry.until = Some(until);
        Ok(Change::Put(prefix, entry.block(prefix)))
    }

    /// The operator lets a prefix in; `None` when it was not the operator's.
    pub(super) fn unblock(&mut self, prefix: Prefix) -> Option<Change> {
        let entry = self.entries.get_mut(&prefix)?;
        entry.until.take()?;
        self.settle(prefix)
    }

    /// The lists name these prefixes and no others. With `is_partial`, the prefixes that they named before
    /// stay too.
    pub(super) fn replace_lists(
        &mut self,
        mut wanted: HashMap<Prefix, Arc<str>>,
        is_partial: bool,
    ) -> Replaced {
        let mut replaced = Replaced::default();
        let listed: Vec<Prefix> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.list.is_some())
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in listed {
            let Some(entry) = self.entries.get_mut(&prefix) else { continue };
            if let Some(list) = wanted.remove(&prefix) {
                entry.list = Some(list);
            } else if !is_partial {
                entry.list = None;
                replaced.removed += 1;
                replaced.changes.extend(self.settle(prefix));
            }
        }
        for (prefix, list) in wanted {
            let Ok(entry) = self.entry(prefix) else {
                replaced.left_out += 1;
                continue;
            };
            entry.list = Some(list);
            replaced.added += 1;
            replaced.changes.push(Change::Put(prefix, entry.block(prefix)));
        }
        replaced
    }

    /// Ends the operator's blocks whose time is over.
    pub(super) fn expire(&mut self, now: u64) -> Vec<Change> {
        let is_over = |entry: &Entry| entry.until.is_some_and(|until| until <= now);
        let over: Vec<Prefix> =
            self.entries.iter().filter(|(_, entry)| is_over(entry)).map(|(prefix, _)| *prefix).collect();
        over.into_iter().filter_map(|prefix| self.unblock(prefix)).collect()
    }

    /// When the next one ends, if one does.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        self.entries.values().filter_map(|entry| entry.until).filter(|&until| until != Block::FOREVER).min()
    }

    /// Until when the operator blocks a prefix; `None` when he does not.
    pub(super) fn operators(&self, prefix: Prefix) -> Option<u64> {
        self.entries.get(&prefix)?.until
    }

    /// The list that names a prefix.
    pub(super) fn list(&self, prefix: Prefix) -> Option<Arc<str>> {
        self.entries.get(&prefix)?.list.clone()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Prefix, &Entry)> {
        self.entries.iter().map(|(prefix, entry)| (*prefix, entry))
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry of a prefix, perhaps a new one that nobody wants yet.
    fn entry(&mut self, prefix: Prefix) -> Result<&mut Entry, Full> {
        Ok(match self.entries.entry(prefix) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(vacancy) => {
                vacancy.insert(Entry { counter: self.slots.take()?, until: None, list: None })
            }
        })
    }

    /// Keeps an entry that somebody still wants, and takes out one that nobody does.
    fn settle(&mut self, prefix: Prefix) -> Option<Change> {
        let entry = self.entries.get(&prefix)?;
        if entry.until.is_some() || entry.list.is_some() {
            return Some(Change::Put(prefix, entry.block(prefix)));
        }
        let counter = entry.counter;
        self.entries.remove(&prefix);
        self.slots.give_back(counter);
        Some(Change::Remove(prefix, counter))
    }
}

/// The packet counters that are free.
#[derive(Debug, Default)]
struct Slots {
    returned: Vec<u32>,
    untouched: u32,
}

impl Slots {
    fn around(used: &HashSet<u32>) -> Self {
        let untouched = used.iter().max().map_or(0, |last| last + 1);
        Self { returned: (0..untouched).filter(|slot| !used.contains(slot)).collect(), untouched }
    }

    fn take(&mut self) -> Result<u32, Full> {
        if let Some(slot) = self.returned.pop() {
            return Ok(slot);
        }
        if self.untouched == MAX_BLOCKS {
            return Err(Full);
        }
        self.untouched += 1;
        Ok(self.untouched - 1)
    }

    fn give_back(&mut self, slot: u32) {
        self.returned.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse::<IpNet>().unwrap().into()
    }

    fn lists(prefixes: &[&str]) -> HashMap<Prefix, Arc<str>> {
        prefixes.iter().map(|text| (prefix(text), "feed".into())).collect()
    }

    #[test]
    fn operator_and_list_hold_a_prefix_each_for_itself() {
        let mut ledger = Ledger::default();
        let both = prefix("192.0.2.0/24");
        let Change::Put(_, first) = ledger.block(both, 50).unwrap() else { panic!() };
        assert_eq!((first.origins, first.until, first.prefix_len), (Block::OPERATOR, 50, 120));
        let replaced = ledger.replace_lists(lists(&["192.0.2.0/24", "198.51.100.1/32"]), false);
        assert_eq!((replaced.added, replaced.removed, replaced.left_out), (2, 0, 0));
        assert_eq!(ledger.next_expiry(), Some(50));

        let Some(Change::Put(_, block)) = ledger.unblock(both) else { panic!("the list holds it") };
        assert_eq!((block.origins, block.counter), (Block::LIST, first.counter), "its count goes on");
        assert_eq!(ledger.unblock(both), None, "not the operator's any more");

        ledger.block(both, Block::FOREVER).unwrap();
        assert_eq!(ledger.next_expiry(), None);
        let replaced = ledger.replace_lists(lists(&[]), false);
        assert_eq!((replaced.added, replaced.removed, replaced.changes.len()), (0, 2, 2));
        assert!(ledger.unblock(both).is_some());
        assert!(ledger.is_empty());
    }

    #[test]
    fn what_is_over_is_taken_out_and_what_stays_the_same_is_not_written_again() {
        let mut ledger = Ledger::default();
        ledger.block(prefix("192.0.2.1/32"), 10).unwrap();
        ledger.block(prefix("192.0.2.2/32"), 20).unwrap();
        assert_eq!(ledger.expire(9), []);
        assert_eq!(ledger.expire(10), [Change::Remove(prefix("192.0.2.1/32"), 0)]);
        ledger.replace_lists(lists(&["10.0.0.0/8"]), false);
        assert_eq!(ledger.replace_lists(lists(&["10.0.0.0/8"]), false), Replaced::default());
        let replaced = ledger.replace_lists(lists(&["10.1.0.0/16"]), true);
        assert_eq!((replaced.added, replaced.removed), (1, 0));
        assert!(ledger.list(prefix("10.0.0.0/8")).is_some());
    }

    #[test]
    fn an_account_is_read_back_and_what_does_not_add_up_is_named() {
        let mut ledger = Ledger::default();
        let Change::Put(_, one) = ledger.block(prefix("192.0.2.1/32"), 10).unwrap() else { panic!() };
        ledger.replace_lists(lists(&["10.0.0.0/8"]), false);
        let mut blocks: Vec<_> = ledger.iter().map(|(prefix, entry)| (prefix, entry.block(prefix))).collect();
        blocks.sort_by_key(|(_, block)| block.counter);
        blocks.push((prefix("192.0.2.3/32"), one));
        blocks.push((prefix("192.0.2.4/32"), Block { counter: MAX_BLOCKS, ..one }));
        let (mut read, faulty) = Ledger::adopt(blocks);
        assert_eq!(faulty, [prefix("192.0.2.3/32"), prefix("192.0.2.4/32")]);
        assert_eq!(read.len(), 2);
        assert_eq!(
            read.replace_lists(lists(&["10.0.0.0/8"]), false),
            Replaced::default(),
            "named, not written"
        );
        assert_eq!(read.list(prefix("10.0.0.0/8")).as_deref(), Some("feed"));
    }

    #[test]
    fn a_full_table_says_so_and_has_room_again() {
        let mut ledger =
            Ledger { slots: Slots { returned: vec![], untouched: MAX_BLOCKS - 1 }, ..Ledger::default() };
        ledger.block(prefix("192.0.2.1/32"), 10).unwrap();
        assert_eq!(ledger.block(prefix("192.0.2.2/32"), 10), Err(Full));
        assert_eq!(ledger.replace_lists(lists(&["10.0.0.0/8"]), false).left_out, 1);
        ledger.unblock(prefix("192.0.2.1/32")).unwrap();
        ledger.block(prefix("192.0.2.2/32"), 10).unwrap();
    }

    proptest! {
        /// After any operations, the trie that follows the changes holds exactly the ledger, and no counter
        /// twice.
        #[test]
        fn the_trie_that_follows_equals_the_ledger(steps in prop::collection::vec((0_u8..4, 0_u8..6, 0_u64..9), 0..60)) {
            let mut ledger = Ledger::default();
            let mut trie = HashMap::new();
            for (step, which, time) in steps {
                let chosen = prefix(&format!("10.{which}.0.0/16"));
                let changes = match step {
                    0 => vec![ledger.block(chosen, time).unwrap()],
                    1 => ledger.unblock(chosen).into_iter().collect(),
                    2 => ledger.expire(time),
                    _ => {
                        let named: Vec<_> = (0..which).map(|n| format!("10.{}.0.0/16", (u64::from(n) + time) % 6)).collect();
                        let named: Vec<_> = named.iter().map(String::as_str).collect();
                        ledger.replace_lists(lists(&named), false).changes
                    }
                };
                for change in changes {
                    match change {
                        Change::Put(prefix, block) => { trie.insert(prefix, block); }
                        Change::Remove(prefix, counter) => prop_assert_eq!(trie.remove(&prefix).map(|b: Block| b.counter), Some(counter)),
                    }
                }
                let expected: HashMap<_, _> = ledger.iter().map(|(prefix, entry)| (prefix, entry.block(prefix))).collect();
                prop_assert_eq!(&trie, &expected);
                let counters: HashSet<_> = trie.values().map(|block| block.counter).collect();
                prop_assert_eq!(counters.len(), trie.len());
            }
        }
    }
}
