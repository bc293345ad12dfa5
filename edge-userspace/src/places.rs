//! Limits on the concurrent connections of a route or a backend.
//!
//! A [`Tally`](crate::tally) is not enough: it counts flows as of the last scan of the kernel's table, and a limit
//! needs a count that is exact at every moment.

#![forbid(unsafe_code)]

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, Weak,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
};

use crate::lock::lock;

/// The places of one route or backend. Counted without a limit too, so that one can be set later.
#[derive(Debug, Default)]
pub struct Places {
    taken: AtomicUsize,
    /// 0 means none.
    limit: AtomicUsize,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Places>);

impl Places {
    /// Changes the limit; 0 means no limit. Connections above a lower limit stay.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Relaxed);
    }

    /// The limit; 0 means none.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Whether there is none left.
    pub fn are_full(&self) -> bool {
        is_full(self.taken.load(Relaxed), self.limit())
    }

    /// One, if it is free now.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let limit = self.limit();
        self.taken
            .fetch_update(AcqRel, Relaxed, |taken| (!is_full(taken, limit)).then_some(taken + 1))
            .is_ok()
            .then(|| Place(Arc::clone(self)))
    }

    /// Takes a place for a connection that already exists, whatever the limit.
    pub fn occupy(self: &Arc<Self>) -> Place {
        self.taken.fetch_add(1, AcqRel);
        Place(Arc::clone(self))
    }
}

const fn is_full(taken: usize, limit: usize) -> bool {
    limit != 0 && taken >= limit
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, AcqRel);
    }
}

/// Places by what they are of: a route that a reload leaves out and another brings back still has its connections.
#[derive(Debug, Default)]
pub struct KnownPlaces(Mutex<HashMap<u64, Weak<Places>>>);

impl KnownPlaces {
    /// Those of this identity, which is the same in every daemon.
    pub fn of(&self, identity: u64) -> Arc<Places> {
        let mut known = lock(&self.0);
        if let Some(places) = known.get(&identity).and_then(Weak::upgrade) {
            return places;
        }
        let places = Arc::default();
        known.insert(identity, Arc::downgrade(&places));
        places
    }

    /// Those of another identity, also for this one from now on.
    pub fn shared(&self, identity: u64, with: u64) -> Arc<Places> {
        let places = self.of(with);
        lock(&self.0).insert(identity, Arc::downgrade(&places));
        places
    }

    /// Forgets those that nobody has any more.
    pub fn forget_unused(&self) {
        lock(&self.0).retain(|_, places| places.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn never_more_than_the_limit_however_many_ask_at_once() {
        const LIMIT: usize = 3;
        let places = Arc::new(Places::default());
        places.set_limit(LIMIT);
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Some(place) = places.take() else { continue };
                        most.fetch_max(inside.fetch_add(1, AcqRel) + 1, Relaxed);
                        inside.fetch_sub(1, AcqRel);
                        drop(place);
                    }
                });
            }
        });
        assert!((1..=LIMIT).contains(&most.into_inner()));
        let all: Vec<_> = (0..LIMIT).map(|_| places.take().unwrap()).collect();
        assert!(places.take().is_none() && places.are_full());
        drop(all);
        assert_eq!(places.taken.load(Relaxed), 0);
    }

    #[test]
    fn of_a_crowd_exactly_as_many_get_in_as_the_limit_says() {
        let places = Arc::new(Places::default());
        places.set_limit(100);
        let got = thread::scope(|scope| {
            let crowd: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..50).filter_map(|_| places.take()).collect::<Vec<_>>()))
                .collect();
            crowd.into_iter().flat_map(|one| one.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(got.len(), 100);
    }

    #[test]
    fn a_limit_that_comes_later_knows_of_those_that_are_there() {
        let places = Arc::new(Places::default());
        let mut there = vec![places.take().unwrap(), places.take().unwrap(), places.occupy()];
        places.set_limit(2);
        assert!(places.take().is_none());
        there.pop();
        assert!(places.take().is_none());
        there.pop();
        assert!(places.take().is_some());
        places.set_limit(0);
        there.extend((0..5).map(|_| places.take().unwrap()));
        assert!(!places.are_full());
    }

    #[test]
    fn places_are_known_for_as_long_as_a_connection_has_one() {
        let known = KnownPlaces::default();
        let place = known.of(7).take();
        known.forget_unused();
        known.of(7).set_limit(1);
        assert!(known.of(7).take().is_none());
        drop(place);
        known.forget_unused();
        assert!(lock(&known.0).is_empty());
    }
}
