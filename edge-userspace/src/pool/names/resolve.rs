//! Queries name servers, the right ones for each name. [`answers`](super::answers) evaluates the answers;
//! [`lookups`](super::lookups) decides when to query.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use futures_util::future;
use hickory_resolver::{
    Hosts, TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RData, RecordType},
    },
    system_conf,
};

use super::{
    answers::{self, Family, Memory, Service},
    search::Search,
};
use crate::{
    lock::lock,
    {pool::Endpoint, spec::HostName},
};

/// The system's configuration. Both files are checked before each query, so that edged may start before the
/// network is set up.
const SYSTEM_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// Targets of an SRV record that are looked up.
const MAX_TARGETS: usize = 8;

/// How patient a resolver is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// With one server; it is asked up to three times.
    pub(super) server: Duration,
    /// A backend that went down is looked up again, because its address may have changed before the TTL
    /// expired, but not more often than this.
    pub(super) down: Duration,
}

const PATIENCE: Patience = Patience { server: Duration::from_secs(2), down: Duration::from_secs(5) };

/// Queries name servers, the right ones for each suffix. Search domains are applied here, because each
/// resulting name may have its own servers.
pub struct Resolver {
    /// Without it the system's are asked.
    default: Option<Client>,
    /// The longest suffix first.
    suffixes: Vec<(HostName, Client)>,
    /// Without it the system's are searched, or none where the servers are not the system's.
    search: Option<Search>,
    system: Mutex<Arc<System>>,
    pub(super) patience: Patience,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("search", &self.search).finish_non_exhaustive()
    }
}

/// A client, or why there is none.
type Client = Result<TokioResolver, Arc<str>>;

/// The contents of the system's files, as of their times.
struct System {
    files: [Option<SystemTime>; 2],
    client: Client,
    search: Search,
    hosts: Hosts,
}

/// Addresses found, and how long they are good for.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) endpoints: Vec<Endpoint>,
    /// `None` if some part of the answer is still missing.
    pub(super) ttl: Option<Duration>,
}

impl Resolver {
    /// A resolver that queries `servers`, or the system's if there are none, and for names at or below a
    /// suffix that suffix's servers. A name may omit one of the domains in `search`; without `search`, one of
    /// the system's if the servers are the system's, else none. Reads files, but sends no query yet.
    pub fn new(
        servers: &[SocketAddr],
        suffixes: impl IntoIterator<Item = (HostName, Vec<SocketAddr>)>,
        search: Option<&[HostName]>,
    ) -> Self {
        Self::with_patience(servers, suffixes, search, PATIENCE)
    }

    pub(super) fn with_patience(
        servers: &[SocketAddr],
        suffixes: impl IntoIterator<Item = (HostName, Vec<SocketAddr>)>,
        search: Option<&[HostName]>,
        patience: Patience,
    ) -> Self {
        let client = |servers: &[SocketAddr]| given(servers, patience.server);
        let default = (!servers.is_empty()).then(|| client(servers));
        let search = search.map(Search::new).or(default.is_some().then(Search::default));
        let mut suffixes: Vec<_> =
            suffixes.into_iter().map(|(suffix, servers)| (suffix, client(&servers))).collect();
        suffixes.sort_by_key(|(suffix, _)| std::cmp::Reverse(suffix.as_str().len()));
        Self { default, suffixes, search, system: Mutex::new(Arc::new(System::read())), patience }
    }

