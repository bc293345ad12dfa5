//! The metrics for Prometheus: gathered on request, from counters that are kept anyway.
//!
//! Carrying connections touches nothing here. Series with equal labels are added up, since several routes may
//! share a host.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeGaugeValue, EncodeLabelSet, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{
    process::Process,
    timings::{BOUNDS, Histogram},
};
use crate::spec::Tier;

/// The media type of [`Snapshot::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything that is counted, at one time.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The version of the daemon.
    pub version: &'static str,
    /// Connections that ended, by cause, refusals included.
    pub ended: Vec<Ended>,
    /// Connections that live, by listener and tier; several entries of the same kind are added up.
    pub active: Vec<(Arc<str>, Option<Tier>, u64)>,
    /// Bytes of each route: label, up, down.
    pub routes: Vec<(Arc<str>, u64, u64)>,
    /// From accept to a complete hello.
    pub hello: Durations,
    /// Time to connect to a backend of each pool.
    pub connect: Vec<(Arc<str>, Durations)>,
    /// The backends, each once.
    pub backends: Vec<BackendCounts>,
    /// WireGuard peers that have shaken hands.
    pub handshakes: Vec<Handshake>,
    /// Lines of the access log that were dropped.
    pub access_log_dropped: u64,
    /// The daemon's process; `None` where `/proc` cannot be read.
    pub process: Option<Process>,
    /// Packets of blocked sources that were dropped.
    pub blocked_packets: u64,
    /// Connections that the kernel tracks, and how many there may be; `None` where it tracks none.
    pub conntrack: Option<(u64, u64)>,
    /// Bytes of memory that clients' first bytes take.
    pub hello_memory: usize,
    /// The flow tier, where there is one.
    pub flow: Option<FlowCounts>,
    /// Whether the configuration of the file is the one that runs.
    pub reload_successful: bool,
}

/// The metrics of one backend.
#[derive(Clone, Debug)]
pub struct BackendCounts {
    /// Its pool.
    pub pool: Arc<str>,
    /// The backend.
    pub backend: String,
    /// Whether it takes new connections; `None` where nobody knows whether it works.
    pub up: Option<bool>,
    /// When a check or a client's connection last succeeded.
    pub last_success: Option<SystemTime>,
    /// When one last failed.
    pub last_error: Option<SystemTime>,
    /// Its connections now.
    pub connections: u64,
    /// The round trip to it, where it was measured.
    pub rtt: Option<Duration>,
    /// Connections to it that failed, by reason.
    pub failures: Vec<(&'static str, u64)>,
}

/// The last handshake with a WireGuard peer.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// The tunnel's device.
    pub device: Arc<str>,
    /// The peer's public key, in base64.
    pub peer: String,
    /// When it was.
    pub at: SystemTime,
}

/// The counters of the flow tier.
#[derive(Clone, Debug, Default)]
pub struct FlowCounts {
    /// Packets, by what became of them.
    pub packets: Vec<(&'static str, u64)>,
    /// Connections that stayed on their sockets, by reason.
    pub stays: Vec<(&'static str, u64)>,
}

/// Connections that ended in one way.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The listener.
    pub listener: Arc<str>,
    /// The route; none where none was picked.
    pub route: Option<Arc<str>>,
    /// The tier; none where no backend was connected.
    pub datapath: Option<Tier>,
    /// How, as `close` in the access log.
    pub result: &'static str,
    /// Whether the edge refused it.
    pub refused: bool,
    /// How many.
    pub count: u64,
}

/// The counts of a histogram.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    buckets: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl From<&Histogram> for Durations {
    fn from(histogram: &Histogram) -> Self {
        Self { buckets: histogram.buckets(), sum: histogram.sum() }
    }
}

