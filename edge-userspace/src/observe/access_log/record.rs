//! A line of the access log.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, Serializer};

use crate::spec::{AlpnList, ClientProtocol, HostName, SocketName, Tier};

/// One line. Times are in milliseconds, bytes as the client and the backend see the stream.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// When it was accepted; RFC 3339, UTC.
    #[serde(serialize_with = "rfc3339")]
    pub time: SystemTime,
    /// Its number, as in `edgectl connections list`.
    pub id: u64,
    /// The client.
    pub client: SocketAddr,
    /// The address that the client had connected to, of this machine.
    pub local: SocketAddr,
    /// The listener.
    pub listener: Arc<str>,
    /// The client's protocol, once known.
    pub protocol: Option<ClientProtocol>,
    /// The SNI or the Host.
    pub sni: Option<HostName>,
    /// The server name in SNI, if it cannot be a host name; escaped and truncated. Omitted otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni_raw: Option<String>,
    /// The client's ALPN list, or its beginning.
    #[serde(serialize_with = "names")]
    pub alpn: AlpnList,
    /// Whether `sni` is the outer name of an Encrypted ClientHello.
    pub ech: bool,
    /// The host of the route; the name of a tcp listener.
    pub route: Option<Arc<str>>,
    /// The backend's address; where none could be connected, that of the one tried last.
    pub backend: Option<SocketName>,
    /// How many backends were tried; shown where none could be connected, as is `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Why the one tried last could not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The tier that was carrying at the end.
    pub datapath: Option<Tier>,
    /// Whether the kernel had left it to user space by then; shown where it did.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub spilled: bool,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// From accept to the end.
    #[serde(rename = "duration_ms", serialize_with = "milliseconds")]
    pub duration: Duration,
    /// From the first attempt to a connected backend.
    #[serde(rename = "connect_ms", serialize_with = "some_milliseconds")]
    pub connect_time: Option<Duration>,
    /// Why it ended.
    pub close: &'static str,
    /// Its globally unique name, which is also the `UNIQUE_ID` of the PROXY header.
    pub unique_id: String,
}

/// How much of a client's address the log has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clients {
    /// All of it.
    #[default]
    Full,
    /// Its network: a /24 of IPv4, a /48 of IPv6. The rest of the address and the port are zero.
    Truncated,
}

impl Clients {
    pub(super) fn shown(self, client: SocketAddr) -> SocketAddr {
        const NETWORK_V4: u32 = u32::MAX << 8;
        const NETWORK_V6: u128 = u128::MAX << 80;
        match (self, client.ip().to_canonical()) {
            (Self::Full, _) => client,
            (Self::Truncated, IpAddr::V4(ip)) => (Ipv4Addr::from_bits(ip.to_bits() & NETWORK_V4), 0).into(),
            (Self::Truncated, IpAddr::V6(ip)) => (Ipv6Addr::from_bits(ip.to_bits() & NETWORK_V6), 0).into(),
        }
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

fn names<S: Serializer>(alpn: &AlpnList, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(alpn.to_strings())
}

/// Microseconds are as exact as the clock is worth.
fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((time.as_secs_f64() * 1_000_000.0).round() / 1000.0)
}

#[expect(clippy::ref_option, reason = "the signature that serde calls")]
fn some_milliseconds<S: Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => milliseconds(time, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_client_is_its_network() {
        for (client, shown) in [
            ("192.0.2.7:4711", "192.0.2.0:0"),
            ("[2001:db8:1:2:3:4:5:6]:4711", "[2001:db8:1::]:0"),
            ("[::ffff:192.0.2.7]:4711", "192.0.2.0:0"),
        ] {
            let client: SocketAddr = client.parse().unwrap();
            assert_eq!(Clients::Truncated.shown(client), shown.parse().unwrap());
            assert_eq!(Clients::Full.shown(client), client);
        }
    }
}
