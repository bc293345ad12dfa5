//! The route table: built once, then only read.
//!
//! A look-up costs one hash for the exact name, and one for each depth at which the table has a suffix. A
//! client that sends 127 labels therefore causes no more work than the operator's own `*.` routes allow.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use crate::spec::{AlpnList, ClientProtocol, Conditions, HostName, HostPattern};

/// When something applies, and what then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule<T> {
    /// When it applies.
    pub conditions: Conditions,
    /// Where it leads.
    pub target: T,
}

/// The properties of a connection that routing uses.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The name asked for; `None` where there is none that is usable, which `*` alone matches.
    pub host: Option<&'a HostName>,
    /// The client's protocol.
    pub protocol: ClientProtocol,
    /// The client's ALPN list; empty if it does not speak TLS.
    pub alpn: &'a AlpnList,
    /// The client's address; an IPv4-mapped one counts as IPv4.
    pub source: IpAddr,
    /// The name of the listener that accepted it.
    pub listener: &'a str,
}

/// Places in [`Table::rules`] of rules for one host, in the order in which they are tried.
type Places = Vec<usize>;

/// All rules, indexed by host.
///
/// Precedence: the exact name, then the longest suffix, then `*`; for the same host the rule with more of
/// `protocol`, `alpn` and `from`, then the order in which the rules were given. If a rule's conditions do not
/// hold, the next best rule is tried.
#[derive(Clone, Debug)]
pub struct Table<T> {
    rules: Box<[Rule<T>]>,
    exact: HashMap<HostName, Places>,
    below: HashMap<HostName, Places>,
    any: Places,
    /// Bit n is set when `below` has a suffix of n labels. A name of 253 octets has at most 127.
    depths: u128,
}

impl<T> Table<T> {
    /// Builds the table; the order of `rules` is the order of the file.
    pub fn new(rules: impl IntoIterator<Item = Rule<T>>) -> Self {
        let rules: Box<[_]> = rules.into_iter().collect();
        let mut table = Self {
            exact: HashMap::with_capacity(rules.len()),
            below: HashMap::new(),
            any: Places::new(),
            depths: 0,
            rules,
        };
        for (place, rule) in table.rules.iter().enumerate() {
            let places = match &rule.conditions.host {
                HostPattern::Exact(name) => table.exact.entry(name.clone()).or_default(),
                HostPattern::Below(suffix) => {
                    table.depths |= depth_bit(labels(suffix.as_str()));
                    table.below.entry(suffix.clone()).or_default()
                }
                HostPattern::Any => &mut table.any,
            };
            places.push(place);
        }
        let rules = &table.rules;
        let groups = table.exact.values_mut().chain(table.below.values_mut()).chain([&mut table.any]);
        for places in groups {
            // The sort is stable, so the order of the file stands among equals.
            places.sort_by_key(|&place| std::cmp::Reverse(rules[place].conditions.weight()));
        }
        table
    }

    /// The rule that wins.
    pub fn find(&self, query: &Query<'_>) -> Option<&Rule<T>> {
        let source = query.source.to_canonical();
        self.candidates(query.host)
            .map(|place| &self.rules[place])
            .find(|rule| rule.conditions.unmet(query, source).next().is_none())
    }

    /// The places of all rules whose host fits, best first.
    pub(super) fn candidates<'t>(&'t self, host: Option<&'t HostName>) -> impl Iterator<Item = usize> + 't {
        let exact = host.and_then(|host| self.exact.get(host));
        let below = host.into_iter().flat_map(|host| self.suffixes(host.as_str()));
        exact.into_iter().chain(below).chain([&self.any]).flatten().copied()
    }

    /// The rules for each suffix of `host`, the longest suffix first.
    fn suffixes<'t>(&'t self, host: &'t str) -> impl Iterator<Item = &'t Places> + 't {
        let mut rest = host;
        let mut depth = if self.depths == 0 { 1 } else { labels(host) };
        std::iter::from_fn(move || {
            while depth > 1 {
                depth -= 1;
                rest = rest.split_once('.')?.1;
                if self.depths & depth_bit(depth) != 0
                    && let Some(places) = self.below.get(rest)
                {
                    return Some(places);
                }
            }
            None
        })
    }

    /// The rule at a place, for a place that this table gave out.
    pub(super) fn rule(&self, place: usize) -> &Rule<T> {
        &self.rules[place]
    }

    /// All rules in the order in which they were given.
    pub fn iter(&self) -> std::slice::Iter<'_, Rule<T>> {
        self.rules.iter()
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self::new([])
    }
}

