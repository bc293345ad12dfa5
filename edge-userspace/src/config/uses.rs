//! The routes and listeners that lead to each target: the protocols that clients speak there and the ports they connect
//! to. The check `auto` follows from them, and so does whether a check of another kind can pass.

use std::collections::HashMap;

use super::{problem::Refusal, settings::Settings};
use crate::spec::{Ask, ClientProtocol, HealthKind, HostName, HostPattern, ListenerSpec, RouteSpec, Target};

/// One way for clients to a target.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Use {
    /// Their protocol; `None` on a tcp listener, where it is unknown.
    client_protocol: Option<ClientProtocol>,
    /// The port they come to.
    port: u16,
    /// The name they ask for, where it is one alone.
    host: Option<HostName>,
}

/// How a backend is asked for its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Questions {
    /// The questions, in this order; one answer is enough. Empty if the backend is not checked.
    pub asks: Vec<Ask>,
    /// The port of a backend that has none of its own.
    pub port: u16,
    /// The name to ask for.
    pub server_name: Option<HostName>,
}

/// The ways to each target, in the order of the routes and then of the listeners.
#[derive(Debug, Default)]
pub struct Uses<'s>(HashMap<&'s Target, Vec<Use>>);

impl<'s> Uses<'s> {
    /// The ways of these routes, and of the tcp listeners.
    pub fn of(routes: impl IntoIterator<Item = &'s RouteSpec>, listeners: &'s [ListenerSpec]) -> Self {
        let mut uses = Self::default();
        // Where a route redirects, only ACME challenges come in clear text, and home may have no server for them: such
        // a way is the last resort of a check.
        let mut redirected = Vec::new();
        for route in routes {
            let conditions = &route.conditions;
            let host = match &conditions.host {
                HostPattern::Exact(name) => Some(name),
                HostPattern::Below(_) | HostPattern::Any => None,
            };
            let met = |listener: &&ListenerSpec| conditions.hear(&listener.name);
            let ways = listeners.iter().filter(met).flat_map(|listener| {
                listener.routed().filter(|client_protocol| conditions.take(*client_protocol)).map(
                    |client_protocol| Use {
                        // Nobody knows what it is.
                        client_protocol: Some(client_protocol)
                            .filter(|client_protocol| *client_protocol != ClientProtocol::Any),
                        port: port(listener),
                        host: host.filter(|_| client_protocol.names_a_host()).cloned(),
                    },
                )
            });
            let (last, first): (Vec<_>, Vec<_>) = ways.partition(|way| {
                way.client_protocol.is_some_and(|client_protocol| route.redirects(client_protocol))
            });
            uses.0.entry(&route.to).or_default().extend(first);
            redirected.push((&route.to, last));
        }
        for listener in listeners {
            if let Some(to) = &listener.to {
                let way = Use { client_protocol: None, port: port(listener), host: None };
                uses.0.entry(to).or_default().push(way);
            }
        }
        for (to, ways) in redirected {
            uses.0.entry(to).or_default().extend(ways);
        }
        uses
    }

    /// Whether anything leads there.
    pub fn has(&self, target: &Target) -> bool {
        self.0.contains_key(target)
    }

    /// How a backend of `target` is asked by a check of this kind. `own_port` means that its address has a port, to
    /// which all ways lead.
    pub fn questions(&self, target: &Target, kind: HealthKind, own_port: bool) -> Questions {
        let ways = self.0.get(target).map_or(&[][..], Vec::as_slice);
        let wanted = wanted(kind);
        // Any port shows whether it listens.
        let client_protocol = wanted.filter(|ask| *ask != Ask::Connect);
        let fits = |way: &&Use| {
            client_protocol.is_none_or(|ask| {
                way.client_protocol.is_none_or(|client_protocol| Ask::of(client_protocol) == ask)
            })
        };
        let first = ways.iter().find(fits).or(ways.first());
        let port = first.map_or(443, |way| way.port);
        let there = || ways.iter().filter(fits).filter(|way| own_port || way.port == port);
        let asks = match (kind, wanted) {
            (HealthKind::Off, _) => Vec::new(),
            (_, Some(ask)) => vec![ask],
            _ => {
                let mut asks: Vec<_> = there().filter_map(|way| way.client_protocol).map(Ask::of).collect();
                asks.retain(|ask| *ask != Ask::Connect);
                let mut seen = Vec::new();
                asks.retain(|ask| {
                    !seen.contains(ask) && {
                        seen.push(*ask);
                        true
                    }
                });
                if asks.is_empty() { vec![Ask::Connect] } else { asks }
            }
        };
        Questions { asks, port, server_name: there().find_map(|way| way.host.clone()) }
    }

