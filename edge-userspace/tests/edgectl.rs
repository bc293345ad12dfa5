//! `edgectl` as a process against a daemon in memory: what it prints, where, and its exit status.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::process::{Command, Stdio};

use serde_json::{Value, json};

mod fake;
#[path = "fake/running.rs"]
mod running;

use running::Running;

struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", self.stdout))
    }

    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!((self.status, &*self.stderr), (0, ""), "{}", self.stdout);
        self
    }

    #[track_caller]
    fn fails(self, status: i32, says: &str) -> Self {
        assert_eq!(self.status, status, "{}{}", self.stdout, self.stderr);
        assert!(self.stderr.contains(says), "{says:?} is not in {:?}", self.stderr);
        self
    }
}

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgectl"));
    command.args(arguments.split_whitespace()).env_remove("SSH_CONNECTION").env_remove("SSH_CLIENT");
    command
}

fn run(mut command: Command) -> Ran {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ran {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn edgectl(daemon: &Running, arguments: &str) -> Ran {
    let mut command = command(arguments);
    command.arg("--control").arg(daemon.socket());
    run(command)
}

#[test]
fn routes_are_added_listed_and_removed() {
    let daemon = Running::start();
    let added =
        edgectl(&daemon, "routes add cloud.example.com 100.64.0.2 --proxy-protocol v2 --json").ok().json();
    assert_eq!(added["to"], "100.64.0.2");
    assert_eq!(added["proxy_protocol"], "v2");
    let added = edgectl(
        &daemon,
        "routes add *.example.com 100.64.0.2 [fd7a::2]:443 --listener https --alpn h2 --alpn http/1.1 --from 10.0.0.0/8",
    )
    .ok();
    assert_eq!(added.stdout, "*.example.com leads to 100.64.0.2,[fd7a::2]:443\n");

    let list = edgectl(&daemon, "routes list --json").ok().json();
    assert_eq!(list.as_array().unwrap().len(), 2);
    assert_eq!(list[1]["listener"], json!(["https"]));
    assert_eq!(list[1]["alpn"], json!(["h2", "http/1.1"]));
    assert_eq!(list[1]["from"], json!(["10.0.0.0/8"]));
    assert_eq!(
        edgectl(&daemon, "routes list").ok().stdout,
        "\
HOST               LISTENER  TO                        SOURCE   ALPN         FROM        PROXY  CONNECTIONS   UP  DOWN
cloud.example.com  all       100.64.0.2                runtime  -            -           v2               0  0 B   0 B
*.example.com      https     100.64.0.2,[fd7a::2]:443  runtime  h2,http/1.1  10.0.0.0/8  -                0  0 B   0 B
"
    );

    edgectl(&daemon, "routes remove *.example.com --alpn h3").fails(1, "no route for *.example.com");
    let removed = edgectl(&daemon, "routes remove *.example.com --close").ok();
    assert_eq!(removed.stdout, "removed *.example.com to 100.64.0.2,[fd7a::2]:443\nclosed 1 connections\n");
    assert_eq!(edgectl(&daemon, "--json routes list").ok().json().as_array().unwrap().len(), 1);
}

#[test]
fn a_route_test_says_what_wins_and_fails_where_the_way_is_broken() {
    let daemon = Running::start();
    edgectl(&daemon, "routes add cloud.example.com caddy").ok();
    let test = edgectl(&daemon, "routes test cloud.example.com --from 192.0.2.1 --alpn h2").ok();
    assert!(test.stdout.contains(">  cloud.example.com"), "{}", test.stdout);
    assert!(test.stdout.contains("the exact host"), "{}", test.stdout);
    let test = edgectl(&daemon, "routes test cloud.example.com --json").ok().json();
    assert_eq!(test["considered"][0]["wins"], true);

    let test = edgectl(&daemon, "routes test cloud.example.com --probe").fails(1, "");
    assert!(test.stdout.contains("fail  connect     connection refused (0.4 ms)"), "{}", test.stdout);
    assert_eq!(edgectl(&daemon, "routes test other.example.com --json").ok().json()["route"], Value::Null);
    assert_eq!(edgectl(&daemon, "routes test - --json").ok().json()["host"], Value::Null);
}

#[test]
fn backends_are_listed_drained_and_put_back() {
    let daemon = Running::start();
    let list = edgectl(&daemon, "backends list").ok().stdout;
    let row: Vec<_> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..4], ["caddy", "100.64.0.2:443", "100.64.0.2:443", "up"]);
    assert_eq!(edgectl(&daemon, "backends drain 100.64.0.2:443 --json").ok().json()[0]["state"], "drained");
    assert!(edgectl(&daemon, "backends ready 100.64.0.2:443 --pool caddy").ok().stdout.contains(" up "));
    let refused =
        edgectl(&daemon, "backends drain 100.64.0.2:443 --pool nginx").fails(1, "no pool has 100.64.0.2:443");
    assert_eq!(refused.stderr, "edgectl: no pool has 100.64.0.2:443\n  hint: edgectl backends list\n");
    let refused = edgectl(&daemon, "backends drain 100.64.0.9 --json").fails(1, "");
    assert_eq!(
        serde_json::from_str::<Value>(&refused.stderr).unwrap(),
        json!({"error": {"code": "no_such_backend", "message": "no pool has 100.64.0.9", "hint": "edgectl backends list"}})
    );
    assert_eq!(refused.stdout, "");
}

