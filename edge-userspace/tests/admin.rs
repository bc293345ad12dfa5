//! The admin address over TCP: what it shows, and that it only shows.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use edge::{
    control::admin::{self, Health, Observed},
    observe::metrics::Snapshot,
    spec::HostName,
};
use serde_json::Value;

mod fake;

/// How often metrics were gathered, by all tests.
static GATHERED: AtomicU32 = AtomicU32::new(0);
/// As long as a look over some ten thousand flows takes.
const GATHERING: Duration = Duration::from_millis(50);

impl Observed for fake::Fake {
    fn metrics(&self) -> Snapshot {
        GATHERED.fetch_add(1, Relaxed);
        std::thread::sleep(GATHERING);
        Snapshot { version: "0.1.0", blocked_packets: 3, ..Snapshot::default() }
    }

    fn health(&self) -> Health {
        Health::default()
    }

    fn admin_hosts(&self) -> Vec<HostName> {
        vec!["vps.tail1234.ts.net".parse().unwrap()]
    }
}

/// An admin address that answers until the test ends.
fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(admin::serve(listener, Arc::new(fake::Fake::default()), std::future::pending()))
            .unwrap();
    });
    address
}

fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    ask_as("localhost", address, method, path)
}

fn ask_as(host: &str, address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.to_owned())
}

#[test]
fn metrics_health_and_the_overview_are_served() {
    let address = start();
    let (status, head, body) = ask(address, "GET", "/metrics");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(body.contains("edge_blocked_packets_total 3\n"), "{body}");

    let (status, _, body) = ask(address, "GET", "/healthz");
    assert_eq!((status, &*body), (200, "ok\n"));

    let (status, _, body) = ask(address, "GET", "/overview.json");
    let overview: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert_eq!(overview["status"]["connections"]["now"], 1);
    assert_eq!(overview["backends"][0]["state"], "up");
    assert!(!body.contains("2001:db8::7"), "no client's address");
}

#[test]
fn a_page_that_points_its_own_name_here_reads_nothing() {
    let address = start();
    for path in ["/", "/overview.json", "/metrics", "/healthz", "/absent"] {
        let (status, head, body) = ask_as("rebound.example:9464", address, "GET", path);
        assert_eq!(status, 421, "{path}: {body}");
        assert!(body.starts_with("rebound.example is not a name of this machine"), "{body}");
        assert!(body.contains("daemon.admin_hosts") && head.contains("nosniff"), "{head}{body}");
    }
    for host in ["localhost:9464", "127.0.0.1:9464", "[::1]", "vps.tail1234.ts.net"] {
        assert_eq!(ask_as(host, address, "GET", "/healthz").0, 200, "{host}");
    }
}

#[test]
fn the_dashboard_needs_nothing_from_elsewhere_and_puts_no_text_into_markup() {
    let (status, head, page) = ask(start(), "GET", "/");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/html"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    for foreign in ["http://", "https://", "src=", "href=", "innerHTML", "document.write", "eval("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}

#[test]
fn nothing_can_be_changed_here() {
    let address = start();
    for path in ["/v1/routes", "/v1/reload", "/v1/connections/7", "/v1/status"] {
        for method in ["GET", "POST", "DELETE"] {
            assert_eq!(ask(address, method, path).0, 404, "{method} {path}");
        }
    }
    for path in ["/", "/metrics", "/overview.json", "/healthz"] {
        for method in ["POST", "PUT", "DELETE"] {
            assert_eq!(ask(address, method, path).0, 405, "{method} {path}");
        }
    }
}

#[test]
fn many_scrapers_share_one_look_and_a_health_check_needs_none() {
    const SCRAPERS: u32 = 60;
    let address = start();
    let (before, began) = (GATHERED.load(Relaxed), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..SCRAPERS {
            scope.spawn(|| {
                assert_eq!(ask(address, "GET", "/metrics").0, 200);
                assert_eq!(ask(address, "GET", "/healthz").0, 200);
            });
        }
    });
    let looks = GATHERED.load(Relaxed) - before;
    // An answer holds for ten times as long as it took, and another test may have asked its own daemon once.
    let most = began.elapsed().as_millis() / (GATHERING * 10).as_millis() + 3;
    assert!(u128::from(looks) <= most, "{looks} looks for {SCRAPERS} scrapers within {:?}", began.elapsed());
}
