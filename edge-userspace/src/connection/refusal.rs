//! Refuses a client properly: with the answer that its protocol provides, then FIN, and never a byte to a
//! backend.

use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use tokio::{net::TcpStream, time::timeout};

use super::CloseReason;
use crate::{
    datapath,
    receive::receive,
    sniff::{
        Rejection, http, postgres,
        tls::alert::{self, AlertDescription},
    },
    spec::ClientProtocol,
};

/// How long a refused client may take to read the answer and close.
const LINGER: Duration = Duration::from_secs(1);
/// The bytes that a refused client may still send meanwhile.
const LINGER_BYTES: usize = 256 * 1024;

/// The answer to a refused client.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Alert(AlertDescription),
    Text(&'static [u8]),
    /// A 308 to an address of its own.
    Redirect,
    Close,
    Reset,
}

/// The answer to a refused client that speaks this, in words.
pub fn told(outcome: CloseReason, protocol: ClientProtocol) -> String {
    match answer(outcome, Some(protocol)) {
        Answer::Alert(description) => format!("the client gets the TLS alert {}", description.as_str()),
        Answer::Text(text) => match http::status_of(text) {
            Some(status) => format!("the client gets a {status}"),
            None => "the client gets an error in its own protocol".to_owned(),
        },
        Answer::Redirect => "the client gets a 308".to_owned(),
        Answer::Close => "the connection is closed".to_owned(),
        Answer::Reset => "the client is reset".to_owned(),
    }
}

fn answer(outcome: CloseReason, protocol: Option<ClientProtocol>) -> Answer {
    let http = |status| Answer::Text(http::response(status));
    let speaks_tls = protocol.is_some_and(ClientProtocol::answers_in_tls);
    match (outcome, protocol) {
        (CloseReason::Rejected(Rejection::PostgresWithoutTls), _) => Answer::Text(postgres::TLS_REQUIRED),
        (CloseReason::Rejected(rejection), _) => {
            let (tls, http) =
                (rejection.alert().map(Answer::Alert), rejection.http_answer().map(Answer::Text));
            let told = if speaks_tls { tls.or(http) } else { http.or(tls) };
            told.unwrap_or(Answer::Reset)
        }
        // A client that a route refuses cannot tell whether the route exists.
        (CloseReason::NoRoute | CloseReason::Refused | CloseReason::DeniedByRoute, _) if speaks_tls => {
            Answer::Alert(AlertDescription::UnrecognizedName)
        }
        (
            CloseReason::NoRoute | CloseReason::Refused | CloseReason::DeniedByRoute,
            Some(ClientProtocol::Http),
        ) => http(404),
        (CloseReason::Redirected, _) => Answer::Redirect,
        (CloseReason::ConnectFailed | CloseReason::RouteLimit | CloseReason::BackendLimit, _)
            if speaks_tls =>
        {
            Answer::Alert(AlertDescription::InternalError)
        }
        (CloseReason::ConnectFailed, Some(ClientProtocol::Http)) => http(502),
        (CloseReason::RouteLimit | CloseReason::BackendLimit, Some(ClientProtocol::Http)) => http(503),
        (
            // A CancelRequest that was passed on.
            CloseReason::Carried(_) | CloseReason::HelloTimeout | CloseReason::Gone | CloseReason::Stopped(_),
            _,
        ) => Answer::Close,
        _ => Answer::Reset,
    }
}

/// Refuses the client, or sends it to `location`. Returns when it has closed, or has had the time to.
pub(super) async fn refuse(
    client: TcpStream,
    outcome: CloseReason,
    protocol: Option<ClientProtocol>,
    tls_version: u16,
    location: Option<String>,
) {
    let answer = answer(outcome, protocol);
    let (alert, redirection);
    let bytes: &[u8] = match answer {
        Answer::Alert(description) => {
            alert = alert::fatal(description, tls_version);
            &alert
        }
        Answer::Text(text) => text,
        Answer::Redirect => {
            redirection = http::redirection(&location.unwrap_or_default());
            redirection.as_bytes()
        }
        Answer::Close => &[],
        Answer::Reset => return datapath::reset(&client),
    };
    // An empty socket buffer takes the few bytes of an answer at once.
    let _ = client.try_write(bytes);
    if shutdown(&client, Shutdown::Write).is_err() || answer == Answer::Close {
        return;
    }
    // Closing with unread bytes in the socket would send a reset, which can overtake the answer at the
    // client.
    let mut sink = Vec::new();
    let mut left = LINGER_BYTES;
    let _ = timeout(LINGER, async {
        while let Ok(read @ 1..) = receive(&client, &mut sink).await {
            sink.clear();
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests;
