//! Why a route wins and the others do not, in words that an operator reads.

use std::fmt;

use crate::{
    route::{Query, Rule, Table, table::Failed},
    spec::{ClientProtocol, Conditions, HostPattern},
};

/// A rule whose host fits a query, and what became of it.
#[derive(Clone, Debug)]
pub struct Considered<'t, T> {
    /// The rule.
    pub rule: &'t Rule<T>,
    /// Its place in the order in which the rules were given, from 0.
    pub place: usize,
    /// The result for this rule. Displays as a sentence without a full stop.
    pub outcome: Outcome,
}

/// The result for a rule that was considered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It takes the connection: its host as said and all its conditions hold.
    Wins(HostPattern),
    /// It would match too, but another goes first.
    Outranked(Outranked),
    /// Conditions that do not hold; never empty.
    Unmet(Vec<Unmet>),
}

/// Why the winner goes before another rule that matches too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outranked {
    /// The winner names the host exactly.
    ByExactName,
    /// The winner's suffix is longer, or this one is `*`.
    ByLongerSuffix,
    /// Same host, and the winner has more of `protocol`, `alpn` and `from`.
    ByMoreConditions,
    /// Same host and as many conditions; the winner stands earlier.
    ByOrder,
}

/// A condition that does not hold: what the rule wants, and what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// The rule is for other listeners.
    Listener {
        /// The rule's listeners.
        wanted: Vec<String>,
        /// The query's.
        actual: String,
    },
    /// The client speaks none of the protocols.
    Protocol {
        /// The rule's protocols.
        wanted: Vec<String>,
        /// The client's.
        actual: String,
    },
    /// The client offers none of the protocols.
    Alpn {
        /// The rule's protocols.
        wanted: Vec<String>,
        /// The client's.
        actual: Vec<String>,
    },
    /// The client is elsewhere.
    From {
        /// The rule's prefixes.
        wanted: Vec<String>,
        /// The client's address.
        actual: String,
    },
}

impl<T> Table<T> {
    /// All rules whose host matches, in the order in which they are tried, each with its result.
    ///
    /// For `edgectl routes test`; a connection is routed by [`Table::find`].
    pub fn explain(&self, query: &Query<'_>) -> Vec<Considered<'_, T>> {
        let source = query.source.to_canonical();
        let mut winner: Option<&Conditions> = None;
        let consider = |place| {
            let rule = self.rule(place);
            let conditions = &rule.conditions;
            let unmet: Vec<_> = conditions
                .unmet(query, source)
                .map(|failed| match failed {
                    Failed::Listener => Unmet::Listener {
                        wanted: texts(&conditions.listeners),
                        actual: query.listener.to_owned(),
                    },
                    Failed::Protocol => Unmet::Protocol {
                        wanted: protocols(conditions),
                        actual: query.protocol.name().to_owned(),
                    },
                    Failed::Alpn => {
                        Unmet::Alpn { wanted: texts(&conditions.alpn), actual: query.alpn.to_strings() }
                    }
                    Failed::From => {
                        Unmet::From { wanted: texts(&conditions.from), actual: source.to_string() }
                    }
                })
                .collect();
            let outcome = match winner {
                _ if !unmet.is_empty() => Outcome::Unmet(unmet),
                Some(winner) => Outcome::Outranked(outranked(winner, conditions)),
                None => {
                    winner = Some(conditions);
                    Outcome::Wins(conditions.host.clone())
                }
            };
            Considered { rule, place, outcome }
        };
        // The places are collected first: `consider` keeps what has won.
        self.candidates(query.host).collect::<Vec<_>>().into_iter().map(consider).collect()
    }
}

impl<T> Considered<'_, T> {
    /// Whether this is the rule that [`Table::find`] gives.
    pub fn wins(&self) -> bool {
        matches!(self.outcome, Outcome::Wins(_))
    }
}

fn outranked(winner: &Conditions, other: &Conditions) -> Outranked {
    if winner.host == other.host {
        if winner.weight() > other.weight() { Outranked::ByMoreConditions } else { Outranked::ByOrder }
    } else if matches!(winner.host, HostPattern::Exact(_)) {
        Outranked::ByExactName
    } else {
        Outranked::ByLongerSuffix
    }
}

/// The protocols that a rule matches, including those that it need not name.
fn protocols(conditions: &Conditions) -> Vec<String> {
    const WEB: [ClientProtocol; 2] = [ClientProtocol::Tls, ClientProtocol::Http];
    let named = if conditions.protocols.is_empty() { &WEB[..] } else { &conditions.protocols };
    named.iter().map(|protocol| protocol.name().to_owned()).collect()
}

