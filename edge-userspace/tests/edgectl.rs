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
    assert_eq!(removed.stdout, "removed *.example.com to 100.64.0.2,[fd7a::2]:443\nclosed 1 connection\n");
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
fn lists_are_filtered_and_connections_closed_by_what_they_are() {
    let daemon = Running::start();
    edgectl(&daemon, "routes add cloud.example.com 100.64.0.2").ok();
    edgectl(&daemon, "routes add *.example.com [fd7a::2]:443 --listener https").ok();
    let count = |arguments: &str| {
        let list = edgectl(&daemon, &format!("{arguments} --json")).ok().json();
        list.as_array().unwrap().len()
    };
    for (filter, found) in [
        ("--host cloud.example.com", 2),
        ("--host *.example.com", 1),
        ("--host other.example", 0),
        ("--listener http", 1),
        ("--backend fd7a::2", 1),
        ("--source file", 0),
        ("--limit 1", 1),
    ] {
        assert_eq!(count(&format!("routes list {filter}")), found, "{filter}");
    }
    for (filter, found) in [
        ("--state up", 1),
        ("--state down", 0),
        ("--pool nginx", 0),
        ("--backend 100.64.0.2 --device wg0", 1),
    ] {
        assert_eq!(count(&format!("backends list {filter}")), found, "{filter}");
    }
    for (filter, found) in [
        ("--client 2001:db8::/32 --host *.example.com --backend 100.64.0.2 --tier splice --older 1h", 1),
        ("--client 192.0.2.0/24", 0),
        ("--datapath flow", 0),
        ("--older 2h", 0),
        ("--limit 1", 1),
    ] {
        assert_eq!(count(&format!("connections list {filter}")), found, "{filter}");
    }
    assert_eq!(
        edgectl(&daemon, "connections list --older 2h").ok().stdout.lines().count(),
        1,
        "titles alone"
    );
    let closed = edgectl(&daemon, "connections close --host cloud.example.com").ok().stdout;
    assert_eq!(closed, "closed 1 connection\n");
    assert_eq!(edgectl(&daemon, "connections close --older 2h --json").ok().json(), json!({"closed": 0}));
    edgectl(&daemon, "connections close").fails(2, "required");
    edgectl(&daemon, "connections close 7 --host *").fails(2, "cannot be used with");
    edgectl(&daemon, "connections list --client here").fails(2, "CIDR");
}

#[test]
fn routes_are_exported_as_a_configuration() {
    let daemon = Running::start();
    assert!(edgectl(&daemon, "routes export").ok().stdout.starts_with('#'));
    edgectl(&daemon, "routes add .example.com 100.64.0.2 [fd7a::2]:443 --alpn h2 --proxy-protocol v2").ok();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("edge.toml");
    std::fs::write(&file, edgectl(&daemon, "routes export").ok().stdout).unwrap();
    let mut check = command("config check");
    check.arg(&file);
    assert!(run(check).ok().stdout.contains("2 routes"));
    assert_eq!(edgectl(&daemon, "routes export --json").ok().json().as_array().unwrap().len(), 2);
}

#[test]
fn a_dry_run_says_what_a_reload_would_change() {
    let daemon = Running::start();
    for spelling in ["reload --dry-run", "config reload --dry-run"] {
        assert_eq!(
            edgectl(&daemon, spelling).ok().stdout,
            "+ route b.example\n- route a.example\n1 connection would be ended: their clients are refused\n\
             2 connections would go on, on listeners or routes that change\n\
             warning: daemon.admin changed\nnothing was applied\n"
        );
    }
    let plan = edgectl(&daemon, "reload --dry-run --json").ok().json();
    assert_eq!(plan["routes"]["added"], json!(["b.example"]));
    assert_eq!(plan["connections"], json!({"ended": 1, "kept": 2}));
}