    /// Refuses a check that can never pass, since none of its clients speak that to the backends.
    pub(super) fn fit(&self, target: &Target, kind: HealthKind) -> Result<(), Refusal> {
        let ways = self.0.get(target).map_or(&[][..], Vec::as_slice);
        let Some(ask) = wanted(kind).filter(|ask| *ask != Ask::Connect) else { return Ok(()) };
        let passes =
            |way: &Use| way.client_protocol.is_none_or(|client_protocol| Ask::of(client_protocol) == ask);
        if ways.is_empty() || ways.iter().any(passes) {
            return Ok(());
        }
        let mut names: Vec<_> =
            ways.iter().filter_map(|way| way.client_protocol).map(ClientProtocol::name).collect();
        names.sort_unstable();
        names.dedup();
        let names = names.join(" and ");
        let message = format!("this check can never pass: the routes to the pool `{target}` speak {names}");
        Err(Refusal::new(message)
            .hint("leave `kind` out: \"auto\", the default, speaks what the routes speak"))
    }
}

/// The question of a check of this kind; `None` for `auto`, which follows the routes, and for `off`.
fn wanted(kind: HealthKind) -> Option<Ask> {
    match kind {
        HealthKind::Auto | HealthKind::Off => None,
        HealthKind::Tcp => Some(Ask::Connect),
        HealthKind::Tls => Some(Ask::Tls),
        HealthKind::Http => Some(Ask::Http),
        HealthKind::Ssh => Some(Ask::Ssh),
        HealthKind::Postgres => Some(Ask::Postgres),
    }
}

fn port(listener: &ListenerSpec) -> u16 {
    listener.bind.first().map_or(0, std::net::SocketAddr::port)
}