fn texts(items: &[impl ToString]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wins(HostPattern::Exact(_)) => f.write_str("wins: it names this host"),
            Self::Wins(HostPattern::Below(_)) => f.write_str("wins: the longest suffix that fits"),
            Self::Wins(HostPattern::Any) => f.write_str("wins: it takes what no other route does"),
            Self::Outranked(why) => write!(f, "fits too, but {why}"),
            Self::Unmet(unmet) => {
                f.write_str("passed over: ")?;
                for (nth, unmet) in unmet.iter().enumerate() {
                    let comma = if nth == 0 { "" } else { ", and " };
                    write!(f, "{comma}{unmet}")?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Outranked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ByExactName => "a route for the exact name goes first",
            Self::ByLongerSuffix => "a longer suffix goes first",
            Self::ByMoreConditions => "a route for this host with more conditions goes first",
            Self::ByOrder => "a route for this host that stands earlier goes first",
        })
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener { wanted, actual } => {
                write!(f, "it is for listener {}, this is {actual}", wanted.join(" or "))
            }
            Self::Protocol { wanted, actual } => {
                write!(f, "it is for clients that speak {}, this one speaks {actual}", wanted.join(" or "))
            }
            Self::Alpn { wanted, actual } if actual.is_empty() => {
                write!(f, "it is for clients that offer {}, this one offers no ALPN", wanted.join(" or "))
            }
            Self::Alpn { wanted, actual } => write!(
                f,
                "it is for clients that offer {}, this one offers {}",
                wanted.join(" or "),
                actual.join(", ")
            ),
            Self::From { wanted, actual } => {
                write!(f, "it is for clients from {}, this one comes from {actual}", wanted.join(" or "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::AlpnList;

    #[test]
    fn each_candidate_says_why() {
        let rule = |host: &str, listeners: &[&str], alpn: &[&str], from: &[&str]| Rule {
            conditions: Conditions {
                listeners: listeners.iter().map(|&name| name.into()).collect(),
                alpn: alpn.iter().map(|&name| name.into()).collect(),
                from: from.iter().map(|net| net.parse().unwrap()).collect(),
                ..Conditions::of(host.parse().unwrap())
            },
            target: (),
        };
        let table = Table::new([
            rule("a.b.test", &[], &["acme-tls/1"], &["10.0.0.0/8", "fd00::/8"]),
            rule("a.b.test", &["http"], &[], &[]),
            rule("a.b.test", &[], &[], &["192.0.2.0/24"]),
            rule("a.b.test", &[], &["h2"], &[]),
            rule("a.b.test", &[], &[], &[]),
            rule("*.b.test", &[], &[], &[]),
            rule("*", &[], &[], &[]),
            rule("other.test", &[], &[], &[]),
        ]);
        let host = "a.b.test".parse().unwrap();
        let alpn: AlpnList = [&b"h2"[..], b"http/1.1"].into_iter().collect();
        let source = "::ffff:192.0.2.1".parse().unwrap();
        let protocol = ClientProtocol::Tls;
        let query = Query { host: Some(&host), protocol, alpn: &alpn, source, listener: "https" };
        let said: Vec<_> = table
            .explain(&query)
            .iter()
            .map(|considered| format!("{}: {}", considered.place, considered.outcome))
            .collect();
        assert_eq!(
            said,
            [
                "0: passed over: it is for clients that offer acme-tls/1, this one offers h2, http/1.1, and it is \
                 for clients from 10.0.0.0/8 or fd00::/8, this one comes from 192.0.2.1",
                "2: wins: it names this host",
                "3: fits too, but a route for this host that stands earlier goes first",
                "1: passed over: it is for listener http, this is https",
                "4: fits too, but a route for this host with more conditions goes first",
                "5: fits too, but a route for the exact name goes first",
                "6: fits too, but a route for the exact name goes first",
            ]
        );
    }

    #[test]
    fn a_suffix_and_everything_say_so() {
        let rule = |host: &str| Rule { conditions: Conditions::of(host.parse().unwrap()), target: () };
        let table = Table::new([rule("*.test"), rule("*.a.test"), rule("*")]);
        let host = "b.a.test".parse().unwrap();
        let alpn = AlpnList::default();
        let (protocol, source) = (ClientProtocol::Tls, [192, 0, 2, 1].into());
        let mut query = Query { host: Some(&host), protocol, alpn: &alpn, source, listener: "https" };
        let outcomes = |query: &Query<'_>| {
            table.explain(query).iter().map(|considered| considered.outcome.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            outcomes(&query),
            [
                "wins: the longest suffix that fits",
                "fits too, but a longer suffix goes first",
                "fits too, but a longer suffix goes first"
            ]
        );
        query.host = None;
        assert_eq!(outcomes(&query), ["wins: it takes what no other route does"]);
        query.protocol = ClientProtocol::Ssh;
        assert_eq!(
            outcomes(&query),
            ["passed over: it is for clients that speak tls or http, this one speaks ssh"]
        );
    }
}