    /// The addresses of a name; `memory` stands in for missing answers.
    ///
    /// Of the names that it may stand for, the next is queried only if the previous one does not exist: a
    /// failing name server must not lead to somebody else's machine of the same name.
    pub(super) async fn resolve(&self, name: &HostName, memory: &mut Memory) -> Result<Found, String> {
        let system = self.system();
        let names = match system.local(name) {
            Some(_) => vec![name.clone()],
            None => self.search.as_ref().unwrap_or(&system.search).names(name),
        };
        for meant in &names {
            let outcome = if answers::is_service(name.as_str()) {
                self.service(&system, meant).await
            } else {
                self.host(&system, meant, memory).await
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(found)) => return Ok(found),
                Err(error) if meant == name => return Err(error),
                Err(error) => return Err(format!("{meant}: {error}")),
            }
        }
        match (memory.addresses(), &*names) {
            (kept, _) if !kept.is_empty() => Ok(Found { endpoints: without_port(kept), ttl: None }),
            (_, [_]) => Err("the name has no address".into()),
            (_, names) => {
                let names: Vec<_> = names.iter().map(HostName::as_str).collect();
                Err(format!("there is no address for {}", names.join(", ")))
            }
        }
    }

    /// The addresses of this name and no other: without search domains, services and what was found before. `None`
    /// if there is no such name, or it has no address.
    pub(super) async fn exactly(&self, name: &HostName) -> Result<Option<Found>, String> {
        self.host(&self.system(), name, &mut Memory::default()).await
    }

    /// `None` if there is no such name, or it has no address.
    async fn host(
        &self,
        system: &System,
        name: &HostName,
        memory: &mut Memory,
    ) -> Result<Option<Found>, String> {
        let ((v6, v6_ttl), (v4, v4_ttl)) = self.addresses(system, name).await?;
        if v6.is_empty() && v4.is_empty() {
            return Ok(None);
        }
        let ips = memory.update(name, v6, v4);
        if ips.is_empty() {
            return Err("the name has no address, as far as the name servers answer".into());
        }
        let ttl = v6_ttl.zip(v4_ttl).map(|(a, b)| a.min(b));
        Ok(Some(Found { endpoints: without_port(ips), ttl }))
    }

    /// `None` if there is no such service.
    async fn service(&self, system: &System, name: &HostName) -> Result<Option<Found>, String> {
        let client = self.client(system, name)?;
        let answer = match client.lookup(absolute(name), RecordType::SRV).await {
            Ok(answer) => answer,
            Err(error) if error.is_no_records_found() => return Ok(None),
            Err(error) => return Err(explain(&error)),
        };
        let mut ttl = Some(left(answer.valid_until()));
        let services = answer.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(Service {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.to_ascii(),
            }),
            _ => None,
        });
        let mut services = answers::order_services(services.collect(), fastrand::f64);
        services.truncate(MAX_TARGETS);
        let looked_up = future::join_all(services.iter().map(|service| async {
            let target = service.target.parse().map_err(|error| format!("{}: {error}", service.target))?;
            self.addresses(system, &target).await
        }));
        let mut targets = Vec::new();
        let mut last_error = None;
        for (service, outcome) in services.iter().zip(looked_up.await) {
            match outcome {
                Ok(((v6, v6_ttl), (v4, v4_ttl))) => {
                    ttl = [ttl, v6_ttl, v4_ttl].into_iter().min().flatten();
                    targets.push((service.port, answers::interleave(v6.addresses(), v4.addresses())));
                }
                Err(error) => {
                    ttl = None;
                    last_error = Some(error);
                }
            }
        }
        let endpoints = answers::endpoints(targets);
        if endpoints.is_empty() {
            return Err(last_error.unwrap_or_else(|| "the service has no target with an address".into()));
        }
        Ok(Some(Found { endpoints, ttl }))
    }

    /// Both families of a name with their TTL: from the hosts file, else from its servers.
    async fn addresses(&self, system: &System, name: &HostName) -> Result<(Answer, Answer), String> {
        match system.local(name) {
            Some(local) => Ok(local),
            None => families(self.client(system, name)?, name).await,
        }
    }

    fn client<'a>(&'a self, system: &'a System, name: &HostName) -> Result<&'a TokioResolver, String> {
        let name = name.as_str();
        let below = |suffix: &HostName| {
            name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let client = match self.suffixes.iter().find(|(suffix, _)| below(suffix)) {
            Some((_, client)) => client,
            None => self.default.as_ref().unwrap_or(&system.client),
        };
        client.as_ref().map_err(ToString::to_string)
    }

    fn system(&self) -> Arc<System> {
        let mut system = lock(&self.system);
        if system.files != file_times() {
            *system = Arc::new(System::read());
        }
        Arc::clone(&system)
    }
}