impl Snapshot {
    /// The text that Prometheus reads (`OpenMetrics` 1.0).
    pub fn render(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let e = &mut encoder;
        // OpenMetrics has the names without `_total`; the counters' lines get it.
        counter(e, "edge_connections", "Connections that ended, by how")?.counts(self.ended())?;
        gauge(e, "edge_connections_active", "Connections that live")?.values(self.active())?;
        counter(e, "edge_bytes", "Bytes of the streams that were carried")?.counts(self.bytes())?;
        let help = "From accept to a complete hello";
        histogram(e, "edge_hello_seconds", help)?.durations(&self.hello)?;
        let help = "Time to connect to a backend, all attempts together";
        let mut connect = histogram(e, "edge_connect_seconds", help)?;
        for (pool, durations) in &self.connect {
            connect.of(&[("pool", &**pool)])?.durations(durations)?;
        }
        let help = "Whether a backend takes new connections; absent for one that is not checked and that no client has tried";
        gauge(e, "edge_backend_up", help)?.values(self.backends(|backend| backend.up.map(i64::from)))?;
        let help =
            "When a check of a backend or a connection to it last succeeded, in seconds since the epoch";
        gauge(e, "edge_backend_last_success_timestamp_seconds", help)?
            .values(self.backends(|backend| backend.last_success.map(seconds)))?;
        let help = "When a check of a backend or a connection to it last failed, in seconds since the epoch";
        gauge(e, "edge_backend_last_error_timestamp_seconds", help)?
            .values(self.backends(|backend| backend.last_error.map(seconds)))?;
        let help = "Connections of clients that a backend has now";
        gauge(e, "edge_backend_connections", help)?
            .values(self.backends(|backend| i64::try_from(backend.connections).ok()))?;
        let help = "Connections to a backend that failed, by reason";
        counter(e, "edge_backend_connect_failures", help)?.counts(self.failures())?;
        let help = "Round trip to a backend, smoothed";
        gauge(e, "edge_backend_rtt_seconds", help)?
            .values(self.backends(|backend| backend.rtt.map(|rtt| rtt.as_secs_f64())))?;
        let help = "Time of the last handshake with a WireGuard peer, in seconds since the epoch";
        gauge(e, "edge_tunnel_last_handshake_seconds", help)?.values(self.handshakes())?;
        counter(e, "edge_rejected", "Clients that were refused, by reason")?.counts(self.rejected())?;
        let help = "Packets of blocked sources that were dropped";
        counter(e, "edge_blocked_packets", help)?.count(self.blocked_packets)?;
        let help = "Lines of the access log that were dropped because it is read too slowly";
        counter(e, "edge_access_log_dropped", help)?.count(self.access_log_dropped)?;
        if let Some((entries, limit)) = self.conntrack {
            let value = |number| i64::try_from(number).unwrap_or(i64::MAX);
            let help = "Connections of this machine that the kernel tracks (nf_conntrack)";
            gauge(e, "edge_conntrack_entries", help)?.value(value(entries))?;
            let help = "How many it may track; beyond, packets of new ones are dropped";
            gauge(e, "edge_conntrack_limit", help)?.value(value(limit))?;
        }
        let help = "Memory that clients' first bytes take, of at most limits.hello_memory";
        gauge(e, "edge_hello_memory_bytes", help)?
            .value(i64::try_from(self.hello_memory).unwrap_or(i64::MAX))?;
        if let Some(FlowCounts { packets, stays }) = &self.flow {
            let help = "Packets that met the flow tier, by what became of them";
            counter(e, "edge_flow_packets", help)?.counts(by("fate", packets))?;
            let help = "Connections that could have become flows and stayed on their sockets, by reason";
            counter(e, "edge_flow_stays", help)?.counts(by("reason", stays))?;
        }
        let help = "Whether the configuration of the file is the one that runs";
        gauge(e, "edge_config_last_reload_successful", help)?.value(i64::from(self.reload_successful))?;
        gauge(e, "edge_build_info", "What runs; always 1")?.values([([("version", self.version)], 1)])?;
        self.process.as_ref().map_or(Ok(()), |process| encode_process(e, process))
    }
}

