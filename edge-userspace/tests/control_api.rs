//! The control API over its real socket: every call, and every way to get one wrong.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
};

use serde_json::{Value, json};

mod fake;
#[path = "fake/running.rs"]
mod running;

use running::Running;

/// One exchange in plain HTTP/1.1, so that nothing of the daemon's own client hides what is on the wire.
fn call(daemon: &Running, method: &str, target: &str, body: &str) -> (u16, String, Value) {
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: edged\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/json"), "{head}");
    (status, head, serde_json::from_str(body).unwrap())
}

fn ok(daemon: &Running, method: &str, target: &str, body: &str) -> Value {
    let (status, _, value) = call(daemon, method, target, body);
    assert_eq!(status, 200, "{method} {target}: {value}");
    value
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn has_all(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "{name} is missing in {value}");
    }
}

#[test]
fn routes_are_added_listed_tested_and_removed() {
    let daemon = Running::start();
    assert_eq!(ok(&daemon, "GET", "/v1/routes", ""), json!([]));
    let added = ok(
        &daemon,
        "POST",
        "/v1/routes",
        r#"{"host": "Cloud.Example.com", "to": "caddy", "from": "10.1.2.3/8"}"#,
    );
    assert_eq!(
        added,
        json!({
            "host": "cloud.example.com", "listener": [], "protocol": [], "to": "caddy", "source": "runtime", "alpn": [],
            "from": ["10.0.0.0/8"], "allow": [], "deny": [], "redirect": "off", "proxy_protocol": "off", "proxy_tlvs": [],
            "datapath": "auto", "connections": 0, "bytes_up": 0, "bytes_down": 0,
        })
    );
    let list = ok(&daemon, "GET", "/v1/routes", "");
    assert_eq!(list, json!([added]));

    let test = ok(&daemon, "POST", "/v1/routes/test", r#"{"host": "cloud.example.com", "probe": true}"#);
    assert_eq!(test["route"]["to"], "caddy");
    assert_eq!(test["considered"][0]["wins"], true);
    assert_eq!(test["probe"][0]["steps"][0]["status"], "fail");
    let test = ok(&daemon, "POST", "/v1/routes/test", r#"{"host": "other.example.com"}"#);
    assert_eq!((&test["route"], &test["probe"]), (&Value::Null, &Value::Null));

    let removed = ok(&daemon, "DELETE", "/v1/routes", r#"{"host": "cloud.example.com", "close": true}"#);
    assert_eq!(removed, json!({"removed": [added], "closed": 1}));
    assert_eq!(ok(&daemon, "GET", "/v1/routes", ""), json!([]));
}

#[test]
fn fields_may_come_in_the_query() {
    let daemon = Running::start();
    let added = ok(
        &daemon,
        "POST",
        "/v1/routes?host=*.example.com&to=100.64.0.2&to=%5Bfd7a::2%5D:443&alpn=h2&proxy_protocol=v2&proxy_tlvs=alpn&replace=true",
        "",
    );
    assert_eq!(added["to"], json!(["100.64.0.2", "[fd7a::2]:443"]));
    assert_eq!(added["proxy_tlvs"], json!(["alpn"]));
    assert_eq!((&added["alpn"], &added["proxy_protocol"]), (&json!(["h2"]), &json!("v2")));
    assert_eq!(call(&daemon, "DELETE", "/v1/routes?host=*.example.com&alpn=h3", "").0, 404);
    assert_eq!(ok(&daemon, "DELETE", "/v1/routes?host=*.example.com&alpn=h2&close", "")["closed"], 1);
}

#[test]
fn backends_connections_status_and_doctor_have_their_fields() {
    let daemon = Running::start();
    let backends = ok(&daemon, "GET", "/v1/backends", "");
    has_all(
        &backends[0],
        &["pool", "to", "address", "state", "since", "reason", "device", "weight", "connections", "rtt_ms"],
    );
    has_all(&backends[0], &["last_error", "last_error_at", "last_success_at"]);
    assert_eq!(backends[0]["since"], "2023-11-14T22:13:20.000Z");
    assert_eq!(
        ok(&daemon, "POST", "/v1/backends/drain", r#"{"to": "100.64.0.2:443"}"#)[0]["state"],
        "drained"
    );
    let ready = ok(&daemon, "POST", "/v1/backends/ready", r#"{"to": "100.64.0.2:443", "pool": "caddy"}"#);
    assert_eq!(ready[0]["state"], "up");

    let connections = ok(&daemon, "GET", "/v1/connections", "");
    let mut names = keys(&connections[0]);
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "age_seconds",
            "alpn",
            "backend",
            "backend_state",
            "bytes_down",
            "bytes_up",
            "client",
            "datapath",
            "device",
            "host",
            "id",
            "idle_seconds",
            "listener",
            "route"
        ]
    );
    assert_eq!(connections[0]["client"], "[2001:db8::7]:50123");
    assert_eq!(ok(&daemon, "DELETE", "/v1/connections/7", ""), json!({"id": 7}));

    let status = ok(&daemon, "GET", "/v1/status", "");
    has_all(
        &status,
        &["version", "pid", "uptime_seconds", "config", "datapath", "listeners", "connections", "rejected"],
    );
    assert_eq!(ok(&daemon, "GET", "/v1/doctor", "")["checks"][1]["remedy"], "mount -t bpf bpf /sys/fs/bpf");
}

#[test]
fn blocks_are_added_listed_and_removed() {
    let daemon = Running::start();
    let added = ok(&daemon, "POST", "/v1/blocks", r#"{"cidr": "192.0.2.7", "for": "1h"}"#);
    assert_eq!(added["cidr"], "192.0.2.7/32");
    assert_eq!(added["until"], "2023-11-14T23:13:20.000Z");
    assert_eq!(ok(&daemon, "GET", "/v1/blocks", ""), json!([added]));
    assert_eq!(ok(&daemon, "DELETE", "/v1/blocks?cidr=192.0.2.7/32", ""), added);
    assert_eq!(ok(&daemon, "GET", "/v1/blocks", ""), json!([]));
}

#[test]
fn every_error_has_the_one_shape() {
    let daemon = Running::start();
    ok(&daemon, "POST", "/v1/routes", r#"{"host": "a.example", "to": "caddy"}"#);
    let large = format!(r#"{{"host": "{}"}}"#, "a".repeat(300 * 1024));
    for (method, target, body, status, code, says) in [
        ("GET", "/", "", 404, "no_such_path", "there is no /"),
        ("GET", "/v2/routes", "", 404, "no_such_path", "/v2/routes"),
        ("PUT", "/v1/routes", "", 405, "no_such_method", "PUT"),
        ("PUT", "/v1/reload", "", 405, "no_such_method", "PUT"),
        ("POST", "/v1/routes", "{", 400, "bad_json", "EOF"),
        ("POST", "/v1/routes", r#"{"host": "a", "to": "x"} {}"#, 400, "bad_json", "trailing"),
        ("POST", "/v1/routes", "", 400, "bad_request", "missing field `host`"),
        (
            "POST",
            "/v1/routes",
            r#"{"host": "a b", "to": "x"}"#,
            400,
            "bad_request",
            "host: the name has a character",
        ),
        (
            "POST",
            "/v1/routes",
            r#"{"host": "a", "to": "x", "form": 1}"#,
            400,
            "bad_request",
            "unknown field `form`",
        ),
        ("POST", "/v1/routes", large.as_str(), 413, "body_too_large", "262144"),
        ("POST", "/v1/routes", r#"{"host": "a.example", "to": "nginx"}"#, 409, "route_exists", "elsewhere"),
        ("DELETE", "/v1/routes", r#"{"host": "b.example"}"#, 404, "no_such_route", "b.example"),
        ("POST", "/v1/routes/test", r#"{"host": "a", "from": "home"}"#, 400, "bad_request", "IP address"),
        ("POST", "/v1/backends/drain", r#"{"to": "100.64.0.9"}"#, 404, "no_such_backend", "100.64.0.9"),
        ("DELETE", "/v1/connections/seven", "", 400, "bad_request", "number"),
        ("DELETE", "/v1/connections/8", "", 404, "no_such_connection", "8"),
        ("DELETE", "/v1/connections", "", 400, "no_condition", "every connection"),
        ("DELETE", "/v1/connections", r#"{"limit": 5}"#, 400, "no_condition", "every connection"),
        ("GET", "/v1/connections?clients=::1", "", 400, "bad_request", "unknown field `clients`"),
        ("POST", "/v1/blocks", r#"{"cidr": "192.0.2.0/40"}"#, 400, "bad_request", "CIDR"),
        ("POST", "/v1/blocks", r#"{"cidr": "::/0", "protect": ["::1"]}"#, 409, "own_address", "::1"),
        ("DELETE", "/v1/blocks?cidr=::1", "", 501, "no_xdp", "XDP"),
        ("POST", "/v1/reload", "", 422, "config_invalid", "edge.toml:3:1"),
    ] {
        let (got, head, value) = call(&daemon, method, target, body);
        assert_eq!(got, status, "{method} {target}: {value}");
        assert_eq!(keys(&value), ["error"]);
        let error = &value["error"];
        assert_eq!(keys(error), ["code", "hint", "message"], "{value}");
        assert_eq!(error["code"], code, "{value}");
        assert!(error["message"].as_str().unwrap().contains(says), "{value}");
        assert_eq!(head.contains("allow: "), status == 405, "{head}");
    }
}

#[test]
fn a_body_that_is_shorter_than_it_says_is_no_request() {
    let daemon = Running::start();
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream
        .write_all(b"POST /v1/routes HTTP/1.1\r\nHost: edged\r\nContent-Length: 100\r\n\r\n{\"host\": \"a\"")
        .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert_eq!(ok(&daemon, "GET", "/v1/routes", ""), json!([]));
}
