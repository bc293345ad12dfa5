//! Accounts for the memory of clients whose hello is incomplete or whose first bytes have not reached the
//! backend: in total, and per source. Pure.
//!
//! When memory runs out, an unfinished hello must go: the oldest of the source that holds the most. A real
//! client finishes within a round trip, so this hits those that hold on, and a source that takes much pays
//! for it itself.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use super::Connection;
use crate::{datapath::StopReason, lock::lock, source::source_of};

/// The part of the memory that one source may have: one in so many.
const SHARE: usize = 8;

/// The memory of all first bytes.
#[derive(Debug)]
pub struct HelloMemory(Mutex<Ledger<Weak<Connection>>>);

/// One connection's share; released when dropped.
#[derive(Debug)]
pub(super) struct Held {
    memory: Arc<HelloMemory>,
    connection: Weak<Connection>,
    source: IpAddr,
    id: u64,
}

impl HelloMemory {
    /// `limit`: bytes for all together.
    pub fn new(limit: usize) -> Self {
        Self(Mutex::new(Ledger::new(limit)))
    }

    /// Changes the limit; what is held above a lower one is given back in its time.
    pub fn set_limit(&self, limit: usize) {
        self.ledger().limit = limit;
    }

    /// Bytes held now, and how many may be.
    pub fn usage(&self) -> (usize, usize) {
        let ledger = self.ledger();
        (ledger.total(), ledger.limit)
    }

    /// Nothing yet, for a connection of this client.
    pub(super) fn hold(self: &Arc<Self>, connection: &Arc<Connection>, client: IpAddr) -> Held {
        Held {
            memory: Arc::clone(self),
            connection: Arc::downgrade(connection),
            source: source_of(client),
            id: connection.id,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger<Weak<Connection>>> {
        lock(&self.0)
    }
}

impl Held {
    /// Sets the number of bytes held; `false` if there is no room. Others may be ordered to stop.
    pub(super) fn set(&self, bytes: usize) -> bool {
        let mut evicted = Vec::new();
        let is_granted =
            self.memory.ledger().set(self.id, self.source, bytes, &self.connection, &mut evicted);
        // Behind the lock: an order wakes a task.
        for connection in evicted.iter().filter_map(Weak::upgrade) {
            connection.stop.order(StopReason::HelloMemory);
        }
        is_granted
    }

    /// The hello is complete: its memory stays claimed until it is released. `false` if it was already
    /// ordered to stop.
    pub(super) fn finish(&self) -> bool {
        self.memory.ledger().finish(self.id)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.ledger().release(self.id);
    }
}

/// The sources and their shares. `T` is the handle through which a connection is ordered to stop.
#[derive(Debug)]
struct Ledger<T> {
    limit: usize,
    holders: HashMap<u64, Holder<T>>,
    sources: HashMap<IpAddr, Account>,
    /// Sources by the bytes of their unfinished hellos.
    heaviest: BTreeSet<(usize, IpAddr)>,
    /// Bytes held, without those that are being given back.
    kept: usize,
    /// Bytes of those that had to give way and have not done so yet.
    leaving: usize,
}

#[derive(Debug)]
struct Holder<T> {
    source: IpAddr,
    bytes: usize,
    stage: Stage,
    connection: T,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Unfinished,
    Finished,
    Leaving,
}

/// The memory that a source holds.
#[derive(Debug, Default)]
struct Account {
    unfinished: usize,
    finished: usize,
    /// The numbers of its unfinished hellos: the lowest is the oldest.
    hellos: BTreeSet<u64>,
}

impl<T: Clone> Ledger<T> {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            holders: HashMap::new(),
            sources: HashMap::new(),
            heaviest: BTreeSet::new(),
            kept: 0,
            leaving: 0,
        }
    }

    fn total(&self) -> usize {
        self.kept + self.leaving
    }

    /// Has a connection hold so many bytes, and names those that have to give way for it.
    fn set(&mut self, id: u64, source: IpAddr, bytes: usize, connection: &T, evicted: &mut Vec<T>) -> bool {
        let held = match self.holders.get(&id) {
            // It has to give way itself.
            Some(holder) if holder.stage == Stage::Leaving => return false,
            Some(holder) => holder.bytes,
            None => 0,
        };
        let more = bytes.saturating_sub(held);
        let share = self.limit / SHARE;
        while more > 0 && self.of(source) + more > share {
            match self.oldest_of(source).filter(|oldest| *oldest != id) {
                Some(oldest) => self.evict(oldest, evicted),
                None => return false,
            }
        }
        while more > 0 && self.kept + more > self.limit {
            let heaviest = self.heaviest.last().and_then(|(_, source)| self.oldest_of(*source));
            match heaviest.filter(|oldest| *oldest != id) {
                Some(oldest) => self.evict(oldest, evicted),
                None => return false,
            }
        }
        // Connections that were ordered to stop need a turn of their tasks for it; until then their memory
        // counts.
        if more > 0 && self.total() + more > 2 * self.limit {
            return false;
        }
        self.change(id, source, connection, |holder| holder.bytes = bytes);
        true
    }

    fn finish(&mut self, id: u64) -> bool {
        let Some(holder) = self.holders.get(&id) else { return true };
        if holder.stage == Stage::Leaving {
            return false;
        }
        let (source, connection) = (holder.source, holder.connection.clone());
        self.change(id, source, &connection, |holder| holder.stage = Stage::Finished);
        true
    }

    fn release(&mut self, id: u64) {
        if let Some(holder) = self.holders.get(&id) {
            let (source, connection) = (holder.source, holder.connection.clone());
            self.change(id, source, &connection, |holder| holder.bytes = 0);
            self.holders.remove(&id);
            self.tidy(source);
        }
    }

