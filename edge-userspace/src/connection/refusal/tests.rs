//! The table "Refusals" of `docs/guide.md` is what the code decides.

use std::fmt::Write;

use super::*;
use crate::spec::HostNameError;

const GUIDE: &str = include_str!("../../../../docs/guide.md");

/// When it happens, and to whom: on a tls listener, on an http listener, elsewhere. `None` for what is no refusal.
fn happens(outcome: CloseReason) -> Option<(&'static str, [bool; 3])> {
    const ALL: [bool; 3] = [true; 3];
    Some(match outcome {
        CloseReason::NoRoute => ("no route takes the client", ALL),
        CloseReason::Refused => ("its route has `to = \"refuse\"`", ALL),
        CloseReason::DeniedByRoute => ("the source is in `deny` of its route, or not in `allow`", ALL),
        CloseReason::ConnectFailed => ("no backend could be connected", ALL),
        CloseReason::RouteLimit => ("`connections` of its route is reached", ALL),
        CloseReason::BackendLimit => ("`connections` of its pool is reached at every backend", ALL),
        CloseReason::Denied => ("the source is in `deny` of the listener, or not in `allow`", ALL),
        CloseReason::Blocked => ("the source is blocked", ALL),
        CloseReason::SourceLimit => ("`connections_per_source` is reached", ALL),
        CloseReason::SourceRate => ("`connection_rate_per_source` is exceeded", ALL),
        CloseReason::HelloMemory => ("there is no memory for the first bytes", ALL),
        CloseReason::HelloTimeout => ("no complete hello or head in `hello_timeout`", ALL),
        CloseReason::ProxyHeaderTimeout => ("no complete PROXY header in `hello_timeout`", ALL),
        CloseReason::Rejected(rejection) => match rejection {
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
        CloseReason::Carried(_) | CloseReason::Redirected | CloseReason::Gone | CloseReason::Stopped(_) => {
            return None;
        }
    })
}

fn refusals() -> Vec<CloseReason> {
    use CloseReason::{BackendLimit, ConnectFailed, DeniedByRoute, NoRoute, RouteLimit};
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
    [NoRoute, CloseReason::Refused, DeniedByRoute, ConnectFailed, RouteLimit, BackendLimit]
        .into_iter()
        .chain(rejections.map(CloseReason::Rejected))
        .chain([
            CloseReason::ProxyHeaderTimeout,
            CloseReason::HelloTimeout,
            CloseReason::HelloMemory,
            CloseReason::Denied,
            CloseReason::Blocked,
            CloseReason::SourceLimit,
            CloseReason::SourceRate,
        ])
        .collect()
}

fn cell(outcome: CloseReason, protocol: Option<ClientProtocol>) -> String {
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
        let cells = [Some(ClientProtocol::Tls), Some(ClientProtocol::Http), None]
            .map(|protocol| cell(outcome, protocol));
        let cells: Vec<_> =
            cells.iter().zip(applies).map(|(cell, applies)| if applies { cell } else { "–" }).collect();
        writeln!(table, "| `{}` | {when} | {} |", outcome.refused().unwrap(), cells.join(" | ")).unwrap();
    }
    assert!(GUIDE.contains(&table), "docs/guide.md, \"Refusals\", has to have this table:\n{table}");
}

#[test]
fn a_client_that_went_or_was_served_is_told_nothing() {
    for protocol in
        [None, Some(ClientProtocol::Tls), Some(ClientProtocol::Http), Some(ClientProtocol::Postgres)]
    {
        for outcome in [CloseReason::Gone, CloseReason::Carried(crate::datapath::End::Finished)] {
            assert_eq!((answer(outcome, protocol), happens(outcome)), (Answer::Close, None));
        }
    }
}

#[test]
fn whoever_a_route_refuses_is_told_what_a_client_without_a_route_is() {
    for outcome in [CloseReason::NoRoute, CloseReason::Refused, CloseReason::DeniedByRoute] {
        let told = |protocol| told(outcome, protocol);
        assert_eq!(told(ClientProtocol::Http), "the client gets a 404");
        assert_eq!(told(ClientProtocol::Tls), "the client gets the TLS alert unrecognized_name");
        assert_eq!(told(ClientProtocol::Postgres), told(ClientProtocol::Tls));
        assert_eq!([ClientProtocol::Ssh, ClientProtocol::Openvpn].map(told), ["the client is reset"; 2]);
    }
}
