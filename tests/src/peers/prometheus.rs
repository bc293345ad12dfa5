//! Prometheus: the server that scrapes, and promtool, which checks what it is given.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::{Host, process::Process, wait::SOON};

/// A running Prometheus that scrapes the edge on its own host.
#[derive(Debug)]
pub struct Prometheus<'a> {
    host: &'a Host,
    _process: Process,
}

const ON: &str = "127.0.0.1:9090";

impl<'a> Prometheus<'a> {
    /// Scrapes `target` each second as the job `edge`, with the alerts of `rules`.
    pub fn start(host: &'a Host, target: &str, rules: &Path) -> Result<Self> {
        let folder = host.directory().join("prometheus");
        fs::create_dir_all(&folder)?;
        let config = folder.join("prometheus.yml");
        let rules = rules.display();
        fs::write(
            &config,
            format!(
                "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [\"{rules}\"]\n\
                 scrape_configs:\n- job_name: edge\n  static_configs:\n  - targets: [\"{target}\"]\n"
            ),
        )?;
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address={ON}"));
        let mut process = host.spawn("prometheus", command)?;
        let on: SocketAddr = ON.parse()?;
        process.wait_ready(SOON, || host.accepts(on))?;
        Ok(Self { host, _process: process })
    }

    /// The result of an expression: a list of series, each with its labels and value.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "10", "--get", "--data-urlencode"]);
        curl.arg(format!("query={expression}")).arg(format!("http://{ON}/api/v1/query"));
        let answer: Value = serde_json::from_str(&self.host.text_of(curl)?)?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        Ok(answer["data"]["result"].as_array().cloned().unwrap_or_default())
    }

    /// The value of an expression that has one series.
    pub fn value(&self, expression: &str) -> Result<f64> {
        let found = self.query(expression)?;
        ensure!(found.len() == 1, "{expression}: {found:?}");
        Ok(found[0]["value"][1].as_str().unwrap_or_default().parse()?)
    }
}
