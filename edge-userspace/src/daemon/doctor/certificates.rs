//! `edgectl doctor` on the certificates of backends: whether they are valid long enough and for the name, and
//! whether one covers names of other backends.
//!
//! HTTP/2 turns the last into a trap: a browser reuses a connection for every name that its certificate
//! covers and that resolves to the same address, which at an edge all names do (RFC 9113 §9.1.1).

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt, stream};

use super::backends::{AT_ONCE, Home, MOST};
use crate::{
    control::api::{Check, CheckStatus},
    pool::check::{CheckError, certificate::Certificate, diagnosis::certificate},
    spec::{Ask, HostPattern},
};

/// A shorter remaining validity is worth a warning: ACME clients renew at a third of 90 days, and have failed
/// by then.
const SOON: Duration = Duration::from_hours(14 * 24);
/// Pairs of names that are told of.
const MOST_PAIRS: usize = 8;

/// The certificate shown to a client of a route.
struct Seen {
    host: HostPattern,
    pool: Arc<str>,
    /// Whether every client of that name comes here, whatever it offers and wherever it is.
    always: bool,
    certificate: Result<Certificate, CheckError>,
}

/// Asks one backend for each route.
pub(super) async fn look(homes: &[Home]) -> Vec<Check> {
    let mut routes = HashSet::new();
    let tls = homes.iter().filter(|home| home.ask == Ask::Tls);
    let up = tls.filter(|home| home.backend.state().takes_connections());
    // One backend a route: those of a pool offer the same service.
    let each = up.filter(|home| routes.insert(Arc::as_ptr(&home.destination).addr()));
    let asked: Vec<_> = each.take(MOST).map(ask).collect();
    let seen: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let seen: Vec<_> = seen.into_iter().flatten().collect();
    judge(&seen, SystemTime::now())
}

async fn ask(home: &Home) -> Option<Seen> {
    let conditions = &home.destination.route.as_ref()?.conditions;
    Some(Seen {
        host: conditions.host.clone(),
        pool: Arc::clone(home.destination.pool.name()),
        always: conditions.alpn.is_empty() && conditions.from.is_empty(),
        certificate: certificate(&home.backend, &home.plan).await,
    })
}

fn judge(seen: &[Seen], now: SystemTime) -> Vec<Check> {
    let mut checks: Vec<_> = seen.iter().filter_map(|seen| of_one(seen, now)).collect();
    checks.extend(coalesced(seen));
    checks
}

fn of_one(seen: &Seen, now: SystemTime) -> Option<Check> {
    let name = format!("certificate of {}", seen.host);
    let found = match &seen.certificate {
        Ok(found) => found,
        Err(error @ CheckError::NoCertificate(_)) => {
            return Some(Check::new(name, CheckStatus::Skip, error.to_string()));
        }
        // The hello checks show other faults.
        Err(_) => return None,
    };
    let renew = "renew it at home; see why its ACME client did not";
    Some(match found.not_after.duration_since(now) {
        Err(_) => {
            Check::new(name, CheckStatus::Fail, format!("ended on {}", day(found.not_after))).remedy(renew)
        }
        Ok(_) if found.not_before > now => {
            Check::new(name, CheckStatus::Fail, format!("begins on {}", day(found.not_before)))
                .remedy("set the clocks of home and of this machine")
        }
        Ok(left) if left < SOON => {
            Check::new(name, CheckStatus::Warn, format!("ends on {}", day(found.not_after))).remedy(renew)
        }
        Ok(_) if matches!(&seen.host, HostPattern::Exact(_)) && !covers(found, &seen.host) => {
            Check::new(name, CheckStatus::Warn, format!("is for {} only", list(&found.names)))
                .remedy("have the server at home get a certificate for this name, or correct the route")
        }
        Ok(_) => {
            let message = format!("for {}, until {}", list(&found.names), day(found.not_after));
            Check::new(name, CheckStatus::Ok, message)
        }
    })
}

/// Names of different homes that one certificate covers.
fn coalesced(seen: &[Seen]) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut told = HashSet::new();
    for own in seen.iter().filter(|own| own.always) {
        let Ok(certificate) = &own.certificate else { continue };
        // Where the certificate is not for the name itself no browser has a connection.
        if matches!(own.host, HostPattern::Exact(_)) && !covers(certificate, &own.host) {
            continue;
        }
        for other in seen.iter().filter(|other| other.always && other.pool != own.pool) {
            let mut pair = [&own.host, &other.host].map(ToString::to_string);
            pair.sort();
            if covers(certificate, &other.host) && told.insert(pair) {
                checks.push(trap(own, other));
            }
        }
    }
    checks.truncate(MOST_PAIRS);
    checks
}

