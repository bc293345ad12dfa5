//! The messages for the author of a configuration: exact texts for bad ones, none for the examples.

use std::{fmt::Write as _, fs, net::SocketAddr, path::Path, time::Duration};

use edge::{
    config::{ConfigError, Settings},
    observe::access_log::AccessLogTarget,
    spec::{
        Balance, Choice, ClientProtocol, HealthKind, HealthSpec, HostPattern, Protocol, ProxyProtocol,
        Target, Warm,
    },
};

const CASES: &str = include_str!("config_errors.txt");

fn refused(text: &str) -> ConfigError {
    match Settings::parse("edge.toml", text) {
        Ok(settings) => panic!("{text}\nwas taken as {settings:?}"),
        Err(error) => error,
    }
}

#[test]
fn each_bad_configuration_is_told_exactly() {
    let mut cases = 0;
    for case in CASES.split("\n#### ").skip(1) {
        let (what, case) = case.split_once('\n').unwrap();
        let (mut text, mut expected) = (String::new(), String::new());
        for line in case.trim_end().lines() {
            match line.strip_prefix(">> ") {
                Some(said) => writeln!(expected, "edge.toml:{said}").unwrap(),
                None => writeln!(text, "{line}").unwrap(),
            }
        }
        assert_eq!(format!("{}\n", refused(&text)), expected, "{what}:\n{text}");
        cases += 1;
    }
    assert!(cases >= 49, "only {cases} cases were read");
}

#[test]
fn a_problem_has_its_parts_as_fields() {
    let error = refused("[[route]]\nhots = \"a.test\"\nto = \"100.64.0.2\"\n");
    assert_eq!(
        serde_json::to_value(&error.problems[1]).unwrap(),
        serde_json::json!({
            "file": "edge.toml",
            "line": 2,
            "column": 1,
            "message": "unknown key `hots` in [[route]]",
            "hint": "did you mean `host`?",
        })
    );
}

