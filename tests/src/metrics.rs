//! The daemon's counters, as Prometheus reads them.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, ensure};

use crate::{
    Host,
    wait::{self, SOON},
};

/// A line for `[daemon]` that has the metrics served on the edge's loopback.
pub const ADMIN: &str = "admin = \"127.0.0.1:9464\"";

/// The counters at one moment.
#[derive(Clone, Debug)]
pub struct Metrics(String);

impl Metrics {
    /// Reads them on this host, from a daemon with [`ADMIN`].
    pub fn read(edge: &Host) -> Result<Self> {
        let mut stream = edge.run(|| Ok(TcpStream::connect("127.0.0.1:9464")?))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("reading metrics")?;
        ensure!(text.starts_with("HTTP/1.1 200"), "no metrics: {text}");
        Ok(Self(text))
    }

    /// The value of a series, written as Prometheus writes it: `edge_flow_stays_total{reason="port"}`. 0 if
    /// it is missing.
    pub fn get(&self, series: &str) -> u64 {
        self.find(series).unwrap_or(0)
    }

    /// The same; `None` where it is not there.
    pub fn find(&self, series: &str) -> Option<u64> {
        let value = |line: &str| line.strip_prefix(series)?.strip_prefix(' ')?.trim().parse().ok();
        self.0.lines().find_map(value)
    }

    /// Packets that met the flow tier, by what became of them.
    pub fn fate(&self, fate: &str) -> u64 {
        self.get(&format!("edge_flow_packets_total{{fate=\"{fate}\"}}"))
    }

    /// Connections that stayed on their sockets for this reason.
    pub fn stays(&self, reason: &str) -> u64 {
        self.get(&format!("edge_flow_stays_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until the counters are as wanted; what is wanted of them says so by an error.
    pub fn until(edge: &Host, what: &str, wanted: impl Fn(&Self) -> Result<()>) -> Result<Self> {
        wait::until_ok(what, SOON, || {
            let metrics = Self::read(edge)?;
            wanted(&metrics)?;
            Ok(metrics)
        })
    }
}
