//! The jobs of a client process and its answers: JSON on its command line and its standard output.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// A job for a client process. Times are in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "kebab-case")]
pub enum Job {
    /// Move as much as possible through some streams at the same time.
    Bulk {
        /// How many.
        streams: usize,
        /// Which way.
        direction: Direction,
        /// For how long senders send.
        millis: u32,
    },
    /// Send a message and wait for its echo, again and again on one connection.
    Ping {
        /// Octets of the message.
        size: usize,
        /// For how long.
        millis: u32,
    },
    /// Connect, send a ClientHello, read a short answer to its end, close; again and again.
    Connect {
        /// How many do so at the same time.
        clients: usize,
        /// The ClientHello's size.
        hello: HelloSize,
        /// For how long.
        millis: u32,
    },
    /// The same with a whole TLS handshake, never resumed.
    Handshake {
        /// How many do so at the same time.
        clients: usize,
        /// The authority to trust (PEM).
        authority: PathBuf,
        /// For how long.
        millis: u32,
    },
    /// Open connections that are answered once and then rest until the process is killed. Prints [`HELD`]
    /// when all are open.
    Hold {
        /// How many.
        connections: usize,
    },
}

/// The line that [`Job::Hold`] prints when all its connections are open.
pub const HELD: &str = "held";

/// A job and where it goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Errand {
    /// The edge's address, or home's where packets are only forwarded.
    pub to: SocketAddr,
    /// The server name in the ClientHello.
    pub name: String,
    /// The job.
    pub job: Job,
}

/// Which way bulk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the client to the service.
    Up,
    /// From the service to the client.
    Down,
}

/// How large a ClientHello is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HelloSize {
    /// With an X25519 share: one small segment.
    Small,
    /// With an X25519MLKEM768 share, as browsers send it: more than one segment.
    PostQuantum,
}

/// The result of a job.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// From the first connection's start to the last one's end.
    pub seconds: f64,
    /// Bytes that arrived (bulk).
    pub bytes: u64,
    /// Round trips, or connections that ended well.
    pub count: u64,
    /// Connections that did not.
    pub failed: u64,
    /// How long a round trip, or a connection from its first call to the answer's end, took.
    pub latency: Option<Latency>,
}

/// A distribution of times, in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Half took at most this.
    pub p50: f64,
    /// 99 % took at most this.
    pub p99: f64,
    /// 99.9 % took at most this.
    pub p999: f64,
}

impl Latency {
    /// From samples in nanoseconds; `None` without any.
    pub fn of(mut nanoseconds: Vec<u64>) -> Option<Self> {
        nanoseconds.sort_unstable();
        let last = nanoseconds.len().checked_sub(1)?;
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank among samples, and times far below 2^52 ns"
        )]
        let at = |share: f64| nanoseconds[(last as f64 * share).round() as usize] as f64 / 1000.0;
        Some(Self { p50: at(0.5), p99: at(0.99), p999: at(0.999) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_ranks() {
        let latency = Latency::of((1..=1001).rev().map(|rank| rank * 1000).collect()).unwrap();
        assert!((latency.p50 - 501.0).abs() < 0.1, "{latency:?}");
        assert!((latency.p99 - 991.0).abs() < 0.1, "{latency:?}");
        assert!((latency.p999 - 1000.0).abs() < 0.1, "{latency:?}");
        assert!(Latency::of(Vec::new()).is_none());
    }
}