/// The names and help of Prometheus' own client libraries.
fn encode_process(e: &mut DescriptorEncoder<'_>, process: &Process) -> fmt::Result {
    let value = |number| i64::try_from(number).unwrap_or(i64::MAX);
    let help = "Total user and system CPU time spent in seconds";
    counter(e, "process_cpu_seconds", help)?
        .0
        .encode_counter::<NoLabelSet, _, f64>(&process.cpu_seconds, None)?;
    let help = "Start time of the process since unix epoch in seconds";
    gauge(e, "process_start_time_seconds", help)?.value(process.start_time_seconds)?;
    let help = "Resident memory size in bytes";
    gauge(e, "process_resident_memory_bytes", help)?.value(value(process.resident_memory_bytes))?;
    let help = "Virtual memory size in bytes";
    gauge(e, "process_virtual_memory_bytes", help)?.value(value(process.virtual_memory_bytes))?;
    gauge(e, "process_open_fds", "Number of open file descriptors")?.value(value(process.open_fds))?;
    gauge(e, "process_max_fds", "Maximum number of open file descriptors")?.value(value(process.max_fds))?;
    gauge(e, "process_threads", "Number of OS threads in the process")?.value(value(process.threads))
}

fn by<'a>(label: &'static str, counts: &'a [(&'static str, u64)]) -> Series<'a, 1> {
    sum(counts.iter().map(|(value, count)| ([(label, *value)], *count)))
}

impl Snapshot {
    fn ended(&self) -> Series<'_, 4> {
        sum(self.ended.iter().map(|ended| {
            let labels = [
                ("listener", &*ended.listener),
                ("route", ended.route.as_deref().unwrap_or_default()),
                ("datapath", ended.datapath.map_or("", Tier::name)),
                ("result", ended.result),
            ];
            (labels, ended.count)
        }))
    }

    fn active(&self) -> impl Iterator<Item = (Labels<'_, 2>, i64)> {
        let active = sum(self.active.iter().map(|(listener, tier, count)| {
            ([("listener", &**listener), ("datapath", tier.map_or("", Tier::name))], *count)
        }));
        active.into_iter().map(|(labels, count)| (labels, i64::try_from(count).unwrap_or(i64::MAX)))
    }

    fn bytes(&self) -> Series<'_, 2> {
        sum(self.routes.iter().flat_map(|(route, up, down)| {
            [("up", *up), ("down", *down)]
                .map(|(direction, bytes)| ([("route", &**route), ("direction", direction)], bytes))
        }))
    }

    fn failures(&self) -> Series<'_, 3> {
        sum(self.backends.iter().flat_map(|backend| {
            backend.failures.iter().map(|(reason, count)| {
                ([("pool", &*backend.pool), ("backend", &*backend.backend), ("reason", *reason)], *count)
            })
        }))
    }

    fn handshakes(&self) -> BTreeMap<Labels<'_, 2>, i64> {
        let handshakes = self.handshakes.iter();
        handshakes.map(|it| ([("device", &*it.device), ("peer", &*it.peer)], seconds(it.at))).collect()
    }

    fn backends<T>(&self, value: impl Fn(&BackendCounts) -> Option<T>) -> BTreeMap<Labels<'_, 2>, T> {
        let known = self.backends.iter().filter_map(|backend| Some((backend, value(backend)?)));
        known
            .map(|(backend, value)| ([("pool", &*backend.pool), ("backend", &*backend.backend)], value))
            .collect()
    }

    fn rejected(&self) -> Series<'_, 1> {
        let refused = self.ended.iter().filter(|ended| ended.refused);
        sum(refused.map(|ended| ([("reason", ended.result)], ended.count)))
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Names and values.
type Labels<'a, const N: usize> = [(&'static str, &'a str); N];
/// Counts by their labels.
type Series<'a, const N: usize> = BTreeMap<Labels<'a, N>, u64>;

fn sum<'a, const N: usize>(counts: impl Iterator<Item = (Labels<'a, N>, u64)>) -> Series<'a, N> {
    let mut series = BTreeMap::new();
    for (labels, count) in counts {
        *series.entry(labels).or_insert(0) += count;
    }
    series
}

