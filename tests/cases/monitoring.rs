//! Programs that watch an edge: Prometheus and its alerts, the dashboard for Grafana, the journal, and who reads the access log.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::PathBuf,
    process::Command,
};

use lab::{
    Edged, Lab, Result,
    edged::program,
    ensure,
    hello::ClientHello,
    metrics::ADMIN,
    peers::Prometheus,
    require::{self, Need},
    service,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{case, echo_once};

const NAME: &str = "watched.example";
const PROMETHEUS: Need = Need::Program("prometheus", "prometheus");

fn packaged(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(file)
}

/// One connection through the edge, from hello to end.
fn connection(lab: &Lab) -> Result<()> {
    let mut stream = lab.client.connect(lab.edge.at(443))?;
    echo_once(&mut stream, &ClientHello::new(NAME).records())
}

/// The expressions of a dashboard, as Prometheus gets them from Grafana.
fn expressions(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().into_iter().flatten();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let expressions = targets.filter_map(|target| target["expr"].as_str());
    expressions.map(|text| text.replace("$instance", ".*").replace("$__rate_interval", "1m")).collect()
}

#[test]
fn prometheus_scrapes_the_edge_and_the_dashboard_asks_for_what_there_is() -> Result<()> {
    if !require::all(&[PROMETHEUS]) {
        return Ok(());
    }
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let home = lab.home_address();
        let routes = format!(
            "[[route]]\nhost = \"{NAME}\"\nto = \"{home}\"\n[[route]]\nhost = \"none.example\"\nto = \"{home}:9\"\n"
        );
        let _edged = Edged::plan(lab, &routes).daemon(ADMIN).start()?;
        for _ in 0..3 {
            connection(lab)?;
        }
        let mut refused = lab.client.connect(lab.edge.at(443))?;
        refused.write_all(&ClientHello::new("none.example").records())?;
        drop(lab::hello::expect_alert(&mut refused, 80));
        let prometheus =
            Prometheus::start(&lab.edge, "127.0.0.1:9464", &packaged("prometheus/edge.rules.yml"))?;
        let finished = format!("sum(edge_connections_total{{route=\"{NAME}\", result=\"finished\"}})");
        wait::until_ok("three connections in Prometheus", SOON, || {
            let count = prometheus.value(&finished)?;
            ensure!((count - 3.0).abs() < 0.1, "{count}");
            Ok(())
        })?;
        ensure!(prometheus.value("up{job=\"edge\"}")? > 0.5);
        let failed = prometheus.value("edge_backend_connect_failures_total{reason=\"refused\"}")?;
        ensure!(failed > 0.5, "{failed}");
        ensure!(prometheus.value("edge_backend_rtt_seconds{pool!~\".*:9\"}")? > 0.0);
        ensure!(prometheus.value("process_resident_memory_bytes{job=\"edge\"}")? > 1e6);
        ensure!(prometheus.value("process_open_fds{job=\"edge\"} > 3")? < 1e6);
        let started = prometheus.value("time() - process_start_time_seconds{job=\"edge\"}")?;
        ensure!((0.0..600.0).contains(&started), "started {started} s ago");

        let dashboard: Value = serde_json::from_str(&fs::read_to_string(packaged("grafana/edge.json"))?)?;
        let expressions = expressions(&dashboard);
        ensure!(expressions.len() > 15, "{expressions:?}");
        for expression in &expressions {
            prometheus.query(expression)?;
        }
        // A name that nobody exports makes an empty panel, and no error.
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "10", "http://127.0.0.1:9464/metrics"]);
        let text = lab.edge.text_of(command)?;
        let described: BTreeSet<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let rules = fs::read_to_string(packaged("prometheus/edge.rules.yml"))?;
        let mut asked = 0;
        for word in expressions.iter().chain([&rules]).flat_map(|text| {
            text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .filter(|word| ["edge_", "process_"].iter().any(|prefix| word.starts_with(prefix)))
        }) {
            let family = word.trim_end_matches("_total").trim_end_matches("_bucket");
            ensure!(described.contains(family), "{word} is exported by nobody");
            asked += 1;
        }
        ensure!(asked > 20, "{asked}");
        Ok(())
    })
}

#[test]
fn promtool_takes_the_alerts_and_they_fire_when_they_should() -> Result<()> {
    if !require::all(&[PROMETHEUS]) {
        return Ok(());
    }
    for arguments in [["check", "rules", "edge.rules.yml"], ["test", "rules", "edge.rules.test.yml"]] {
        let output = Command::new("promtool").args(arguments).current_dir(packaged("prometheus")).output()?;
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {said}");
    }
    Ok(())
}

#[test]
fn the_access_log_may_have_networks_in_place_of_clients() -> Result<()> {
    case(|lab| {
        let _service = service::echo(&lab.home, lab.home_at(443))?;
        let routes = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address());
        let edged = Edged::plan(lab, &routes).daemon("access_log_clients = \"truncated\"").start()?;
        connection(lab)?;
        let record = edged.access_log.wait_for("the connection", |record| record["close"] == "finished")?;
        let client = lab.client.at(0).ip().to_string();
        let network = client.rsplit_once('.').map_or("", |(network, _)| network);
        ensure!(record["client"] == format!("{network}.0:0"), "{record}");
        Ok(())
    })
}

#[test]
fn the_log_is_json_where_that_is_asked_for() -> Result<()> {
    case(|lab| {
        let routes = format!("[[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n", lab.home_address());
        let edged = Edged::plan(lab, &routes).environment("EDGE_LOG_FORMAT", "json").start()?;
        let log = edged.as_process().whole_log()?;
        let lines: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(!lines.is_empty());
        for line in &lines {
            ensure!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
            ensure!(line["message"].is_string(), "{line}");
        }
        Ok(())
    })
}

#[test]
fn lines_for_the_journal_have_priorities() -> Result<()> {
    let (mut journal, stderr) = UnixStream::pair()?;
    let stream = fs::metadata(format!("/proc/self/fd/{}", stderr.as_raw_fd()))?;
    let mut edged = Command::new(program("edged")?);
    edged.args(["--check", "--config", "/nowhere/edge.toml"]);
    edged.env("JOURNAL_STREAM", format!("{}:{}", stream.dev(), stream.ino())).stderr(OwnedFd::from(stderr));
    ensure!(!edged.status()?.success(), "a missing file is an error");
    // This process has the other end of the stream as long as the command lives.
    drop(edged);
    let mut said = String::new();
    journal.read_to_string(&mut said)?;
    ensure!(!said.is_empty() && said.lines().all(|line| line.starts_with("<3>")), "{said}");
    Ok(())
}