#[test]
fn connections_are_listed_and_closed() {
    let daemon = Running::start();
    assert_eq!(
        edgectl(&daemon, "connections list").ok().stdout,
        "\
ID  CLIENT               LISTENER  HOST               BACKEND         DATAPATH    AGE   IDLE       UP     DOWN
 7  [2001:db8::7]:50123  https     cloud.example.com  100.64.0.2:443  splice    1h 2m  250ms  1.2 KiB  5.4 MiB
"
    );
    assert_eq!(edgectl(&daemon, "connections list --json").ok().json()[0]["bytes_down"], 5_678_901);
    assert_eq!(edgectl(&daemon, "connections close 7").ok().stdout, "closed connection 7\n");
    assert_eq!(edgectl(&daemon, "connections close 7 --json").ok().json(), json!({"id": 7}));
    edgectl(&daemon, "connections close 8").fails(1, "no connection 8");
    edgectl(&daemon, "connections close seven").fails(2, "seven");
}

#[test]
fn status_top_and_doctor_show_the_daemon() {
    let daemon = Running::start();
    let status = edgectl(&daemon, "status").ok().stdout;
    for says in [
        "0.1.0, pid 42, up 1d 1h",
        "1 now, 10 in all",
        "no flow (CAP_BPF is missing)",
        "2 no_route",
        "[::]:443",
    ] {
        assert!(status.contains(says), "{says:?} is not in {status}");
    }
    assert_eq!(edgectl(&daemon, "status --json").ok().json()["connections"]["limit"], 1000);

    let top = edgectl(&daemon, "top --count 2 --interval 1ms").ok().stdout;
    assert!(top.contains("connections/s") && top.contains("bit/s"), "{top}");
    assert!(!top.contains('\x1b'), "no control sequences where there is no terminal");
    assert_eq!(edgectl(&daemon, "top --json --count 2 --interval 1ms").ok().stdout.lines().count(), 2);

    let doctor = edgectl(&daemon, "doctor").ok().stdout;
    assert_eq!(
        doctor,
        "warn  bpffs\n      not mounted\n      -> mount -t bpf bpf /sys/fs/bpf\n\
         it works, but see above: 1 warning, 1 ok (`edgectl doctor -v` lists them all)\n"
    );
    let doctor = edgectl(&daemon, "doctor -v").ok().stdout;
    assert!(doctor.contains("ok    kernel  Linux 6.12.0\n"), "{doctor}");
    assert_eq!(edgectl(&daemon, "doctor --json").ok().json()["checks"][1]["status"], "warn");
}

#[test]
fn blocks_are_added_listed_and_removed_but_not_the_operator() {
    let daemon = Running::start();
    let added = edgectl(&daemon, "block add 192.0.2.0/24 --for 1h --json").ok().json();
    assert_eq!(added["until"], "2023-11-14T23:13:20.000Z");
    assert!(edgectl(&daemon, "block list").ok().stdout.contains("192.0.2.0/24"));
    assert!(edgectl(&daemon, "block remove 192.0.2.0/24").ok().stdout.starts_with("let 192.0.2.0/24 in"));
    edgectl(&daemon, "block remove 192.0.2.0/24").fails(1, "no XDP");
    edgectl(&daemon, "block add 192.0.2.0/24 --for soon").fails(2, "10m");

    let from_ssh = |arguments: &str| {
        let mut command = command(arguments);
        command
            .env("SSH_CONNECTION", "203.0.113.5 50000 198.51.100.1 22")
            .arg("--control")
            .arg(daemon.socket());
        run(command)
    };
    from_ssh("block add 203.0.113.0/24").fails(1, "203.0.113.5 is where you come from");
    from_ssh("block add 203.0.113.0/24 --force").ok();
}