    fn evict(&mut self, id: u64, evicted: &mut Vec<T>) {
        if let Some(holder) = self.holders.get(&id) {
            let (source, connection) = (holder.source, holder.connection.clone());
            self.change(id, source, &connection, |holder| holder.stage = Stage::Leaving);
            evicted.push(connection);
        }
    }

    /// Bytes of a source, without those that are being given back.
    fn of(&self, source: IpAddr) -> usize {
        self.sources.get(&source).map_or(0, |account| account.unfinished + account.finished)
    }

    fn oldest_of(&self, source: IpAddr) -> Option<u64> {
        self.sources.get(&source)?.hellos.first().copied()
    }

    /// Changes a holder, and with it every sum that it is a part of.
    fn change(&mut self, id: u64, source: IpAddr, connection: &T, act: impl FnOnce(&mut Holder<T>)) {
        let holder = self.holders.entry(id).or_insert_with(|| Holder {
            source,
            bytes: 0,
            stage: Stage::Unfinished,
            connection: connection.clone(),
        });
        let account = self.sources.entry(source).or_default();
        self.heaviest.remove(&(account.unfinished, source));
        match holder.stage {
            Stage::Unfinished => {
                account.unfinished -= holder.bytes;
                account.hellos.remove(&id);
                self.kept -= holder.bytes;
            }
            Stage::Finished => {
                account.finished -= holder.bytes;
                self.kept -= holder.bytes;
            }
            Stage::Leaving => self.leaving -= holder.bytes,
        }
        act(holder);
        match holder.stage {
            Stage::Unfinished => {
                account.unfinished += holder.bytes;
                self.kept += holder.bytes;
                if holder.bytes > 0 {
                    account.hellos.insert(id);
                }
            }
            Stage::Finished => {
                account.finished += holder.bytes;
                self.kept += holder.bytes;
            }
            Stage::Leaving => self.leaving += holder.bytes,
        }
        if !account.hellos.is_empty() {
            self.heaviest.insert((account.unfinished, source));
        }
    }

    /// Forgets a source that holds nothing.
    fn tidy(&mut self, source: IpAddr) {
        let is_empty = |account: &Account| account.hellos.is_empty() && account.finished == 0;
        if self.sources.get(&source).is_some_and(is_empty) {
            self.sources.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LIMIT: usize = 8000;

    fn source(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(number).into()
    }

    /// A ledger and what it says when a connection takes so many bytes.
    struct Book(Ledger<u64>);

    impl Book {
        fn new() -> Self {
            Self(Ledger::new(LIMIT))
        }

        fn set(&mut self, id: u64, from: u32, bytes: usize) -> (bool, Vec<u64>) {
            let mut evicted = Vec::new();
            let granted = self.0.set(id, source(from), bytes, &id, &mut evicted);
            (granted, evicted)
        }
    }

    #[test]
    fn a_source_pushes_out_its_own_oldest() {
        let mut book = Book::new();
        assert_eq!(book.set(1, 1, 400), (true, vec![]));
        assert_eq!(book.set(2, 1, 400), (true, vec![]));
        assert_eq!(book.set(3, 2, 900), (true, vec![]));
        assert_eq!(book.set(4, 1, 400), (true, vec![1]));
        assert_eq!(book.set(1, 1, 800), (false, vec![]), "it has to go");
        assert_eq!(book.set(5, 3, 1001), (false, vec![]), "more than a share");
        assert_eq!(book.set(2, 1, 900), (false, vec![]), "the oldest makes no room for itself");
    }

    #[test]
    fn the_heaviest_source_gives_way_to_others() {
        let mut book = Book::new();
        for from in 1..=7 {
            assert!(book.set(from.into(), from, 1000).0);
        }
        assert!(book.set(8, 8, 500).0 && book.set(9, 9, 500).0);
        let (granted, evicted) = book.set(10, 10, 100);
        assert!(granted && evicted.len() == 1 && evicted[0] <= 7, "{evicted:?}");
        assert!(book.0.total() <= LIMIT + 1000);
    }

    #[test]
    fn what_is_finished_is_never_pushed_out_but_counts() {
        let mut book = Book::new();
        assert!(book.set(1, 1, 900).0);
        assert!(book.0.finish(1));
        assert_eq!(book.set(2, 1, 200), (false, vec![]));
        book.0.release(1);
        assert_eq!(book.set(2, 1, 600), (true, vec![]));
        assert_eq!(book.set(3, 1, 600), (true, vec![2]));
        assert!(!book.0.finish(2), "it has to give way");
    }

    #[test]
    fn those_that_do_not_leave_bound_what_is_granted() {
        let mut book = Book::new();
        let mut granted = 0;
        for id in 0..1000 {
            granted += usize::from(book.set(id, u32::try_from(id).unwrap(), 100).0);
            assert!(book.0.total() <= 2 * LIMIT);
        }
        assert_eq!(granted, 2 * LIMIT / 100);
    }

    #[test]
    fn nothing_is_left_when_all_are_gone() {
        let mut book = Book::new();
        for round in 0..20_000_u64 {
            let id = fastrand::u64(0..60);
            match fastrand::u8(0..8) {
                0 => book.0.release(id),
                1 => _ = book.0.finish(id),
                _ => drop(book.set(id, (id % 12) as u32, fastrand::usize(0..1500))),
            }
            let sum: usize = book.0.holders.values().map(|holder| holder.bytes).sum();
            assert_eq!(sum, book.0.total(), "round {round}");
            assert!(book.0.kept <= LIMIT);
        }
        (0..60).for_each(|id| book.0.release(id));
        let Ledger { holders, sources, heaviest, kept, leaving, .. } = book.0;
        assert!(holders.is_empty() && sources.is_empty() && heaviest.is_empty());
        assert_eq!((kept, leaving), (0, 0));
    }
}