fn trap(own: &Seen, other: &Seen) -> Check {
    let message = format!(
        "the certificate of {} ({}) covers {} too, which leads to {}: over HTTP/2 a browser may ask the one for the \
         other",
        own.host, own.pool, other.host, other.pool
    );
    Check::new("connection coalescing", CheckStatus::Warn, message).remedy(
        "give each name a certificate of its own, or see that the server answers 421 for names it does not serve",
    )
}

/// Whether a certificate is good for every name of a route.
fn covers(certificate: &Certificate, host: &HostPattern) -> bool {
    match host {
        HostPattern::Exact(name) => certificate.covers(name.as_str()),
        HostPattern::Below(_) => {
            certificate.names.iter().any(|name| name.eq_ignore_ascii_case(&host.to_string()))
        }
        HostPattern::Any => false,
    }
}

fn day(at: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        _ if names.is_empty() => "no name".to_owned(),
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 60 * 60;

    fn at(days: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(days * DAY)
    }

    fn seen(host: &str, pool: &str, names: &[&str], until: u64) -> Seen {
        Seen {
            host: host.parse().unwrap(),
            pool: pool.into(),
            always: true,
            certificate: Ok(Certificate {
                not_before: at(100),
                not_after: at(until),
                names: names.iter().map(|&name| name.to_owned()).collect(),
            }),
        }
    }

    fn judged(seen: &[Seen]) -> Vec<(CheckStatus, String)> {
        judge(seen, at(1000)).into_iter().map(|check| (check.status, check.message)).collect()
    }

    #[test]
    fn the_time_that_is_left_and_the_name_count() {
        for (names, until, status, message) in [
            (&["a.example"][..], 1100, CheckStatus::Ok, "for a.example, until 1973-01-05"),
            (&["a.example"], 1010, CheckStatus::Warn, "ends on 1972-10-07"),
            (&["a.example"], 999, CheckStatus::Fail, "ended on 1972-09-26"),
            (&["b.example"], 1100, CheckStatus::Warn, "is for b.example only"),
            (&[], 1100, CheckStatus::Warn, "is for no name only"),
        ] {
            assert_eq!(judged(&[seen("a.example", "p", names, until)]), [(status, message.into())]);
        }
        let mut early = seen("a.example", "p", &["a.example"], 1100);
        early.certificate.as_mut().unwrap().not_before = at(1001);
        assert_eq!(judged(&[early])[0].0, CheckStatus::Fail);
        let hidden =
            Seen { certificate: Err(CheckError::NoCertificate(70)), ..seen("a.example", "p", &[], 1) };
        assert_eq!(judged(&[hidden])[0].0, CheckStatus::Skip);
    }

    #[test]
    fn one_certificate_for_two_homes_is_a_trap() {
        let wild = || seen("a.example.com", "one", &["*.example.com"], 1100);
        let traps =
            |all: &[Seen]| judged(all).into_iter().filter(|(_, text)| text.contains("HTTP/2")).count();
        assert_eq!(traps(&[wild(), seen("b.example.com", "two", &["b.example.com"], 1100)]), 1);
        assert_eq!(traps(&[wild(), seen("b.example.com", "two", &["*.example.com"], 1100)]), 1, "told once");
        assert_eq!(
            traps(&[wild(), seen("b.example.com", "one", &["*.example.com"], 1100)]),
            0,
            "the same home"
        );
        assert_eq!(traps(&[wild(), seen("b.example.org", "two", &["b.example.org"], 1100)]), 0);
        assert_eq!(
            traps(&[wild(), seen("b.c.example.com", "two", &["x.example"], 1100)]),
            0,
            "one label deep"
        );
        let below = seen("*.example.com", "three", &["*.example.com"], 1100);
        assert_eq!(traps(&[below, seen("cloud.example.com", "two", &["cloud.example.com"], 1100)]), 1);
        let acme = Seen { always: false, ..seen("b.example.com", "two", &["*.example.com"], 1100) };
        assert_eq!(traps(&[wild(), acme]), 0, "another kind of client");
    }
}