#[test]
fn a_configuration_is_checked_without_a_daemon_and_reloaded_with_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("edge.toml");
    let check = |arguments: &str| {
        let mut command = command(arguments);
        command.arg(&file);
        run(command)
    };
    std::fs::write(&file, "[[route]]\nhost = \"*.example.com\"\nto = \"100.64.0.2\"\n").unwrap();
    let valid = check("config check").ok();
    assert_eq!(valid.stdout, format!("{}: valid, 2 listeners, 0 pools, 1 route\n", file.display()));
    assert_eq!(check("config check --json").ok().json()["valid"], true);

    std::fs::write(&file, "[[route]]\nhots = \"*.example.com\"\nto = \"100.64.0.2\"\n").unwrap();
    let place = format!("{}:2:1", file.display());
    let wrong = check("config check").fails(1, &place);
    assert!(wrong.stderr.contains("did you mean `host`?"), "{}", wrong.stderr);
    let wrong = check("config check --json").fails(1, "").json();
    assert_eq!(wrong["valid"], false);
    assert!(wrong["problems"].as_array().unwrap().iter().any(|problem| problem["line"] == 2), "{wrong}");
    std::fs::remove_file(&file).unwrap();
    check("config check").fails(1, "edge.toml");

    let daemon = Running::start();
    for spelling in ["reload", "config reload"] {
        edgectl(&daemon, spelling).fails(1, "edge.toml:3:1: unknown key `hots`\n  did you mean `host`?");
    }
}

#[test]
fn wrong_usage_is_2() {
    let daemon = Running::start();
    for (arguments, says) in [
        ("", "Usage"),
        ("route", "routes"),
        ("routes add", "HOST"),
        ("routes add a.example", "TO"),
        ("routes add a..b caddy", "empty label"),
        ("routes add a.example caddy :1", "list of addresses"),
        ("routes add a.example caddy --from here", "CIDR"),
        ("routes add a.example caddy --proxy-protocol v3", "v3"),
        ("backends drain caddy:x", "address or a name"),
    ] {
        edgectl(&daemon, arguments).fails(2, says);
    }
    let version = edgectl(&daemon, "--version").ok().stdout;
    assert_eq!(version, format!("edgectl {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_daemon_that_cannot_be_reached_is_3() {
    let directory = tempfile::tempdir().unwrap();
    let at = |arguments: &str, socket: &str| {
        let mut command = command(arguments);
        command.arg("--control").arg(directory.path().join(socket));
        run(command)
    };
    at("status", "nothing.sock").fails(3, "is edged running?");
    let missing = at("routes list --json", "nothing.sock").fails(3, "");
    assert_eq!(serde_json::from_str::<Value>(&missing.stderr).unwrap()["error"]["code"], "unreachable");

    drop(std::os::unix::net::UnixListener::bind(directory.path().join("left.sock")).unwrap());
    at("status", "left.sock").fails(3, "nobody answers");

    let deaf = std::os::unix::net::UnixListener::bind(directory.path().join("deaf.sock")).unwrap();
    let hangs_up = std::thread::spawn(move || drop(deaf.accept().unwrap()));
    at("status", "deaf.sock").fails(3, "deaf.sock");
    hangs_up.join().unwrap();

    let config = directory.path().join("edge.toml");
    std::fs::write(&config, "[[listener]]\nname = \"x\"\nbind = [\"127.0.0.1:1\"]\nprotocl = \"tls\"\n")
        .unwrap();
    let doctor = at(&format!("doctor --config {}", config.display()), "nothing.sock").fails(3, "");
    assert!(doctor.stdout.contains("fail  edged"), "{}", doctor.stdout);
    assert!(doctor.stdout.contains("protocl"), "{}", doctor.stdout);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let daemon = Running::start();
    let mut child = command("top --interval 1ms")
        .arg("--control")
        .arg(daemon.socket())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), &b""[..]));
}
