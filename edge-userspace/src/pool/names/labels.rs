//! The names of one `{label}` target, looked up when a client first asks for one; [`desk`](super::desk) has the limits.
//!
//! Clients' connections are on workers' threads. The lookups run where the other names are looked up.

use std::{
    fmt,
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, timeout},
};

use super::{
    desk::{Answer, Desk, Look, Outcome},
    resolve::Resolver,
};
use crate::{
    lock::lock,
    pool::Endpoint,
    spec::{HostName, LabelName},
};

/// How long a lookup may take: longer than the resolver waits for two silent servers.
const LONGEST: Duration = Duration::from_secs(15);

/// The names of one target.
pub(in crate::pool) struct Labels {
    template: LabelName,
    desk: Mutex<Desk>,
    /// A lookup has ended: one client that waits for its turn may look again.
    room: Notify,
    /// The resolver; `None` until [`Labels::set_resolver`].
    resolver: Mutex<Option<(Arc<Resolver>, Handle)>>,
}

impl Labels {
    pub(in crate::pool) fn new(template: LabelName) -> Self {
        Self { template, desk: Mutex::default(), room: Notify::new(), resolver: Mutex::default() }
    }

    /// Looks names up by this resolver from now on, on the runtime that this is called in.
    pub(super) fn set_resolver(&self, resolver: &Arc<Resolver>) {
        let mut current = lock(&self.resolver);
        if !current.as_ref().is_some_and(|(current, _)| Arc::ptr_eq(current, resolver)) {
            *current = Some((Arc::clone(resolver), Handle::current()));
            lock(&self.desk).clear();
        }
    }

    /// The addresses for a client whose name has this label; an error in words if there are none. Takes as long as
    /// the name servers do.
    pub(in crate::pool) async fn resolve(self: &Arc<Self>, label: &str, client: IpAddr) -> Answer {
        let Some(name) = self.template.name(label) else {
            return Err("with this label the name is longer than DNS allows".into());
        };
        loop {
            let look = lock(&self.desk).look(&name, client, Instant::now());
            match look {
                Look::Answer(answer) => return answer,
                // Others are under way, and the end of each makes room for one.
                Look::Busy => self.room.notified().await,
                Look::Ask => self.ask(&name),
                Look::Wait(asked) => {
                    let mut asked = pin!(asked.notified());
                    // From here on its end is not missed; it may have come since the look.
                    asked.as_mut().enable();
                    if lock(&self.desk).is_asked(&name) {
                        asked.await;
                    }
                }
            }
        }
    }

    /// The addresses of all names that are known, each once.
    pub(in crate::pool) fn endpoints(&self) -> Vec<Endpoint> {
        lock(&self.desk).endpoints()
    }

    fn ask(self: &Arc<Self>, name: &HostName) {
        let Some((resolver, handle)) = lock(&self.resolver).clone() else {
            let outcome = Outcome::Failed("names are not looked up yet".to_owned());
            return self.settle(name, outcome);
        };
        let (labels, name) = (Arc::clone(self), name.clone());
        handle.spawn(async move {
            let outcome = match timeout(LONGEST, resolver.exactly(&name)).await {
                Ok(Ok(Some(found))) => Outcome::Found(found.endpoints, found.ttl.unwrap_or_default()),
                Ok(Ok(None)) => Outcome::Missing,
                Ok(Err(error)) => Outcome::Failed(error),
                Err(_) => Outcome::Failed("the name servers do not answer".to_owned()),
            };
            labels.settle(&name, outcome);
        });
    }

    fn settle(&self, name: &HostName, outcome: Outcome) {
        lock(&self.desk).settle(name, outcome, Instant::now());
        self.room.notify_one();
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Labels").field("template", &self.template).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::names::resolve::tests::{IMPATIENT, address, ip, server};

    #[tokio::test]
    async fn clients_share_a_lookup_and_what_it_finds() {
        let (server, zone) = server().await;
        let labels = Arc::new(Labels::new("{label}.home.arpa".parse().unwrap()));
        let client = ip("192.0.2.1");
        assert!(labels.resolve("early", client).await.is_err(), "nobody looks names up yet");
        labels.set_resolver(&Arc::new(Resolver::with_patience(&[server], [], None, IMPATIENT)));
        address(&zone, "cloud.home.arpa.", "10.0.0.7");
        let both =
            futures_util::future::join(labels.resolve("cloud", client), labels.resolve("cloud", client));
        let (one, other) = both.await;
        assert_eq!(one.unwrap()[0].ip, ip("10.0.0.7"));
        assert_eq!(other.unwrap()[0].ip, ip("10.0.0.7"));
        let error = labels.resolve("none", client).await.unwrap_err();
        assert_eq!(&*error, "there is no such name");
        assert!(labels.resolve(&"a".repeat(64), client).await.is_err());
        assert_eq!(labels.endpoints().len(), 1);
    }

    #[tokio::test]
    async fn more_names_than_may_be_looked_up_at_once_wait_their_turn() {
        let (server, zone) = server().await;
        let labels = Arc::new(Labels::new("{label}.home.arpa".parse().unwrap()));
        labels.set_resolver(&Arc::new(Resolver::with_patience(&[server], [], None, IMPATIENT)));
        let names: Vec<_> = (0..30).map(|number| format!("n{number}")).collect();
        for name in &names {
            address(&zone, &format!("{name}.home.arpa."), "10.0.0.7");
        }
        let all = names.iter().map(|name| labels.resolve(name, ip("192.0.2.1")));
        let all = timeout(LONGEST, futures_util::future::join_all(all)).await.unwrap();
        assert!(all.iter().all(Result::is_ok), "{all:?}");
    }
}
