//! The admin address over TCP: what it shows, and that it only shows.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use edge::{
    control::admin::{self, Health, Observed, Token, Tunnel},
    observe::{metrics::Snapshot, refusals::Refusal},
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

    fn admin_token(&self) -> Option<Arc<Token>> {
        self.token.clone()
    }

    fn tunnels(&self) -> Vec<Tunnel> {
        vec![Tunnel {
            device: "wg0".into(),
            up: true,
            mtu: Some(1420),
            wireguard: true,
            last_handshake: Some(fake::then()),
            peers: 1,
        }]
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            at: fake::then().0,
            count: 2,
            reason: "no_route",
            name: Some("</script>".into()),
            listener: "https".into(),
            route: None,
            error: None,
        }]
    }
}

const TOKEN: &str = "a-token-of-the-tests-0123456789";

/// An admin address that only shows, and answers until the test ends.
fn start() -> SocketAddr {
    serve(fake::Fake::default(), std::future::pending())
}

/// An admin address on which things can be changed.
fn start_with_token() -> SocketAddr {
    let file = tempfile::NamedTempFile::new().unwrap();
    writeln!(&file, "{TOKEN}").unwrap();
    let token = Some(Arc::new(Token::read(file.path()).unwrap()));
    let mut fake = fake::Fake::default();
    fake.token = token;
    serve(fake, std::future::pending())
}

fn serve(fake: fake::Fake, shutdown: impl Future<Output = ()> + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(admin::serve(listener, Arc::new(fake), shutdown)).unwrap();
    });
    address
}

fn ask(address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    ask_as("localhost", address, method, path)
}

fn ask_as(host: &str, address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    ask_with(&format!("Host: {host}\r\n"), address, method, path)
}

/// With these fields in the head, each with its end of line.
fn ask_with(fields: &str, address: SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n").unwrap();
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
    assert_eq!(overview["tunnels"][0]["mtu"], 1420);
    assert_eq!(
        (&overview["refusals"][0]["name"], &overview["refusals"][0]["count"]),
        (&"</script>".into(), &2.into())
    );
    assert_eq!(
        (&overview["now"]["changes"], overview["now"]["problems"].as_array().unwrap().len()),
        (&false.into(), 0)
    );
}

/// Reads a stream of events until it has one of this name; returns the names so far and the data of the last.
fn events_until(reader: &mut impl BufRead, wanted: &str) -> (Vec<String>, String) {
    let mut names = Vec::new();
    loop {
        let mut line = String::new();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the stream ended after {names:?}");
        if let Some(name) = line.trim().strip_prefix("event: ") {
            names.push(name.to_owned());
        } else if let Some(data) = line.strip_prefix("data: ").filter(|_| names.last().unwrap() == wanted) {
            return (names, data.to_owned());
        }
    }
}

fn events(address: SocketAddr) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    write!(stream, "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    BufReader::new(stream)
}

#[test]
fn a_stream_has_everything_first_and_then_what_changes() {
    let mut stream = events(start());
    let (names, now) = events_until(&mut stream, "now");
    assert_eq!(names, ["status", "routes", "backends", "tunnels", "refusals", "now"]);
    assert!(serde_json::from_str::<Value>(&now).unwrap()["time"].is_string());
    let (names, _) = events_until(&mut stream, "now");
    assert_eq!(names, ["now"], "nothing else has changed");
}

#[test]
fn streams_are_limited_and_a_place_that_is_left_is_free_again() {
    let address = start();
    let mut open: Vec<_> = (0..16).map(|_| events(address)).collect();
    for stream in &mut open {
        events_until(stream, "now");
    }
    let (status, head, _) = ask(address, "GET", "/events");
    assert_eq!(status, 503);
    assert!(head.contains("retry-after"), "{head}");
    assert_eq!(ask(address, "GET", "/overview.json").0, 200);
    drop(open);
    let began = Instant::now();
    loop {
        let mut first = String::new();
        events(address).read_line(&mut first).unwrap();
        if first.contains("200") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "no place becomes free: {first}");
    }
}

#[test]
fn a_stream_says_that_edged_ends_and_delays_nothing() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let address = serve(fake::Fake::default(), async {
        let _ = ended.await;
    });
    let mut stream = events(address);
    events_until(&mut stream, "now");
    end.send(()).unwrap();
    events_until(&mut stream, "ended");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
}

