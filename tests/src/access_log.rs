//! The daemon's access log: one JSON object a line for every connection that has ended.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::wait::{self, SOON};

/// An access log in a file.
#[derive(Clone, Debug)]
pub struct AccessLog {
    path: PathBuf,
}

impl AccessLog {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// All records so far. A last line without its end is not there yet.
    pub fn records(&self) -> Result<Vec<Value>> {
        self.records_of(|_| true)
    }

    /// The records so far whose lines are `wanted`.
    pub fn records_of(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Value>> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("reading the access log"),
        };
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        complete
            .lines()
            .filter(|line| wanted(line))
            .map(|line| serde_json::from_str(line).with_context(|| format!("access log: {line}")))
            .collect()
    }

    /// Waits for a record for which `wanted` holds.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.wait_for_count(1, what, wanted).map(|mut records| records.swap_remove(0))
    }

    /// Waits until at least `count` records are as wanted.
    pub fn wait_for_count(
        &self,
        count: usize,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Vec<Value>> {
        wait::until_ok(&format!("{what} in the access log"), SOON, || {
            let all = self.records()?;
            let found: Vec<Value> = all.iter().filter(|record| wanted(record)).cloned().collect();
            let last: Vec<String> = all.iter().rev().take(5).map(Value::to_string).collect();
            anyhow::ensure!(
                found.len() >= count,
                "{} of {} records; the last ones:\n{}",
                found.len(),
                all.len(),
                last.join("\n")
            );
            Ok(found)
        })
    }

    /// Waits for the record of the connection that came from this address.
    pub fn wait_for_client(&self, client: SocketAddr) -> Result<Value> {
        let client = client.to_string();
        self.wait_for(&format!("the connection of {client}"), |record| record["client"] == client)
    }

    /// Waits for the record of a connection that requested this name. If there are several, it may be any of
    /// them: they do not end in the order in which they began.
    pub fn wait_for_host(&self, name: &str) -> Result<Value> {
        self.wait_for(&format!("a connection for {name}"), |record| record["sni"] == name)
    }
}