impl<'t, T> IntoIterator for &'t Table<T> {
    type Item = &'t Rule<T>;
    type IntoIter = std::slice::Iter<'t, Rule<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// A condition that does not hold; the order is that of [`Conditions::unmet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    Listener,
    Protocol,
    Alpn,
    From,
}

impl Conditions {
    /// How much is asked for beside the host; more of it goes first.
    pub(super) fn weight(&self) -> usize {
        [self.protocols.is_empty(), self.alpn.is_empty(), self.from.is_empty()]
            .into_iter()
            .map(|is_absent| usize::from(!is_absent))
            .sum()
    }

    /// The conditions that do not hold, apart from the host. `source` is the canonical form of the query's.
    pub(super) fn unmet(&self, query: &Query<'_>, source: IpAddr) -> impl Iterator<Item = Failed> {
        let holds = |name: &Arc<str>| **name == *query.listener;
        let offered = |offer: &[u8]| self.alpn.iter().any(|name| name.as_bytes() == offer);
        let listener = self.listeners.is_empty() || self.listeners.iter().any(holds);
        let protocol = self.take(query.protocol);
        let alpn = self.alpn.is_empty() || query.alpn.iter().any(offered);
        let from = self.from.is_empty() || self.from.iter().any(|net| net.contains(&source));
        [
            (listener, Failed::Listener),
            (protocol, Failed::Protocol),
            (alpn, Failed::Alpn),
            (from, Failed::From),
        ]
        .into_iter()
        .filter_map(|(holds, failed)| (!holds).then_some(failed))
    }
}

fn labels(name: &str) -> usize {
    name.bytes().filter(|&byte| byte == b'.').count() + 1
}