#[test]
fn colours_follow_the_option_and_the_environment() {
    let daemon = Running::start();
    let coloured = |arguments: &str, variables: &[(&str, &str)]| {
        let mut command = command(arguments);
        for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM"] {
            command.env_remove(name);
        }
        command.envs(variables.iter().copied()).arg("--control").arg(daemon.socket());
        run(command).ok().stdout.contains('\x1b')
    };
    assert!(!coloured("backends list", &[]), "a pipe");
    assert!(coloured("backends list --color always", &[("NO_COLOR", "1")]));
    assert!(coloured("backends list", &[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured("backends list", &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(!coloured("backends list --color=never", &[("CLICOLOR_FORCE", "1")]));
    edgectl(&daemon, "status --color sometimes").fails(2, "sometimes");
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
    let blocked = from_ssh("block add 203.0.113.0/24 --force").ok().stdout;
    assert_eq!(blocked, "blocked 203.0.113.0/24; 3 connections ended\n");
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

/// `edgectl` on a terminal of 80 columns and 24 lines, made by script(1). `talk` types, and reads until it has seen something.
fn on_terminal(daemon: &Running, call: &str, talk: impl FnOnce(&mut Typist)) -> String {
    let (program, socket) = (env!("CARGO_BIN_EXE_edgectl"), daemon.socket().display().to_string());
    let call = call.replace("edgectl", program).replace("SOCKET", &socket);
    let mut child = Command::new("script")
        .args(["-qec", &format!("stty rows 24 cols 80; {call}; echo EXIT=$?; stty -a"), "/dev/null"])
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut typist =
        Typist { keys: child.stdin.take().unwrap(), screen: child.stdout.take().unwrap(), seen: Vec::new() };
    talk(&mut typist);
    std::io::Read::read_to_end(&mut typist.screen, &mut typist.seen).unwrap();
    assert!(child.wait().unwrap().success());
    String::from_utf8_lossy(&typist.seen).into_owned()
}

struct Typist {
    keys: std::process::ChildStdin,
    screen: std::process::ChildStdout,
    seen: Vec<u8>,
}

impl Typist {
    fn keys(&mut self, keys: &str) {
        std::io::Write::write_all(&mut self.keys, keys.as_bytes()).unwrap();
    }

    #[track_caller]
    fn until(&mut self, wanted: &str) {
        let mut bytes = [0; 4096];
        while !String::from_utf8_lossy(&self.seen).contains(wanted) {
            let read = std::io::Read::read(&mut self.screen, &mut bytes).unwrap();
            assert!(read > 0, "{wanted:?} is not in {:?}", String::from_utf8_lossy(&self.seen));
            self.seen.extend_from_slice(&bytes[..read]);
        }
    }
}

/// The alternate screen is left and the terminal cooks its input again.
#[track_caller]
fn is_restored(seen: &str, exit: i32) {
    let (screen, after) = seen.split_once("\x1b[?1049l").unwrap_or_else(|| panic!("{seen:?}"));
    assert!(screen.contains("\x1b[?1049h"), "{screen:?}");
    assert!(after.contains(&format!("EXIT={exit}")), "{after:?}");
    assert!(after.contains(" icanon") && after.contains(" echo "), "{after:?}");
}

#[test]
fn top_is_a_screen_that_obeys_keys_and_restores_the_terminal() {
    let daemon = Running::start();
    let seen = on_terminal(&daemon, "edgectl top --interval 50ms --control SOCKET", |typist| {
        typist.until("q quit");
        // The first q is a letter of the filter, the second one ends it.
        typist.keys("/q\r");
        typist.keys("sj");
        typist.keys("q");
    });
    assert!(seen.contains("cloud.example.com") && seen.contains("splice"), "{seen:?}");
    is_restored(&seen, 0);
}

#[test]
fn top_restores_the_terminal_when_a_signal_ends_it() {
    let daemon = Running::start();
    // timeout(1) reports with 124 that it sent the signal.
    let call = "timeout --foreground -s TERM 1 edgectl top --control SOCKET";
    let seen = on_terminal(&daemon, call, |typist| typist.until("q quit"));
    is_restored(&seen, 124);
}

#[test]
fn lists_help_and_status_fit_a_terminal_of_80_columns() {
    let daemon = Running::start();
    let host = "a-service-with-a-name-of-sixty-characters-in-all.example.com";
    edgectl(&daemon, &format!("routes add {host} [fd7a:115c:a1e0:ab12:4843:cd96:6258:2]:8443")).ok();
    for call in ["routes list", "connections list", "backends list", "status", "routes add --help", "--help"]
    {
        let seen = on_terminal(&daemon, &format!("edgectl {call} --control SOCKET"), |_| {});
        let text = anstream::adapter::strip_str(seen.split_once("EXIT=0").unwrap().0).to_string();
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{call}: {line:?}");
        }
        assert!(call != "routes list" || text.contains(host), "{text}");
    }
}