impl System {
    fn read() -> Self {
        let files = file_times();
        let (client, search) = match system_conf::read_system_conf() {
            Ok((config, options)) => {
                let search = Search::of_system(&config, options.ndots);
                (client(config, options), search)
            }
            Err(error) => {
                let error = format!("no name server: /etc/resolv.conf: {error}; see [resolver]");
                (Err(error.into()), Search::default())
            }
        };
        Self { files, client, search, hosts: Hosts::from_system().unwrap_or_default() }
    }

    /// The entries of the hosts file.
    fn local(&self, name: &HostName) -> Option<(Answer, Answer)> {
        let name = Name::from_ascii(absolute(name)).ok()?;
        let one = |kind| self.hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [one(RecordType::AAAA), one(RecordType::A)];
        let is_there = found.iter().any(Option::is_some);
        let [v6, v4] = found
            .map(|found| (Family::Known(found.as_ref().map(ips).unwrap_or_default()), Some(Duration::MAX)));
        is_there.then_some((v6, v4))
    }
}

/// As it is asked for, so that nobody adds a domain.
fn absolute(name: &HostName) -> String {
    format!("{name}.")
}

fn without_port(ips: Vec<IpAddr>) -> Vec<Endpoint> {
    ips.into_iter().map(|ip| Endpoint { ip, port: None }).collect()
}

fn file_times() -> [Option<SystemTime>; 2] {
    SYSTEM_FILES.map(|path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok())
}

fn given(servers: &[SocketAddr], timeout: Duration) -> Client {
    let name_server = |server: &SocketAddr| {
        let mut config = NameServerConfig::udp_and_tcp(server.ip());
        config.connections.iter_mut().for_each(|connection| connection.port = server.port());
        config
    };
    let config = ResolverConfig::from_name_servers(servers.iter().map(name_server).collect());
    let mut options = ResolverOpts::default();
    options.timeout = timeout;
    client(config, options)
}

fn client(config: ResolverConfig, mut options: ResolverOpts) -> Client {
    // Each name is asked for when its last answer has ended; a cache would only get in the way.
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().map_err(|error| error.to_string().into())
}

type Answer = (Family, Option<Duration>);

/// Both families of a name with their TTL; an error only if there is no answer about either.
async fn families(client: &TokioResolver, name: &HostName) -> Result<(Answer, Answer), String> {
    let one = async |kind| match client.lookup(absolute(name), kind).await {
        Ok(answer) => Ok((Family::Known(ips(&answer)), Some(left(answer.valid_until())))),
        // A negative answer has a TTL as well, but an address may be added at any moment: the other family's
        // TTL applies.
        Err(error) if error.is_no_records_found() => Ok((Family::Known(Vec::new()), Some(Duration::MAX))),
        Err(error) => Err(error),
    };
    let unknown = (Family::Unknown, None);
    match future::join(one(RecordType::AAAA), one(RecordType::A)).await {
        (Ok(v6), Ok(v4)) => Ok((v6, v4)),
        (Ok(v6), Err(_)) => Ok((v6, unknown)),
        (Err(_), Ok(v4)) => Ok((unknown, v4)),
        (Err(error), Err(_)) => Err(explain(&error)),
    }
}

fn ips(answer: &Lookup) -> Vec<IpAddr> {
    answer.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn explain(error: &NetError) -> String {
    match error {
        NetError::Timeout => "the name servers do not answer".into(),
        other => format!("the name cannot be resolved: {other}"),
    }
}

#[cfg(test)]
pub(super) mod tests;
