//! Names that routes and tcp listeners refer to, and whether they exist.

use std::{collections::HashSet, sync::Arc};

use super::{
    network::backend_address,
    problem::{Refusal, did_you_mean},
    settings::Settings,
    value::quoted,
};
use crate::spec::{
    Access, BackendAddress, BackendHost, Choice, ClientProtocol, Conditions, HealthKind, HostPattern,
    ListenerSpec, ProxyProtocol, ProxyTlvs, Redirect, RouteSpec, Target,
};

/// The pools and listeners that a configuration has.
#[derive(Clone, Debug, Default)]
pub(super) struct References {
    pub(super) pools: HashSet<Arc<str>>,
    /// Those of the pools that have a backend on a Unix socket.
    pub(super) on_unix_sockets: HashSet<Arc<str>>,
    /// With what is spoken there; nothing on a tcp listener.
    pub(super) listeners: Vec<(Arc<str>, Vec<ClientProtocol>)>,
    /// The kinds of health checks that are written, the pools they are for and where they stand.
    pub(super) checks: Vec<(Arc<str>, HealthKind, usize)>,
}

impl References {
    /// A listener, as routes see it.
    pub(super) fn of(listener: &ListenerSpec) -> (Arc<str>, Vec<ClientProtocol>) {
        (listener.name.clone(), listener.routed().collect())
    }

    /// A single `to`: the name of a pool, or an address in the form in which it is compared.
    pub(super) fn target(&self, text: &str) -> Result<Target, Refusal> {
        if let Some(pool) = self.pools.get(text) {
            return Ok(Target::One(pool.clone()));
        }
        if text == Target::REFUSE {
            return Ok(Target::Refuse);
        }
        let meant = || did_you_mean(text, self.pools.iter().map(|pool| &**pool));
        let address = backend_address(text).map_err(|refusal| match meant() {
            Some(near) => {
                Refusal::new(format!("{} is neither a pool nor an address", quoted(text))).hint(near)
            }
            None => refusal,
        })?;
        if is_bare(text, &address) {
            return Err(self.no_such_pool(text));
        }
        Ok(Target::One(address.to_string().into()))
    }

    /// One of a list in `to`, which makes a pool of its own.
    pub(super) fn member(&self, text: &str) -> Result<BackendAddress, Refusal> {
        if text == Target::REFUSE {
            return Err(Refusal::new("`refuse` stands alone, and a list holds addresses")
                .hint("write to = \"refuse\""));
        }
        if self.pools.contains(text) {
            return Err(Refusal::new(format!("`{text}` is a pool, and a list holds addresses"))
                .hint(format!("write to = \"{text}\"")));
        }
        match backend_address(text)? {
            address if is_bare(text, &address) => Err(self.no_such_pool(text)),
            address if address.has_label() => Err(label_out_of_place()),
            address => Ok(address),
        }
    }

    fn no_such_pool(&self, text: &str) -> Refusal {
        let near = did_you_mean(text, self.pools.iter().map(|pool| &**pool));
        let host = || format!("for a host of that name write it with a port, like \"{text}:443\"");
        Refusal::new(format!("no pool is called `{text}`")).hint(near.unwrap_or_else(host))
    }

    /// A listener that a route names.
    pub(super) fn listener(&self, text: &str) -> Result<Arc<str>, Refusal> {
        match self.listeners.iter().find(|(name, _)| **name == *text) {
            Some((name, speaks)) if !speaks.is_empty() => Ok(name.clone()),
            Some(_) => Err(Refusal::new(format!("`{text}` is a tcp listener and takes no routes"))
                .hint("it names its target itself, with `to` in its [[listener]]")),
            None => {
                let names = || self.listeners.iter().map(|(name, _)| &**name);
                let list = || format!("there are {}", names().collect::<Vec<_>>().join(", "));
                Err(Refusal::new(format!("no listener is called {}", quoted(text)))
                    .hint(did_you_mean(text, names()).unwrap_or_else(list)))
            }
        }
    }

    /// Whether there is any listener that routes.
    pub(super) fn carry_routes(&self) -> bool {
        self.listeners.iter().any(|(_, speaks)| !speaks.is_empty())
    }

    /// The protocols of any of these listeners, or of all listeners if the list is empty.
    fn client_protocol(&self, listeners: &[Arc<str>]) -> Vec<ClientProtocol> {
        let among =
            self.listeners.iter().filter(|(name, _)| listeners.is_empty() || listeners.contains(name));
        among.flat_map(|(_, speaks)| speaks.iter().copied()).collect()
    }

