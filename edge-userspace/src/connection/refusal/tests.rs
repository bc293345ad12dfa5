//! The table "Refusals" of `docs/guide.md` is what the code decides.

use std::fmt::Write;

use super::*;
use crate::spec::HostNameError;

const GUIDE: &str = include_str!("../../../../docs/guide.md");

/// When it happens, and to whom: on a tls listener, on an http listener, elsewhere. `None` for what is no refusal.
fn happens(outcome: Outcome) -> Option<(&'static str, [bool; 3])> {
    const ALL: [bool; 3] = [true; 3];
    Some(match outcome {
        Outcome::NoRoute => ("no route takes the client", ALL),
        Outcome::Refused => ("its route has `to = \"refuse\"`", ALL),
        Outcome::DeniedByRoute => ("the source is in `deny` of its route, or not in `allow`", ALL),
        Outcome::ConnectFailed => ("no backend could be connected", ALL),
        Outcome::RouteLimit => ("`connections` of its route is reached", ALL),
        Outcome::BackendLimit => ("`connections` of its pool is reached at every backend", ALL),
        Outcome::Denied => ("the source is in `deny` of the listener, or not in `allow`", ALL),
        Outcome::Blocked => ("the source is blocked", ALL),
        Outcome::SourceLimit => ("`connections_per_source` is reached", ALL),
        Outcome::SourceRate => ("`connection_rate_per_source` is exceeded", ALL),
        Outcome::HelloMemory => ("there is no memory for the first bytes", ALL),
        Outcome::HelloTimeout => ("no complete hello or head in `hello_timeout`", ALL),
        Outcome::ProxyHeaderTimeout => ("no complete PROXY header in `hello_timeout`", ALL),
        Outcome::Rejected(rejection) => match rejection {
            Rejection::HttpOnTls => ("an HTTP request where TLS is expected", [true, false, true]),
            Rejection::TlsOnHttp => ("TLS where HTTP is expected", [false, true, true]),
            Rejection::Http2Preface => ("HTTP/2 in clear text", ALL),
            Rejection::UnknownProtocol => ("bytes of no protocol that is spoken here", ALL),
            Rejection::UnexpectedMessage => ("TLS that begins without a ClientHello", [true, false, true]),
            Rejection::Malformed(_) => ("a hello or head that is malformed", [true, true, false]),
            Rejection::TooLarge => ("a hello or head of more than `hello_bytes`", [true, true, false]),
            Rejection::TooManyRecords => ("a ClientHello in more than 4096 records", [true, false, false]),
            Rejection::TooManyFields => ("a head of more than 2048 fields", [false, true, false]),
            Rejection::BadName(_) => ("a Host that is no host name", [false, true, false]),
            Rejection::TwoHosts => ("a head that names two hosts", [false, true, false]),
            Rejection::ProxyHeader(_) => ("a missing or bad PROXY header from `accept_proxy`", ALL),
            Rejection::PostgresWithoutTls => ("a PostgreSQL session without TLS", [false, false, true]),
        },
        Outcome::Carried(_) | Outcome::Redirected | Outcome::Gone | Outcome::Stopped(_) => return None,
    })
}

fn refusals() -> Vec<Outcome> {
    use Outcome::{BackendLimit, ConnectFailed, DeniedByRoute, NoRoute, RouteLimit};
    use Rejection::*;
    let rejections = [
        HttpOnTls,
        Http2Preface,
        TlsOnHttp,
        UnknownProtocol,
        UnexpectedMessage,
        Malformed(""),
        TwoHosts,
        BadName(HostNameError::Empty),
        TooLarge,
        TooManyRecords,
        TooManyFields,
        PostgresWithoutTls,
        ProxyHeader(""),
    ];
    [NoRoute, Outcome::Refused, DeniedByRoute, ConnectFailed, RouteLimit, BackendLimit]
        .into_iter()
        .chain(rejections.map(Outcome::Rejected))
        .chain([
            Outcome::ProxyHeaderTimeout,
            Outcome::HelloTimeout,
            Outcome::HelloMemory,
            Outcome::Denied,
            Outcome::Blocked,
            Outcome::SourceLimit,
            Outcome::SourceRate,
        ])
        .collect()
}

fn cell(outcome: Outcome, protocol: Option<Spoken>) -> String {
    match answer(outcome, protocol) {
        Answer::Alert(description) => format!("alert `{}`", description.as_str()),
        Answer::Text(text) => match http::status_of(text) {
            Some(status) => {
                let hint = if text.ends_with(b"https://\n") { ", with the hint to use https://" } else { "" };
                format!("{status}{hint}")
            }
            None if text == postgres::TLS_REQUIRED => "an error in its own protocol".to_owned(),
            None => "GOAWAY `HTTP_1_1_REQUIRED`".to_owned(),
        },
        Answer::Redirect => "308".to_owned(),
        Answer::Close => "closed".to_owned(),
        Answer::Reset => "reset".to_owned(),
    }
}

#[test]
fn the_guide_has_the_table_of_refusals() {
    let mut table = String::from(
        "| `close` | what happened | on a tls listener | on an http listener | elsewhere |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for outcome in refusals() {
        let (when, applies) = happens(outcome).unwrap();
        let cells = [Some(Spoken::Tls), Some(Spoken::Http), None].map(|protocol| cell(outcome, protocol));
        let cells: Vec<_> =
            cells.iter().zip(applies).map(|(cell, applies)| if applies { cell } else { "–" }).collect();
        writeln!(table, "| `{}` | {when} | {} |", outcome.refused().unwrap(), cells.join(" | ")).unwrap();
    }
    assert!(GUIDE.contains(&table), "docs/guide.md, \"Refusals\", has to have this table:\n{table}");
}

#[test]
fn a_client_that_went_or_was_served_is_told_nothing() {
    for protocol in [None, Some(Spoken::Tls), Some(Spoken::Http), Some(Spoken::Postgres)] {
        for outcome in [Outcome::Gone, Outcome::Carried(crate::datapath::End::Finished)] {
            assert_eq!((answer(outcome, protocol), happens(outcome)), (Answer::Close, None));
        }
    }
}

#[test]
fn whoever_a_route_refuses_is_told_what_a_client_without_a_route_is() {
    for outcome in [Outcome::NoRoute, Outcome::Refused, Outcome::DeniedByRoute] {
        let told = |protocol| told(outcome, protocol);
        assert_eq!(told(Spoken::Http), "the client gets a 404");
        assert_eq!(told(Spoken::Tls), "the client gets the TLS alert unrecognized_name");
        assert_eq!(told(Spoken::Postgres), told(Spoken::Tls));
        assert_eq!([Spoken::Ssh, Spoken::Openvpn].map(told), ["the client is reset"; 2]);
    }
}
