//! The description of a connection beside its packets, in the form in which it accompanies its flow: short
//! text in the kernel, read again by this daemon or the next one.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use edge_common::flow::LABEL_BYTES;
use serde::{Deserialize, Serialize};

use super::Connection;
use crate::spec::{AlpnList, ClientProtocol, HostName};

/// The description of a connection that became a flow. Keys are short: all of it must fit into a
/// [`Label`](edge_common::flow::Label).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passport {
    /// The listener.
    #[serde(rename = "l")]
    pub listener: Arc<str>,
    /// The destination's label.
    #[serde(rename = "r")]
    pub route: Arc<str>,
    /// [`Destination::identity`](super::Destination::identity).
    #[serde(rename = "k")]
    pub destination: u64,
    /// [`BackendId::key`](crate::pool::BackendId::key).
    #[serde(rename = "b")]
    pub backend: u64,
    /// The client's protocol, if its first bytes showed it.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ClientProtocol>,
    /// The SNI or the Host.
    #[serde(rename = "h", default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// The server name in SNI, if it cannot be a host name; escaped as in the access log.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub raw_name: Option<String>,
    /// The client's ALPN list.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    alpn: Vec<String>,
    /// Whether the host is the outer name of an Encrypted ClientHello.
    #[serde(rename = "e", default, skip_serializing_if = "std::ops::Not::not")]
    pub ech: bool,
    /// The client's address, if a PROXY header named it.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// The name that another proxy gave the connection.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub unique_id: Option<String>,
    /// [`Upstream::idle_timeout`](super::account::Upstream::idle_timeout), in milliseconds.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    idle_timeout: Option<u64>,
    /// Makes the numbers of the daemon that handed it over unique.
    #[serde(rename = "n")]
    pub run: u64,
}

impl Passport {
    /// Of a connection that has a way; `unique_id` where another proxy gave it one.
    pub fn of(connection: &Connection, unique_id: Option<String>, run: u64) -> Self {
        let request = connection.request();
        let upstream = connection.upstream();
        Self {
            listener: Arc::clone(&connection.listener),
            route: upstream.map(|upstream| Arc::clone(&upstream.destination.label)).unwrap_or_default(),
            destination: upstream.map_or(0, |upstream| upstream.destination.identity),
            backend: upstream.map_or(0, |upstream| upstream.lease.backend().id().key()),
            protocol: request.and_then(|request| request.protocol),
            host: request.and_then(|request| request.host.clone()),
            raw_name: request.and_then(|request| request.raw_name.as_ref()).map(ToString::to_string),
            alpn: request.map_or_else(Vec::new, |request| request.alpn.to_strings()),
            ech: request.is_some_and(|request| request.ech),
            client: connection.announced().map(|_| connection.client()),
            unique_id,
            idle_timeout: upstream
                .and_then(|upstream| upstream.idle_timeout)
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            run,
        }
    }

    /// The client, where `peer` is the far end of its connection.
    pub fn client_or(&self, peer: SocketAddr) -> SocketAddr {
        self.client.unwrap_or(peer)
    }

    /// As text; what is least needed is left out where it would not fit.
    pub fn text(&self) -> String {
        let mut shorter = self.clone();
        loop {
            // Strings and numbers: nothing that fails to serialise.
            let text = serde_json::to_string(&shorter).unwrap_or_default();
            if text.len() <= LABEL_BYTES {
                return text;
            }
            if !shorter.alpn.is_empty() {
                shorter.alpn.clear();
            } else if shorter.raw_name.take().is_none()
                && shorter.unique_id.take().is_none()
                && shorter.host.take().is_none()
            {
                // A route's host and a listener's name of several hundred bytes. Halved each time, so that it ends
                // where every character takes six bytes as an escape.
                shorter.route = Arc::from("");
                let kept = (shorter.listener.chars().count() / 2).min(64);
                shorter.listener = shorter.listener.chars().take(kept).collect::<String>().into();
            }
        }
    }

    /// As text without the client's choices, so that clients cannot create more different labels than there
    /// are listeners, routes and backends. `None` if a PROXY header names the client: a block must still find
    /// it.
    pub fn common_text(&self) -> Option<String> {
        if self.client.is_some() {
            return None;
        }
        let common = Self {
            host: None,
            raw_name: None,
            alpn: Vec::new(),
            ech: false,
            unique_id: None,
            ..self.clone()
        };
        Some(common.text())
    }

    /// Parses the text of [`Self::text`]; empty if another version wrote it.
    pub fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// The idle limit of its route or its listener; zero means unlimited.
    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout.map(Duration::from_millis)
    }

    /// The client's ALPN list.
    pub fn alpn(&self) -> AlpnList {
        self.alpn.iter().map(String::as_bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_written_and_always_fits() {
        let mut passport = Passport {
            listener: "https".into(),
            route: "*.example.com".into(),
            destination: u64::MAX,
            backend: 5,
            host: "cloud.example.com".parse().ok(),
            alpn: vec!["h2".into(), "http/1.1".into()],
            ech: true,
            run: u64::MAX,
            ..Passport::default()
        };
        assert_eq!(Passport::read(&passport.text()), passport);
        passport.alpn = (0..40).map(|number| format!("protocol-{number}")).collect();
        let read = Passport::read(&passport.text());
        assert!(read.alpn.is_empty() && read.host == passport.host);
        let label = "a".repeat(63);
        passport.host = [&*label, &label, &label, &"b".repeat(61)].join(".").parse().ok();
        passport.route = passport.host.as_ref().map(HostName::as_str).unwrap().into();
        passport.listener = "l".repeat(300).into();
        assert!(passport.text().len() <= LABEL_BYTES);
        passport.listener = "\u{1}".repeat(300).into();
        passport.client = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().ok();
        assert!(passport.text().len() <= LABEL_BYTES);
        assert_eq!(Passport::read("{"), Passport::default());
    }

    #[test]
    fn what_clients_choose_makes_no_common_text_of_its_own() {
        let passport = |host: &str, alpn: &[&str]| Passport {
            listener: "https".into(),
            route: "*.example.com".into(),
            destination: 3,
            backend: 5,
            host: host.parse().ok(),
            alpn: alpn.iter().map(|name| (*name).to_owned()).collect(),
            raw_name: alpn.is_empty().then(|| "b.example:443".to_owned()),
            ech: alpn.is_empty(),
            idle_timeout: Some(60_000),
            ..Passport::default()
        };
        let (one, other) = (passport("a.example.com", &["h2"]), passport("b.example.com", &[]));
        assert_ne!(one.text(), other.text());
        assert_eq!(one.common_text(), other.common_text());
        let read = Passport::read(&one.common_text().unwrap());
        assert_eq!(
            (&*read.listener, &*read.route, read.destination, read.backend),
            ("https", "*.example.com", 3, 5)
        );
        assert_eq!((read.idle_timeout(), read.host), (Some(Duration::from_mins(1)), None));
        let announced = Passport { client: "192.0.2.1:1".parse().ok(), ..one };
        assert_eq!(announced.common_text(), None);
    }
}