    /// A condition on ALPN needs a listener on which clients offer some, and a protocol in which they do.
    pub(super) fn alpn(&self, listeners: &[Arc<str>], protocols: &[ClientProtocol]) -> Result<(), Refusal> {
        let offers = |protocol: &ClientProtocol| protocol.offers_alpn();
        if !protocols.is_empty() && !protocols.iter().any(offers) {
            return Err(Refusal::new("this route can never match: in these protocols no client offers ALPN")
                .hint("leave `alpn` or `protocol` out"));
        }
        let client_protocol = self.client_protocol(listeners);
        if !client_protocol.is_empty() && !client_protocol.iter().any(offers) {
            return Err(Refusal::new(
                "this route can never match: on an http listener no client offers ALPN",
            )
            .hint("leave `alpn` out, or name a tls listener"));
        }
        Ok(())
    }

    /// A condition on the protocol needs a listener on which one of them is spoken.
    pub(super) fn protocols(
        &self,
        listeners: &[Arc<str>],
        protocols: &[ClientProtocol],
    ) -> Result<(), Refusal> {
        let client_protocol = self.client_protocol(listeners);
        if protocols.is_empty() || protocols.iter().any(|protocol| client_protocol.contains(protocol)) {
            return Ok(());
        }
        let names: Vec<_> = protocols.iter().map(|protocol| protocol.name()).collect();
        let list: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
        let (none, which) =
            if listeners.is_empty() { ("no listener", "a") } else { ("none of its listeners", "its") };
        let message = format!("this route can never match: {none} takes {}", names.join(" or "));
        let hint = if protocols == [ClientProtocol::Any] {
            format!(
                "write for example protocols = [\"tls\", \"ssh\"] in {which} [[listener]]: \"any\" is for bytes that none of \
                 them begins with"
            )
        } else {
            format!("write for example protocols = [\"tls\", {}] in {which} [[listener]]", list.join(", "))
        };
        Err(Refusal::new(message).hint(hint))
    }

    /// A route that refuses everybody has nobody to choose.
    pub(super) fn access(access: &Access, to: &Target) -> Result<(), Refusal> {
        match to {
            Target::Refuse if !access.is_open() => {
                Err(Refusal::new("`to = \"refuse\"` refuses every client, `allow` and `deny` change nothing")
                    .hint("write `from` to refuse only some sources, or a `to` for those that may"))
            }
            _ => Ok(()),
        }
    }

    /// A redirect needs clients that speak HTTP in clear text.
    pub(super) fn redirect(
        &self,
        redirect: Redirect,
        conditions: &Conditions,
        to: &Target,
    ) -> Result<(), Refusal> {
        let takes_http = conditions.take(ClientProtocol::Http)
            // Such a client offers none.
            && conditions.alpn.is_empty()
            && self.client_protocol(&conditions.listeners).contains(&ClientProtocol::Http);
        let message = match (redirect, to) {
            (Redirect::Off, _) => return Ok(()),
            (Redirect::Https, Target::Refuse) => {
                "`redirect` changes nothing: `to = \"refuse\"` refuses every client"
            }
            (Redirect::Https, _) if takes_http => return Ok(()),
            (Redirect::Https, _) => "`redirect` changes nothing: this route takes no requests in clear text",
        };
        Err(Refusal::new(message)
            .hint("leave it out, or set it on a route that takes requests on an http listener"))
    }