impl Settings {
    /// The ways to each target: through runtime routes, through routes of the file, and through tcp listeners.
    pub fn uses<'s>(&'s self, runtime: &'s [RouteSpec]) -> Uses<'s> {
        Uses::of(runtime.iter().chain(&self.routes), &self.listeners)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTENERS: &str = "[[listener]]\nname = \"https\"\nbind = [\"[::]:443\"]\n\
        [[listener]]\nname = \"http\"\nbind = [\"[::]:80\"]\nprotocol = \"http\"\n\
        [[listener]]\nname = \"mixed\"\nbind = [\"[::]:8443\"]\nprotocols = [\"tls\", \"ssh\", \"openvpn\", \"postgres\"]\n\
        [[listener]]\nname = \"mail\"\nbind = [\"[::]:25\"]\nprotocol = \"tcp\"\nto = \"tcp\"\n\
        [[pool]]\nname = \"tcp\"\n[[pool.backend]]\nto = \"10.0.0.1\"\n\
        [[pool]]\nname = \"p\"\n[[pool.backend]]\nto = \"10.0.0.1\"\n";

    fn settings(rest: &str) -> Settings {
        Settings::parse("test", &format!("{LISTENERS}{rest}")).unwrap()
    }

    fn asked(rest: &str, kind: HealthKind, own_port: bool) -> (Vec<Ask>, u16, Option<String>) {
        let settings = settings(rest);
        let found = settings.uses(&[]).questions(&Target::One("p".into()), kind, own_port);
        (found.asks, found.port, found.server_name.map(|name| name.to_string()))
    }

    #[test]
    fn auto_asks_what_the_routes_speak_on_the_port_that_is_checked() {
        use HealthKind::Auto;
        let name = Some("a.example".to_owned());
        let both = "[[route]]\nhost = \"a.example\"\nto = \"p\"\nlistener = [\"https\", \"http\"]\n";
        assert_eq!(asked(both, Auto, false), (vec![Ask::Tls], 443, name.clone()));
        assert_eq!(asked(both, Auto, true), (vec![Ask::Tls, Ask::Http], 443, name.clone()));
        let wild = "[[route]]\nhost = \"*.example\"\nto = \"p\"\nlistener = \"http\"\n";
        assert_eq!(asked(&wild.replace("\"http\"", "[\"http\"]"), Auto, false), (vec![Ask::Http], 80, None));
        let behind = "[[route]]\nhost = \"a.example\"\nto = \"p\"\nredirect = \"https\"\nlistener = [\"http\"]\n\
                      [[route]]\nhost = \"b.example\"\nto = \"p\"\nlistener = [\"https\"]\n";
        assert_eq!(
            asked(behind, Auto, false),
            (vec![Ask::Tls], 443, Some("b.example".into())),
            "not ACME's way"
        );
        let of =
            |protocol: &str| format!("[[route]]\nprotocol = [\"{protocol}\"]\nhost = \"*\"\nto = \"p\"\n");
        assert_eq!(asked(&of("ssh"), Auto, false), (vec![Ask::Ssh], 8443, None));
        assert_eq!(asked(&of("postgres"), Auto, false), (vec![Ask::Postgres], 8443, None));
        assert_eq!(asked(&of("openvpn"), Auto, false), (vec![Ask::Connect], 8443, None));
        assert_eq!(asked("", Auto, false), (vec![Ask::Connect], 443, None));
    }

    #[test]
    fn a_tcp_listener_is_asked_for_a_connection_and_what_is_off_for_nothing() {
        let settings = settings("");
        let uses = settings.uses(&[]);
        let found = |kind| uses.questions(&Target::One("tcp".into()), kind, false);
        assert_eq!((found(HealthKind::Auto).asks, found(HealthKind::Auto).port), (vec![Ask::Connect], 25));
        assert_eq!(found(HealthKind::Tls).asks, [Ask::Tls]);
        assert_eq!(found(HealthKind::Off).asks, []);
    }

    #[test]
    fn a_kind_is_asked_on_a_port_where_it_is_spoken() {
        let both = "[[route]]\nhost = \"a.example\"\nto = \"p\"\n";
        assert_eq!(asked(both, HealthKind::Http, false).1, 80);
        assert_eq!(asked(both, HealthKind::Tls, false).1, 443);
        assert_eq!(asked(both, HealthKind::Tcp, false), (vec![Ask::Connect], 443, Some("a.example".into())));
    }

    #[test]
    fn a_kind_that_no_route_speaks_is_refused() {
        let of = |kind: &str, listener: &str| {
            let text = LISTENERS
                .replace("name = \"p\"\n", &format!("name = \"p\"\nhealth = {{ kind = \"{kind}\" }}\n"));
            let route = format!("[[route]]\nhost = \"a.example\"\nto = \"p\"\nlistener = [\"{listener}\"]\n");
            Settings::parse("test", &format!("{text}{route}"))
        };
        for (kind, listener) in [("http", "https"), ("tls", "http"), ("ssh", "https"), ("postgres", "mixed")]
        {
            let error = of(kind, listener).unwrap_err().to_string();
            assert!(error.contains("can never pass") && error.contains("leave `kind` out"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        for (kind, listener) in
            [("http", "http"), ("tls", "mixed"), ("tcp", "https"), ("off", "http"), ("auto", "http")]
        {
            of(kind, listener).unwrap_or_else(|error| panic!("{kind}: {error}"));
        }
    }
}