/// A metric whose name and help are written.
struct Family<'e>(MetricEncoder<'e>);

fn counter<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &'e str,
) -> Result<Family<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter).map(Family)
}

fn gauge<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &'e str,
) -> Result<Family<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge).map(Family)
}

fn histogram<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &'e str,
) -> Result<Family<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Histogram).map(Family)
}

impl Family<'_> {
    /// The one of these labels. Without labels the family is the metric.
    fn of<'s>(&'s mut self, labels: &'s impl EncodeLabelSet) -> Result<Family<'s>, fmt::Error> {
        self.0.encode_family(labels).map(Family)
    }

    fn counts<L: EncodeLabelSet>(mut self, series: impl IntoIterator<Item = (L, u64)>) -> fmt::Result {
        series.into_iter().try_for_each(|(labels, count)| self.of(&labels)?.count(count))
    }

    fn values<L: EncodeLabelSet, T: EncodeGaugeValue + Copy>(
        mut self,
        series: impl IntoIterator<Item = (L, T)>,
    ) -> fmt::Result {
        series.into_iter().try_for_each(|(labels, value)| self.of(&labels)?.value(value))
    }

    fn count(mut self, count: u64) -> fmt::Result {
        self.0.encode_counter::<NoLabelSet, _, f64>(&count, None)
    }

    fn value(mut self, value: impl EncodeGaugeValue + Copy) -> fmt::Result {
        self.0.encode_gauge(&value)
    }

    fn durations(mut self, durations: &Durations) -> fmt::Result {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(durations.buckets).collect();
        // Both lines use the same count, so that a duration recorded meanwhile cannot make them disagree.
        let count = durations.buckets.iter().sum();
        self.0.encode_histogram::<NoLabelSet>(durations.sum.as_secs_f64(), count, &buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::timings::Timings;

    fn snapshot() -> Snapshot {
        let timings = Timings::default();
        timings.hello(Duration::from_millis(3));
        timings.connect(&"caddy".into(), Duration::from_secs(9));
        let ended = |route: Option<&str>, datapath, result, refused, count| Ended {
            listener: "https".into(),
            route: route.map(Arc::from),
            datapath,
            result,
            refused,
            count,
        };
        let backend = |backend: &str, up| BackendCounts {
            pool: "caddy".into(),
            backend: backend.to_owned(),
            up,
            last_success: up.map(|_| SystemTime::UNIX_EPOCH + Duration::from_secs(7)),
            last_error: None,
            connections: 3,
            rtt: up.map(|_| Duration::from_micros(12_500)),
            failures: vec![("refused", 2)],
        };
        Snapshot {
            flow: Some(FlowCounts {
                packets: vec![("forwarded", 12), ("fragment", 0)],
                stays: vec![("timestamps_differ", 3)],
            }),
            version: "0.1.0",
            ended: vec![
                ended(Some("*.example.com"), Some(Tier::Splice), "finished", false, 7),
                ended(None, None, "no_route", true, 2),
                ended(None, None, "hello_timeout", true, 1),
            ],
            active: vec![("https".into(), Some(Tier::Copy), 1), ("https".into(), Some(Tier::Copy), 1)],
            routes: vec![("a\"b\\".into(), 10, 20), ("a\"b\\".into(), 1, 2)],
            hello: timings.hellos().into(),
            connect: timings.connects().iter().map(|(pool, h)| (Arc::clone(pool), (&**h).into())).collect(),
            backends: vec![
                backend("100.64.0.2:443", Some(true)),
                backend("b", Some(false)),
                backend("unchecked", None),
            ],
            blocked_packets: 5,
            conntrack: Some((12, 8192)),
            handshakes: vec![Handshake {
                device: "wg0".into(),
                peer: "cGVlcg==".to_owned(),
                at: SystemTime::UNIX_EPOCH + Duration::from_secs(70),
            }],
            access_log_dropped: 6,
            process: Some(Process {
                cpu_seconds: 1.5,
                start_time_seconds: 1_700_000_000.25,
                resident_memory_bytes: 9,
                virtual_memory_bytes: 10,
                open_fds: 11,
                max_fds: u64::MAX,
                threads: 12,
            }),
            hello_memory: 4096,
            reload_successful: true,
        }
    }

    #[test]
    fn every_family_has_its_fixed_name_and_labels() {
        let text = snapshot().render().unwrap();
        for line in [
            "edge_connections_total{listener=\"https\",route=\"*.example.com\",datapath=\"splice\",result=\"finished\"} 7",
            "edge_connections_total{listener=\"https\",route=\"\",datapath=\"\",result=\"no_route\"} 2",
            "edge_connections_active{listener=\"https\",datapath=\"copy\"} 2",
            "edge_bytes_total{route=\"a\\\"b\\\\\",direction=\"up\"} 11",
            "edge_bytes_total{route=\"a\\\"b\\\\\",direction=\"down\"} 22",
            "edge_hello_seconds_bucket{le=\"0.0025\"} 0",
            "edge_hello_seconds_bucket{le=\"0.005\"} 1",
            "edge_hello_seconds_bucket{le=\"+Inf\"} 1",
            "edge_hello_seconds_count 1",
            "edge_hello_seconds_sum 0.003",
            "edge_connect_seconds_bucket{le=\"5.0\",pool=\"caddy\"} 0",
            "edge_connect_seconds_bucket{le=\"+Inf\",pool=\"caddy\"} 1",
            "edge_backend_up{pool=\"caddy\",backend=\"100.64.0.2:443\"} 1",
            "edge_backend_up{pool=\"caddy\",backend=\"b\"} 0",
            "edge_backend_last_success_timestamp_seconds{pool=\"caddy\",backend=\"b\"} 7",
            "edge_backend_connections{pool=\"caddy\",backend=\"b\"} 3",
            "edge_backend_connect_failures_total{pool=\"caddy\",backend=\"b\",reason=\"refused\"} 2",
            "edge_backend_rtt_seconds{pool=\"caddy\",backend=\"b\"} 0.0125",
            "edge_tunnel_last_handshake_seconds{device=\"wg0\",peer=\"cGVlcg==\"} 70",
            "edge_access_log_dropped_total 6",
            "process_cpu_seconds_total 1.5",
            "process_start_time_seconds 1700000000.25",
            "process_resident_memory_bytes 9",
            "process_virtual_memory_bytes 10",
            "process_open_fds 11",
            "process_max_fds 9223372036854775807",
            "process_threads 12",
            "edge_rejected_total{reason=\"no_route\"} 2",
            "edge_rejected_total{reason=\"hello_timeout\"} 1",
            "edge_blocked_packets_total 5",
            "edge_conntrack_entries 12",
            "edge_conntrack_limit 8192",
            "edge_hello_memory_bytes 4096",
            "edge_config_last_reload_successful 1",
            "edge_build_info{version=\"0.1.0\"} 1",
            "# TYPE edge_connect_seconds histogram",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in:\n{text}");
        }
        for unknown in
            ["edge_backend_up", "edge_backend_last_success_timestamp_seconds", "edge_backend_rtt_seconds"]
        {
            let series = format!("{unknown}{{pool=\"caddy\",backend=\"unchecked\"}}");
            assert!(!text.contains(&series), "of what nobody knows nothing is said:\n{text}");
        }
    }

    #[test]
    fn no_series_comes_twice() {
        let text = snapshot().render().unwrap();
        let mut seen = std::collections::HashSet::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let series = line.rsplit_once(' ').unwrap().0;
            assert!(seen.insert(series), "{series}");
        }
    }

    #[test]
    fn a_daemon_that_has_done_nothing_has_metrics_too() {
        let text = Snapshot { version: "0.1.0", ..Snapshot::default() }.render().unwrap();
        assert!(text.contains("edge_hello_seconds_count 0"));
        assert!(text.ends_with("# EOF\n"));
    }
}
