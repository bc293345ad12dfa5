//! The last refusals, by reason and name. A name that is refused again moves to the front and counts on, so that one
//! scanner does not push everything else out.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use super::access_log::Record;
use crate::{lock::lock, spec::HostName};

/// Kinds of refusals that are remembered: what fits on a screen. Each refusal compares itself with all of them.
const KEPT: usize = 32;

/// Refusals that are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// When a client was last refused this way.
    pub at: SystemTime,
    /// How many were.
    pub count: u64,
    /// `close` in the access log.
    pub reason: &'static str,
    /// The name that was asked for, as the client wrote it where it cannot be a host name; `None` where there was none.
    pub name: Option<Arc<str>>,
    /// The listener.
    pub listener: Arc<str>,
    /// The route; `None` where none was picked.
    pub route: Option<Arc<str>>,
    /// Why no backend was connected, of the last one.
    pub error: Option<String>,
}

/// The last kinds of refusals, the newest first.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    /// Remembers a connection that was refused. The client's address is not kept.
    pub fn note(&self, record: &Record) {
        let name = record.sni.as_ref().map(HostName::as_str).or(record.sni_raw.as_deref());
        let is_same = |known: &Refusal| {
            known.reason == record.close
                && known.name.as_deref() == name
                && known.listener == record.listener
                && known.route == record.route
        };
        let mut all = lock(&self.0);
        let known = all.iter().position(is_same).and_then(|at| all.remove(at));
        let count = known.as_ref().map_or(0, |known| known.count) + 1;
        all.truncate(KEPT - 1);
        all.push_front(Refusal {
            at: SystemTime::now(),
            count,
            reason: record.close,
            name: known.map_or_else(|| name.map(Arc::from), |known| known.name),
            listener: Arc::clone(&record.listener),
            route: record.route.clone(),
            error: record.error.clone(),
        });
    }

    /// All of them, the newest first.
    pub fn list(&self) -> Vec<Refusal> {
        lock(&self.0).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::spec::AlpnList;

    fn refused(name: &str) -> Record {
        Record {
            time: SystemTime::now(),
            id: 1,
            client: ([192, 0, 2, 1], 1).into(),
            local: ([192, 0, 2, 2], 443).into(),
            listener: "https".into(),
            protocol: None,
            sni: Some(name.parse().unwrap()),
            sni_raw: None,
            alpn: AlpnList::default(),
            ech: false,
            route: None,
            backend: None,
            attempts: None,
            error: None,
            datapath: None,
            spilled: false,
            bytes_up: 0,
            bytes_down: 0,
            duration: Duration::ZERO,
            connect_time: None,
            close: "no_route",
            unique_id: String::new(),
        }
    }

    #[test]
    fn a_name_that_comes_again_counts_on_and_the_oldest_is_forgotten() {
        let refusals = Refusals::default();
        refusals.note(&refused("a.example"));
        for number in 0..KEPT - 1 {
            refusals.note(&refused(&format!("{number}.example")));
        }
        refusals.note(&refused("a.example"));
        let list = refusals.list();
        assert_eq!((list.len(), list[0].name.as_deref(), list[0].count), (KEPT, Some("a.example"), 2));
        refusals.note(&refused("new.example"));
        let list = refusals.list();
        assert_eq!(list.len(), KEPT);
        assert!(list.iter().all(|refusal| refusal.name.as_deref() != Some("0.example")), "the oldest");
    }
}