    /// Refuses a `{label}` target where a host of the route has no `*.` that the label could come from.
    pub(super) fn label<'h>(
        to: &Target,
        hosts: impl IntoIterator<Item = &'h HostPattern>,
    ) -> Result<(), Refusal> {
        let without = |host: &&HostPattern| !matches!(host, HostPattern::Below(_));
        match hosts.into_iter().find(without) {
            Some(host) if to.has_label() => Err(Refusal::new(format!(
                "`{{label}}` is what the `*` of a host like \"*.example.com\" matches; \"{host}\" has none"
            ))
            .hint("write the other hosts in a [[route]] of their own")),
            _ => Ok(()),
        }
    }

    /// Refuses a forced tier that cannot carry connections to the target.
    pub(super) fn datapath(&self, forced: Choice, to: &Target) -> Result<(), Refusal> {
        let is_unix = |address: &BackendAddress| address.unix().is_some();
        let leads_to_unix = match to {
            Target::Refuse => false,
            Target::One(name) => {
                self.on_unix_sockets.contains(name)
                    || (!self.pools.contains(name) && name.parse().is_ok_and(|address| is_unix(&address)))
            }
            Target::Many(addresses) => addresses.iter().any(is_unix),
        };
        if !(leads_to_unix && forced.needs_tcp()) {
            return Ok(());
        }
        let message =
            format!("the tier \"{}\" cannot carry a Unix socket, which has no packets", forced.name());
        Err(Refusal::new(message).hint("leave `datapath` out, or write \"splice\" or \"copy\""))
    }

    /// A route that refuses everybody has no connections.
    pub(super) fn connections(limit: usize, to: &Target) -> Result<(), Refusal> {
        if limit != 0 && *to == Target::Refuse { Err(connects_nowhere()) } else { Ok(()) }
    }

    /// The time to connect to addresses: a pool says its own.
    pub(super) fn connect_timeout(&self, to: &Target) -> Result<(), Refusal> {
        match to {
            Target::Refuse => Err(connects_nowhere()),
            Target::One(name) if self.pools.contains(name) => {
                Err(Refusal::new(format!("the pool `{name}` says itself how long connecting may take"))
                    .hint(format!("write connect_timeout in the [[pool]] called \"{name}\"")))
            }
            _ => Ok(()),
        }
    }

    /// TLVs are in headers of version 2 only.
    pub(super) fn proxy_tlvs(
        wanted: ProxyTlvs,
        version: ProxyProtocol,
        to: Option<&Target>,
    ) -> Result<(), Refusal> {
        if !wanted.is_empty() && to == Some(&Target::Refuse) {
            return Err(connects_nowhere());
        }
        if wanted.is_empty() || version == ProxyProtocol::V2 {
            return Ok(());
        }
        Err(Refusal::new("no header with TLVs is sent here")
            .hint("write proxy_protocol = \"v2\" beside it, or leave `proxy_tlvs` out"))
    }

    /// The PROXY header of a route is for addresses: a pool says its own.
    pub(super) fn proxy_protocol(&self, wanted: ProxyProtocol, to: &Target) -> Result<(), Refusal> {
        match to {
            Target::Refuse if wanted != ProxyProtocol::Off => Err(connects_nowhere()),
            Target::One(name) if wanted != ProxyProtocol::Off && self.pools.contains(name) => {
                Err(Refusal::new(format!("the pool `{name}` says itself which PROXY header it gets"))
                    .hint(format!("write proxy_protocol in the [[pool]] called \"{name}\"")))
            }
            _ => Ok(()),
        }
    }
}

/// `{label}` where no client's name is known, or beside other backends.
pub(super) fn label_out_of_place() -> Refusal {
    Refusal::new("`{label}` stands for a part of the client's name, which only a [[route]] knows")
        .hint("write it as the only `to` of a [[route]] with a host like \"*.example.com\"")
}

fn connects_nowhere() -> Refusal {
    Refusal::new("a route with `to = \"refuse\"` connects nowhere").hint("leave this out")
}

/// A single label without a port: more likely a pool with a typing error than a host.
fn is_bare(text: &str, address: &BackendAddress) -> bool {
    address.port.is_none() && matches!(address.host, BackendHost::Name(_)) && !text.contains('.')
}

impl Settings {
    /// Whether a route that comes from elsewhere, by the control API or from the state on disk, fits these settings:
    /// its pool and its listeners are there.
    pub fn check_route(&self, route: &RouteSpec) -> Result<(), Refusal> {
        let references = References {
            pools: self.pools.iter().map(|pool| pool.name.clone()).collect(),
            on_unix_sockets: self
                .pools
                .iter()
                .filter(|pool| pool.is_on_unix_socket())
                .map(|pool| pool.name.clone())
                .collect(),
            listeners: self.listeners.iter().map(References::of).collect(),
            checks: Vec::new(),
        };
        match &route.to {
            Target::Refuse => {}
            Target::One(text) => references.target(text).map(drop)?,
            Target::Many(addresses) => {
                for address in addresses {
                    references.member(&address.to_string())?;
                }
            }
        }
        for listener in &route.conditions.listeners {
            references.listener(listener)?;
        }
        let Conditions { listeners, protocols, alpn, .. } = &route.conditions;
        if !alpn.is_empty() {
            references.alpn(listeners, protocols)?;
        }
        references.protocols(listeners, protocols)?;
        References::access(&route.access, &route.to)?;
        references.redirect(route.redirect, &route.conditions, &route.to)?;
        References::connections(route.connections, &route.to)?;
        references.datapath(route.datapath, &route.to)?;
        References::label(&route.to, [&route.conditions.host])?;
        if route.connect_timeout.is_some() {
            references.connect_timeout(&route.to)?;
        }
        References::proxy_tlvs(route.proxy_tlvs, route.proxy_protocol, Some(&route.to))?;
        references.proxy_protocol(route.proxy_protocol, &route.to)?;
        match self.pools.iter().find(|pool| matches!(&route.to, Target::One(name) if *name == pool.name)) {
            Some(pool) => self.uses(std::slice::from_ref(route)).fit(&route.to, pool.health.kind),
            None => Ok(()),
        }
    }
}