#[test]
fn changes_need_the_token_from_this_address() {
    let address = start_with_token();
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let host = "Host: localhost:9464\r\n";
    let calls = [
        ("GET", "/connections.json"),
        ("DELETE", "/connections/7"),
        ("POST", "/backends/drain?to=100.64.0.2:443"),
        ("POST", "/backends/ready?to=100.64.0.2:443"),
    ];
    for (method, path) in calls {
        let ask = |fields: &str| {
            let (status, _, body) = ask_with(&format!("{host}{fields}"), address, method, path);
            let body: Value = serde_json::from_str(&body).unwrap();
            (status, body["error"]["code"].as_str().unwrap_or_default().to_owned())
        };
        let wrong = (401, "wrong_token".to_owned());
        assert_eq!(ask(""), wrong, "{path}");
        assert_eq!(ask("Authorization: Bearer another-token-of-the-tests\r\n"), wrong, "{path}");
        assert_eq!(ask(&bearer.replace("Bearer", "Basic")), wrong, "{path}");
        assert_eq!(ask(&format!("{bearer}{bearer}")), wrong, "{path}");
        let elsewhere = (403, "other_origin".to_owned());
        for origin in ["http://localhost:3000", "https://evil.example", "null"] {
            assert_eq!(ask(&format!("{bearer}Origin: {origin}\r\n")), elsewhere, "{path} {origin}");
        }
        assert_eq!(ask(&format!("{bearer}Sec-Fetch-Site: cross-site\r\n")), elsewhere, "{path}");
        assert_eq!(ask(&format!("{bearer}Origin: http://localhost:9464\r\n")).0, 200, "{path}");
        assert_eq!(ask(&bearer).0, 200, "{path}: a script");
        let rebound = format!("Host: rebound.example\r\n{bearer}");
        assert_eq!(ask_with(&rebound, address, method, path).0, 421, "{path}");
    }
    let authorised = format!("{host}{bearer}");
    let (_, _, body) = ask_with(&authorised, address, "GET", "/connections.json");
    assert!(body.contains("2001:db8::7"), "{body}");
    ask_with(&authorised, address, "POST", "/backends/drain?to=100.64.0.2:443&pool=caddy");
    let (_, _, body) = ask(address, "GET", "/overview.json");
    assert!(body.contains("drained") && body.contains(r#""changes":true"#), "{body}");
    assert_eq!(ask_with(&authorised, address, "DELETE", "/connections/8").0, 404);
    assert_eq!(ask_with(&authorised, address, "DELETE", "/connections/x").0, 400);
}

#[test]
fn without_a_token_file_nothing_can_be_changed_whoever_asks() {
    let address = start();
    let fields = format!("Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n");
    for (method, path) in [
        ("GET", "/connections.json"),
        ("DELETE", "/connections/7"),
        ("POST", "/backends/drain?to=100.64.0.2:443"),
    ] {
        let (status, _, body) = ask_with(&fields, address, method, path);
        assert_eq!(status, 403, "{method} {path}");
        assert!(body.contains("no_token_file") && body.contains("daemon.admin_token_file"), "{body}");
    }
}

#[test]
fn everyone_may_ask_which_route_would_win_and_nobody_probes() {
    let address = start();
    let (status, _, body) = ask(address, "GET", "/routes/test?host=cloud.example.com&alpn=h2");
    let test: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &test["outcome"]), (200, &"a client gets what it deserves".into()));
    assert_eq!(ask(address, "GET", "/routes/test?host=cloud.example.com&probe=true").0, 403);
    assert_eq!(ask(address, "GET", "/routes/test?host=a%20b").0, 400);
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
    let address = start();
    let (status, head, page) = ask(address, "GET", "/");
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/html"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(!head.contains("unsafe-"), "{head}");
    let references: Vec<_> = ["src=\"", "href=\""]
        .into_iter()
        .flat_map(|attribute| page.split(attribute).skip(1))
        .map(|rest| rest.split('"').next().unwrap())
        .filter(|reference| !reference.starts_with('#'))
        .collect();
    assert!(references.len() >= 3, "{references:?}");
    assert!(!page.contains("<style") && !page.contains(" style=") && !page.contains("<script>"), "inline");
    let mut files: Vec<_> = references.iter().map(|reference| format!("/{reference}")).collect();
    let mut at = 0;
    while let Some(path) = files.get(at).cloned() {
        let (status, head, text) = ask(address, "GET", &path);
        assert_eq!(status, 200, "{path}");
        let media = if path.contains(".js") { "text/javascript" } else { "content-type: " };
        assert!(head.contains(media) && head.contains("nosniff"), "{path}: {head}");
        for foreign in ["//", "innerHTML", "outerHTML", "document.write", "eval(", "insertAdjacentHTML"] {
            let code = text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            let code: String = code.collect::<Vec<_>>().join("\n").replace("http://www.w3.org/2000/svg", "");
            assert!(!code.contains(foreign), "{path}: {foreign}");
        }
        let imports = text.split(" from \"./").skip(1).map(|rest| rest.split('"').next().unwrap());
        for import in imports.map(|name| format!("/page/{name}")) {
            if !files.contains(&import) {
                files.push(import);
            }
        }
        at += 1;
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