/// The bit of [`Table::depths`]; none for a depth that no name has.
fn depth_bit(labels: usize) -> u128 {
    u32::try_from(labels).ok().and_then(|labels| 1_u128.checked_shl(labels)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::route::Considered;

    fn conditions(host: &str) -> Conditions {
        Conditions::of(host.parse().unwrap())
    }

    fn with(host: &str, listeners: &[&str], alpn: &[&str], from: &[&str]) -> Conditions {
        Conditions {
            listeners: listeners.iter().map(|&name| name.into()).collect(),
            alpn: alpn.iter().map(|&name| name.into()).collect(),
            from: from.iter().map(|net| net.parse().unwrap()).collect(),
            ..conditions(host)
        }
    }

    fn table(rules: impl IntoIterator<Item = Conditions>) -> Table<usize> {
        Table::new(rules.into_iter().enumerate().map(|(target, conditions)| Rule { conditions, target }))
    }

    struct Client {
        host: Option<HostName>,
        protocol: ClientProtocol,
        alpn: AlpnList,
        source: IpAddr,
        listener: &'static str,
    }

    impl Client {
        fn of(host: &str) -> Self {
            Self {
                host: host.parse().ok(),
                protocol: ClientProtocol::Tls,
                alpn: AlpnList::default(),
                source: Ipv4Addr::new(192, 0, 2, 1).into(),
                listener: "https",
            }
        }

        fn offering(self, alpn: &[&str]) -> Self {
            Self { alpn: alpn.iter().map(|name| name.as_bytes()).collect(), ..self }
        }

        fn from(self, source: &str) -> Self {
            Self { source: source.parse().unwrap(), ..self }
        }

        fn query(&self) -> Query<'_> {
            Query {
                host: self.host.as_ref(),
                protocol: self.protocol,
                alpn: &self.alpn,
                source: self.source,
                listener: self.listener,
            }
        }

        fn in_table(&self, table: &Table<usize>) -> Option<usize> {
            table.find(&self.query()).map(|rule| rule.target)
        }
    }

    #[test]
    fn the_exact_name_then_the_longest_suffix_then_everything() {
        let table = table(["*", "*.example.com", "*.a.example.com", "b.a.example.com"].map(conditions));
        for (host, target) in [
            ("b.a.example.com", 3),
            ("c.a.example.com", 2),
            ("d.c.b.a.example.com", 2),
            ("a.example.com", 1),
            ("example.com", 0),
            ("com", 0),
            ("notexample.com", 0),
            ("", 0),
            ("192.0.2.7", 0),
        ] {
            assert_eq!(Client::of(host).in_table(&table), Some(target), "{host}");
        }
    }

    #[test]
    fn a_suffix_is_not_below_itself_and_no_name_is_below_nothing() {
        let table = table(["*.example.com", "cloud.example.org"].map(conditions));
        for host in ["example.com", "badexample.com", "example.org", "a.cloud.example.org", ""] {
            assert_eq!(Client::of(host).in_table(&table), None, "{host}");
        }
    }

    #[test]
    fn more_conditions_go_first_and_where_they_do_not_hold_the_next_best_is_tried() {
        let table = table([
            conditions("a.test"),
            with("a.test", &[], &["acme-tls/1"], &[]),
            with("a.test", &[], &["acme-tls/1"], &["10.0.0.0/8", "2001:db8::/32"]),
            with("a.test", &["http"], &[], &["198.51.100.0/24"]),
            with("b.test", &[], &["h2"], &[]),
            conditions("*.test"),
        ]);
        let client = || Client::of("a.test");
        assert_eq!(client().in_table(&table), Some(0));
        assert_eq!(client().offering(&["h2", "acme-tls/1"]).in_table(&table), Some(1));
        assert_eq!(client().offering(&["acme-tls/1"]).from("10.1.2.3").in_table(&table), Some(2));
        assert_eq!(client().offering(&["acme-tls/1"]).from("::ffff:10.1.2.3").in_table(&table), Some(2));
        assert_eq!(client().offering(&["acme-tls/1"]).from("2001:db8::1").in_table(&table), Some(2));
        assert_eq!(client().from("10.1.2.3").in_table(&table), Some(0));
        assert_eq!(client().from("198.51.100.9").in_table(&table), Some(0));
        let http = Client { listener: "http", ..client().from("198.51.100.9") };
        assert_eq!(http.in_table(&table), Some(3));
        assert_eq!(Client::of("b.test").in_table(&table), Some(5), "from an exact name to a suffix");
        assert_eq!(Client::of("b.test").offering(&["h2"]).in_table(&table), Some(4));
    }

    #[test]
    fn among_equals_the_order_of_the_file_decides() {
        let table = table([
            with("a.test", &[], &["h2"], &[]),
            with("a.test", &[], &[], &["192.0.2.0/24"]),
            conditions("a.test"),
        ]);
        assert_eq!(Client::of("a.test").offering(&["h2"]).in_table(&table), Some(0));
        assert_eq!(Client::of("a.test").in_table(&table), Some(1));
    }

    #[test]
    fn what_names_no_host_goes_only_where_a_route_says_so() {
        let speaking =
            |protocols: &[ClientProtocol]| Conditions { protocols: protocols.to_vec(), ..conditions("*") };
        let table =
            table([conditions("*"), speaking(&[ClientProtocol::Ssh]), speaking(&[ClientProtocol::Http])]);
        let client = |protocol| Client { protocol, ..Client::of("") };
        assert_eq!(client(ClientProtocol::Tls).in_table(&table), Some(0));
        assert_eq!(client(ClientProtocol::Ssh).in_table(&table), Some(1));
        assert_eq!(client(ClientProtocol::Http).in_table(&table), Some(2), "more conditions go first");
        assert_eq!(client(ClientProtocol::Openvpn).in_table(&table), None);
        assert_eq!(
            client(ClientProtocol::Postgres).in_table(&table),
            None,
            "a web server would not understand it"
        );
    }

    #[test]
    fn names_of_the_deepest_kind_are_found() {
        let deep = ["a"; 127].join(".");
        let suffix = ["a"; 126].join(".");
        let table = table([conditions(&format!("*.{suffix}"))]);
        assert_eq!(Client::of(&deep).in_table(&table), Some(0));
        assert_eq!(Client::of(&suffix).in_table(&table), None);
    }

    /// The precedence as interface and words have it, without an index: the best of all that match.
    fn reference(rules: &[Conditions], client: &Client) -> Option<usize> {
        let matches = |rule: &Conditions| {
            let host = client.host.as_ref().map_or("", HostName::as_str);
            let host_fits = match &rule.host {
                HostPattern::Exact(name) => host == name.as_str(),
                HostPattern::Below(suffix) => host.ends_with(&format!(".{suffix}")),
                HostPattern::Any => true,
            };
            let offers: Vec<_> = client.alpn.to_strings();
            let protocol_fits = match &*rule.protocols {
                [] => matches!(client.protocol, ClientProtocol::Tls | ClientProtocol::Http),
                wanted => wanted.contains(&client.protocol),
            };
            host_fits
                && protocol_fits
                && (rule.listeners.is_empty() || rule.listeners.contains(&client.listener.into()))
                && (rule.alpn.is_empty() || rule.alpn.iter().any(|name| offers.contains(&name.to_string())))
                && (rule.from.is_empty()
                    || rule.from.iter().any(|net| net.contains(&client.source.to_canonical())))
        };
        let rank = |rule: &Conditions| {
            let host = match &rule.host {
                HostPattern::Exact(_) => usize::MAX,
                HostPattern::Below(suffix) => suffix.as_str().len(),
                HostPattern::Any => 0,
            };
            let conditions = [rule.protocols.is_empty(), rule.alpn.is_empty(), rule.from.is_empty()];
            (host, conditions.iter().filter(|empty| !**empty).count())
        };
        let mut best: Option<usize> = None;
        for (place, rule) in rules.iter().enumerate().filter(|(_, rule)| matches(rule)) {
            if best.is_none_or(|best| rank(rule) > rank(&rules[best])) {
                best = Some(place);
            }
        }
        best
    }

    fn name() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!["a", "b"]), 1..5).prop_map(|labels| labels.join("."))
    }

    fn rule() -> impl Strategy<Value = Conditions> {
        let host = prop_oneof![
            4 => name(),
            4 => name().prop_map(|name| format!("*.{name}")),
            1 => Just("*".to_owned()),
        ];
        let listeners = prop::sample::subsequence(vec!["http", "https"], 0..=2);
        let alpn = prop::sample::subsequence(vec!["h2", "acme-tls/1", "http/1.1"], 0..=2);
        let from = prop::sample::subsequence(vec!["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"], 0..=2);
        let protocols = prop_oneof![
            3 => Just(Vec::new()),
            1 => prop::sample::subsequence(vec![ClientProtocol::Tls, ClientProtocol::Http, ClientProtocol::Ssh], 1..=2),
        ];
        (host, listeners, protocols, alpn, from).prop_map(|(host, listeners, protocols, alpn, from)| {
            Conditions { protocols, ..with(&host, &listeners, &alpn, &from) }
        })
    }

    fn client() -> impl Strategy<Value = Client> {
        let host = prop_oneof![6 => name().prop_map(Some), 1 => Just(None)];
        let alpn = prop::sample::subsequence(vec!["h2", "acme-tls/1", "http/1.1"], 0..=3);
        let source =
            prop::sample::select(vec!["10.0.0.1", "10.1.0.1", "::ffff:10.1.0.1", "2001:db8::1", "::1"]);
        let listener = prop::sample::select(vec!["http", "https", "other"]);
        let protocol =
            prop::sample::select(vec![ClientProtocol::Tls, ClientProtocol::Http, ClientProtocol::Ssh]);
        (host, protocol, alpn, source, listener).prop_map(|(host, protocol, alpn, source, listener)| {
            let client = Client::of(host.as_deref().unwrap_or("")).offering(&alpn).from(source);
            Client { protocol, listener, ..client }
        })
    }

    impl std::fmt::Debug for Client {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            self.query().fmt(f)
        }
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_the_reference(
            rules in prop::collection::vec(rule(), 0..40),
            clients in prop::collection::vec(client(), 1..20),
        ) {
            let table = table(rules.clone());
            for client in &clients {
                prop_assert_eq!(client.in_table(&table), reference(&rules, client), "{:?}", client);
            }
        }

        #[test]
        fn what_is_explained_is_what_is_found(
            rules in prop::collection::vec(rule(), 0..40),
            client in client(),
        ) {
            let table = table(rules);
            let winners: Vec<_> = table
                .explain(&client.query())
                .into_iter()
                .filter(Considered::wins)
                .map(|considered| considered.rule.target)
                .collect();
            prop_assert_eq!(winners, Vec::from_iter(client.in_table(&table)));
        }
    }

    #[test]
    fn an_ipv6_everything_is_not_every_ipv4() {
        let table = table([with("*", &[], &[], &["::/0"])]);
        assert_eq!(Client::of("a.test").from("::ffff:192.0.2.1").in_table(&table), None);
        assert_eq!(Client::of("a.test").from(&Ipv6Addr::LOCALHOST.to_string()).in_table(&table), Some(0));
    }
}