#[test]
fn the_same_problem_thousands_of_times_does_not_fill_the_screen() {
    let text = "[[route]]\nhost = \"a.test\"\n".repeat(1000);
    let error = refused(&text);
    assert_eq!((error.problems.len(), error.more), (ConfigError::MOST, 1000 - ConfigError::MOST));
    assert!(error.to_string().ends_with("\nand 950 more"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edge.toml");
    let load = || Settings::load(&path).unwrap_err().to_string().replace(path.to_str().unwrap(), "PATH");
    assert_eq!(
        load(),
        "PATH: cannot be read: No such file or directory (os error 2); create it, or name another with --config"
    );
    fs::write(&path, b"[daemon]\nstate_dir = \"\xfc\"\n").unwrap();
    assert_eq!(load(), "PATH:2:14: not UTF-8 text; save it as UTF-8");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(load(), "PATH: cannot be read: Is a directory (os error 21); name the file in it");
}

fn example(name: &str) -> Settings {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    Settings::load(&path).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_smallest_example_has_the_default_listeners() {
    let settings = example("minimal.toml");
    let listeners: Vec<_> =
        settings.listeners.iter().map(|spec| (&*spec.name, &*spec.bind, spec.protocol)).collect();
    let all = |port| [SocketAddr::from(([0_u16; 8], port))];
    assert_eq!(listeners, [("https", &all(443)[..], Protocol::Tls), ("http", &all(80)[..], Protocol::Http)]);
    assert_eq!(settings.routes.len(), 1);
    assert_eq!(settings.routes[0].to, Target::One("100.64.0.2".into()));
    assert_eq!(settings.limits.hello_timeout, Duration::from_secs(5));
    assert_eq!(settings.limits.idle_timeout, Some(Duration::from_hours(1)));
}

#[test]
fn the_full_example_writes_the_defaults_out() {
    let (full, minimal) = (example("full.toml"), example("minimal.toml"));
    assert_eq!(full.limits, minimal.limits);
    assert_eq!(full.shield, minimal.shield);
    assert_eq!(full.tunnel, minimal.tunnel);
    assert_eq!(full.flow, minimal.flow);
    assert_eq!(full.listeners[0], minimal.listeners[0]);
    assert_eq!(full.daemon.admin, Some("127.0.0.1:9464".parse().unwrap()));
    assert_eq!(full.daemon.admin_token_file.as_deref(), Some("/etc/edge/admin-token".as_ref()));
    let daemon = edge::config::DaemonSettings { admin: None, admin_token_file: None, ..full.daemon };
    assert_eq!(daemon, minimal.daemon);
    assert_eq!(full.listeners[2].to, Some(Target::One("100.64.0.2:50001".into())));
    let pool = &full.pools[0];
    assert_eq!((pool.balance, pool.warm, pool.health), Default::default());
    assert_eq!(pool.backends[0].device.as_deref(), Some("wg0"));
    assert_eq!(full.routes[2].proxy_protocol, ProxyProtocol::V2);
    assert_eq!(full.routes[3].datapath, Choice::Splice);
    assert_eq!(full.resolver.servers, ["100.100.100.100:53".parse().unwrap()]);
    assert_eq!((full.resolver.search, minimal.resolver.search), (Some(Vec::new()), None));
}

#[test]
fn every_value_can_be_another_than_its_default() {
    let settings = Settings::parse(
        "edge.toml",
        r#"
            daemon = { datapath = "copy", admin = "off", access_log = "/var/log/edge.json" }
            flow = { ports = "1024 - 1087" }
            limits = { idle_timeout = 0, hello_bytes = 0x1_0000, connections = 1_000 }
            resolver = { servers = ["fd7a::53"], suffixes = { "TS.net." = ["[fd7a::53]:5353", "192.0.2.53"] }, search = ["Tail.TS.net.", "lan"] }

            [[listener]]
            name = "https"
            bind = ["[::1]:0", "127.0.0.1:0"]
            accept_proxy = ["192.0.2.1", "10.1.2.3/8"]

            [[listener]]
            name = "pg"
            bind = ["[::1]:0"]
            protocol = "tcp"
            to = ["db1:5432", "db2:5432"]
            idle_timeout = 0
            connect_timeout = "1s"

            [[listener]]
            name = "all"
            bind = ["[::1]:0"]
            protocols = ["ssh", "tls", "ssh"]
            silence_timeout = "900ms"
            hello_timeout = "1s"

            [[route]]
            protocol = ["ssh"]
            to = "100.64.0.2:22"
            idle_timeout = "1d"

            [[pool]]
            name = "caddy"
            balance = "source-hash"
            warm = "auto"
            proxy_protocol = "v2"
            proxy_tlvs = ["crc32c", "authority"]
            proxy_align = 64
            health.kind = "tls"
            health.fall = 1
            [[pool.backend]]
            to = "caddy"
            weight = 0
            [[pool.backend]]
            to = "caddy"
            device = "wg0"
            [[pool.backend]]
            to = "caddy"
            device = "wg1"
            backup = true

            [tunnel]
            handshake_timeout = "90s"
        "#,
    )
    .unwrap();
    assert_eq!(settings.daemon.access_log, AccessLogTarget::File("/var/log/edge.json".into()));
    assert_eq!((settings.daemon.datapath, settings.daemon.admin), (Choice::Copy, None));
    assert_eq!(
        (settings.limits.idle_timeout, settings.limits.hello_bytes, settings.limits.connections),
        (None, 65536, 1000)
    );
    assert_eq!(settings.resolver.servers, ["[fd7a::53]:53".parse().unwrap()]);
    let suffixes: Vec<_> = settings.resolver.suffixes.iter().collect();
    assert_eq!(suffixes[0].0.as_str(), "ts.net");
    assert_eq!(suffixes[0].1[..], ["[fd7a::53]:5353".parse().unwrap(), "192.0.2.53:53".parse().unwrap()]);
    assert_eq!(
        settings.resolver.search,
        Some(["tail.ts.net", "lan"].map(|text| text.parse().unwrap()).to_vec())
    );
    let (https, pg) = (&settings.listeners[0], &settings.listeners[1]);
    assert_eq!(https.protocol, Protocol::Tls);
    assert_eq!(https.accept_proxy[..], ["192.0.2.1/32".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
    assert_eq!(pg.to, Some(Target::Many(vec!["db1:5432".parse().unwrap(), "db2:5432".parse().unwrap()])));
    assert_eq!((pg.idle_timeout, pg.connect_timeout), (Some(Duration::ZERO), Some(Duration::from_secs(1))));
    let all = &settings.listeners[2];
    assert_eq!(all.speaks(), [ClientProtocol::Tls, ClientProtocol::Ssh]);
    assert_eq!(all.silence_timeout, Duration::from_millis(900));
    assert_eq!((all.hello_timeout, all.idle_timeout), (Some(Duration::from_secs(1)), None));
    let route = &settings.routes[0];
    assert_eq!(
        (&route.conditions.host, &*route.conditions.protocols),
        (&HostPattern::Any, &[ClientProtocol::Ssh][..])
    );
    assert_eq!(route.idle_timeout, Some(Duration::from_hours(24)));
    let pool = &settings.pools[0];
    assert_eq!((pool.balance, pool.warm, pool.proxy_align), (Balance::SourceHash, Warm::Auto, 64));
    assert_eq!(pool.proxy_tlvs.to_string(), "authority, crc32c");
    assert_eq!(pool.health, HealthSpec { kind: HealthKind::Tls, fall: 1, ..HealthSpec::default() });
    assert_eq!(pool.backends[0].weight, 0);
    let devices: Vec<_> = pool.backends.iter().map(|backend| backend.device.as_deref()).collect();
    assert_eq!(devices, [None, Some("wg0"), Some("wg1")], "each way to one home is a backend");
    assert_eq!(settings.tunnel.handshake, Duration::from_secs(90));
}

#[test]
fn flows_keep_clear_of_listeners_unless_told_their_ports() {
    let ports = |bind: &str, rest: &str| {
        let text = format!(
            "[[listener]]\nname = \"g\"\nbind = [\"{bind}\"]\nprotocol = \"tcp\"\nto = \"10.0.0.1\"\n{rest}"
        );
        Settings::parse("edge.toml", &text).unwrap().flow.ports
    };
    assert_eq!(ports("[::]:443", ""), 10_240..=32_767);
    assert_eq!(ports("[::]:25565-25575", ""), 10_240..=25_564);
    assert_eq!(ports("[::]:25565-25575", "[daemon]\nadmin = \"127.0.0.1:12000\"\n"), 12_001..=25_564);
    assert_eq!(ports("[::]:25565-25575", "[flow]\nports = \"20000-24999\"\n"), 20_000..=24_999);
}

#[test]
fn a_route_from_elsewhere_is_checked_against_the_settings() {
    let text = |routes: &str| {
        format!("[[pool]]\nname = \"caddy\"\n[[pool.backend]]\nto = \"100.64.0.2\"\n[[route]]\n{routes}")
    };
    let settings = Settings::parse("edge.toml", &text("host = \"a.test\"\nto = \"caddy\"\n")).unwrap();
    let mut route = settings.routes[0].clone();
    assert_eq!(settings.check_route(&route), Ok(()));
    route.to = Target::One("cady".into());
    let refusal = settings.check_route(&route).unwrap_err();
    assert_eq!(refusal.message, "no pool is called `cady`");
    assert_eq!(refusal.hint.as_deref(), Some("did you mean `caddy`?"));
    route.to = Target::Many(vec!["100.64.0.2".parse().unwrap()]);
    route.conditions.listeners = vec!["electrum".into()];
    let refusal = settings.check_route(&route).unwrap_err();
    assert_eq!(refusal.message, "no listener is called \"electrum\"");
}
