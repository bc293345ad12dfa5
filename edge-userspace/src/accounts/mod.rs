//! Counts and log lines of every connection, and the limits on their number. For connections on sockets and for flows
//! alike: nothing here knows how one is carried.

#![forbid(unsafe_code)]

mod admission;
mod rate;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

pub use admission::{Admission, Slot, SourceSlot};

use crate::{
    lock::lock,
    observe::{
        access_log::{AccessLog, Record},
        refusals::Refusals,
    },
    spec::Tier,
};

/// The access log, the count of endings, and the numbers that connections are known by.
#[derive(Debug)]
pub struct Accounts {
    access_log: AccessLog,
    endings: Mutex<HashMap<Ending, u64>>,
    refusals: Refusals,
    next: AtomicU64,
    run: u64,
}

/// The labels that endings are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ending {
    /// The listener.
    pub listener: Arc<str>,
    /// The route; `None` before one was picked.
    pub route: Option<Arc<str>>,
    /// The tier; `None` before the backend was connected.
    pub datapath: Option<Tier>,
    /// `close` in the access log.
    pub result: &'static str,
    /// Whether the edge refused it.
    pub refused: bool,
}

/// The last account of a connection.
#[derive(Debug)]
pub struct Account {
    /// Its line in the access log.
    pub record: Record,
    /// Whether the edge refused it.
    pub refused: bool,
    /// Whether it is logged. It is counted either way.
    pub is_logged: bool,
}

impl Accounts {
    /// Accounts that begin empty; `run` makes the numbers of this process unique among all.
    pub fn new(access_log: AccessLog, run: u64) -> Self {
        Self {
            access_log,
            endings: Mutex::default(),
            refusals: Refusals::default(),
            next: AtomicU64::new(1),
            run,
        }
    }

    /// Where lines go.
    pub const fn access_log(&self) -> &AccessLog {
        &self.access_log
    }

    /// The last refusals.
    pub const fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The prefix that makes the numbers of this process unique among all.
    pub const fn run(&self) -> u64 {
        self.run
    }

    /// A number that no other connection of this process has.
    pub fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// An earlier daemon gave the numbers up to this one to connections that live.
    pub fn continue_after(&self, id: u64) {
        self.next.fetch_max(id + 1, Relaxed);
    }

    /// Counts a connection that has ended, and logs it.
    pub fn close(&self, Account { record, refused, is_logged }: Account) {
        self.count(Ending {
            listener: Arc::clone(&record.listener),
            route: record.route.clone(),
            datapath: record.datapath,
            result: record.close,
            refused,
        });
        if refused {
            self.refusals.note(&record);
        }
        if is_logged {
            self.access_log.write(record, refused);
        }
    }

    /// Counts an ending that has no line in the access log.
    pub fn count(&self, ending: Ending) {
        *self.lock().entry(ending).or_insert(0) += 1;
    }

    /// Every kind of ending so far, and how often it was seen.
    pub fn endings(&self) -> HashMap<Ending, u64> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ending, u64>> {
        lock(&self.endings)
    }
}

/// The name of a connection beyond its process, made from [`Accounts::run`] and its number.
pub fn unique_id(run: u64, id: u64) -> String {
    format!("{run:016x}{id:016x}")
}
