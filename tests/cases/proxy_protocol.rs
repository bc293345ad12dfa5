//! PROXY headers: what the servers at home make of ours, and which headers of others are believed.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{IpAddr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use lab::{
    Context, Edged, Lab, Result,
    certificates::Authority,
    ensure,
    hello::ClientHello,
    peers::{Caddy, Haproxy, Nginx},
    require::{self, Need},
    service::{self, Service},
    stream::{self, End},
    topology::CLIENT_SECOND,
    wait::{self, SOON},
};

use crate::{case, echo_once};

const SERVERS: &[Need] = &[
    Need::Program("nginx", "nginx"),
    Need::Program("haproxy", "haproxy"),
    Need::Program("curl", "curl"),
    Need::Newer("caddy"),
];
const NAME: &str = "a.proxy.example";
/// A name that would not fit into the 107 bytes that nginx before 1.23.2 takes: by default there is none in the header.
const SUFFIX: &str = "a-longer-name-than-most.proxy.example";
/// TLVs that HAProxy logs.
const TLVS: &str = "proxy_tlvs = [\"authority\", \"alpn\", \"unique_id\", \"crc32c\"]";
/// The header of version 2 that all begin with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// A request by curl for `https://NAME/PATH`; gives the address that it came from.
fn request(lab: &Lab, authority: &Authority, edge: SocketAddr, name: &str, path: &str) -> Result<SocketAddr> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{local_ip} %{local_port}", "--cacert"]).arg(&authority.file);
    curl.args(["--connect-to", &format!("::{edge}"), &format!("https://{name}/{path}")]);
    let came_from = lab.client.text_of(curl).with_context(|| format!("{name} by {edge}"))?;
    let (address, port) = came_from.split_once(' ').context("curl says no address")?;
    Ok(SocketAddr::new(address.parse()?, port.parse()?))
}

/// An address as all servers here log it.
fn logged(address: SocketAddr) -> String {
    format!("[{}]:{}", address.ip(), address.port())
}

/// The words behind a path in a server's log, once they are there.
fn entry<const N: usize>(path: &str, clients: impl Fn() -> Result<Vec<[String; N]>>) -> Result<[String; N]> {
    wait::until_ok("the server's log", SOON, || {
        clients()?.into_iter().find(|words| words[0] == format!("/{path}")).context(path.to_owned())
    })
}

/// nginx, HAProxy and Caddy, versions 1 and 2, clients and backends of both families.
fn servers_log_the_client(tier: &str) -> Result<()> {
    if !require::all(SERVERS) {
        return Ok(());
    }
    case(|lab| {
        let authority = Authority::new(lab)?;
        let certificate = authority.issue(lab, &[&format!("*.{SUFFIX}")])?;
        let both = |port| [lab.home.at(port), lab.home.at_v6(port)];
        let nginx = Nginx::behind_proxy(&lab.home, &both(1443), &certificate)?;
        let haproxy = Haproxy::behind_proxy(&lab.home, &both(2443), &certificate)?;
        let caddy = Caddy::behind_proxy(&lab.home, &both(3443), &format!("*.{SUFFIX}"), &certificate)?;
        // (name, server, version)
        let mut ways = Vec::new();
        let mut routes = String::new();
        for (server, port) in [("ng", 1443), ("ha", 2443), ("ca", 3443)] {
            for version in ["1", "2"] {
                for home in both(port) {
                    let family = if home.is_ipv4() { "4" } else { "6" };
                    let name = format!("{server}{version}{family}.{SUFFIX}");
                    let tlvs = if (server, version) == ("ha", "2") { TLVS } else { "" };
                    writeln!(
                        routes,
                        "[[route]]\nhost = \"{name}\"\nto = \"{home}\"\nproxy_protocol = \"v{version}\"\n{tlvs}"
                    )?;
                    ways.push((name, server, version));
                }
            }
        }
        let edged = Edged::plan(lab, &routes).daemon(&format!("datapath = \"{tier}\"")).start()?;
        if tier == "flow" {
            // The first connection may be over before the programs are on its devices.
            let (first, ..) = &ways[0];
            request(lab, &authority, lab.edge.at(443), first, "first")?;
        }
        let mut told = Vec::new();
        for (name, server, version) in &ways {
            for edge in [lab.edge.at(443), lab.edge.at_v6(443)] {
                let path = format!("{name}-{}", if edge.is_ipv4() { "4" } else { "6" });
                let client = request(lab, &authority, edge, name, &path)?;
                let seen = match *server {
                    "ng" => entry(&path, || nginx.clients())?.to_vec(),
                    "ha" => entry(&path, || haproxy.clients())?.to_vec(),
                    _ => entry(&path, || caddy.clients())?.to_vec(),
                };
                ensure!(seen[1] == logged(client), "the client is {client}, the log says {seen:?}");
                // Caddy does not log what was asked.
                ensure!(
                    *server == "ca" || seen[2] == logged(edge),
                    "{edge} was asked, the log says {seen:?}"
                );
                let of_both = (*server == "ha" && *version == "2").then(|| [name.clone(), seen[4].clone()]);
                ensure!(of_both.as_ref().is_none_or(|[name, _]| seen[3] == *name), "{seen:?}");
                told.push((path, client.to_string(), of_both));
            }
        }
        // A flow that was reset is accounted for some seconds later: all of them together.
        let mut carried = 0;
        for (path, client, of_both) in told {
            let record = edged.access_log.wait_for(&path, |record| record["client"] == client)?;
            // A short one may be over before the wire has shown what makes it a flow.
            let is_short = tier == "flow" && record["datapath"] == "copy";
            ensure!(tier == "splice" || record["datapath"] == tier || is_short, "{record}");
            carried += usize::from(record["datapath"] == tier);
            ensure!(of_both.is_none_or(|[_, id]| record["unique_id"] == id), "{record}");
        }
        ensure!(tier == "splice" || carried > 0, "none was carried by {tier}");
        Ok(())
    })
}

#[test]
fn servers_log_the_client_by_copy() -> Result<()> {
    servers_log_the_client("copy")
}

#[test]
fn servers_log_the_client_by_splice() -> Result<()> {
    servers_log_the_client("splice")
}

#[test]
fn servers_log_the_client_by_sockmap() -> Result<()> {
    servers_log_the_client("sockmap")
}

#[test]
fn servers_log_the_client_by_flow() -> Result<()> {
    servers_log_the_client("flow")
}

/// A proxy that is not ours before the edge, and one behind it.
#[test]
fn a_chain_of_proxies_keeps_client_and_id() -> Result<()> {
    if !require::all(SERVERS) {
        return Ok(());
    }
    case(|lab| {
        let authority = Authority::new(lab)?;
        let certificate = authority.issue(lab, &[NAME])?;
        let home = Haproxy::behind_proxy(&lab.home, &[lab.home.at(2443)], &certificate)?;
        let front = lab.client.at(8443);
        let _front = Haproxy::before_edge(&lab.client, front, lab.edge.at(443))?;
        let edged = Edged::start(
            lab,
            &format!(
                "[[listener]]\nname = \"https\"\nbind = [\"[::]:443\"]\naccept_proxy = [\"{}\"]\n\
                 [[pool]]\nname = \"home\"\nproxy_protocol = \"v2\"\n{TLVS}\nproxy_align = 128\n\
                 health = {{ kind = \"tls\", interval = \"200ms\", fall = 1 }}\n[[pool.backend]]\nto = \"{}\"\n\
                 [[route]]\nhost = \"{NAME}\"\nto = \"home\"\n",
                lab.client.v4,
                lab.home.at(2443)
            ),
        )?;
        let since = Instant::now();
        let client = request(lab, &authority, front, NAME, "chain")?;
        let [_, seen, asked, name, id] = entry("chain", || home.clients())?;
        ensure!(seen == logged(client) && asked == logged(front), "{seen} asked {asked}");
        ensure!(name == NAME && id == format!("front-{}-{}", client.ip(), client.port()), "{name} {id}");
        let record = edged.access_log.wait_for_host(NAME)?;
        ensure!(record["client"] == client.to_string() && record["unique_id"] == id, "{record}");
        // Health checks come with a header of their own (LOCAL), or HAProxy would refuse them, some of which have been
        // made by then.
        wait::until_true("some checks", SOON, || since.elapsed() > Duration::from_secs(1))?;
        let all_up = |backends: &serde_json::Value| {
            let mut all = backends.as_array().context("no list")?.iter();
            ensure!(all.all(|backend| backend["state"] == "up"), "{backends}");
            Ok(())
        };
        edged.edgectl().until(&["backends", "list"], all_up).map(drop)
    })
}

/// A header of version 2 for a TCP connection, with these bytes as TLVs and a length that may lie.
fn header_v2(source: SocketAddr, destination: SocketAddr, tlvs: &[u8], lie: i32) -> Vec<u8> {
    let mut block = Vec::new();
    for address in [source.ip(), destination.ip()] {
        match address {
            IpAddr::V4(v4) => block.extend(v4.octets()),
            IpAddr::V6(v6) => block.extend(v6.octets()),
        }
    }
    block.extend([source.port().to_be_bytes(), destination.port().to_be_bytes()].concat());
    block.extend(tlvs);
    let length = i32::try_from(block.len()).unwrap_or(0) + lie;
    let family = if source.is_ipv4() { 0x11 } else { 0x21 };
    [&SIGNATURE[..], &[0x21, family], &u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes(), &block]
        .concat()
}

fn listening(lab: &Lab, hello_timeout: &str, extra: &str) -> String {
    format!(
        "[limits]\nhello_timeout = \"{hello_timeout}\"\n\
         [[listener]]\nname = \"https\"\nbind = [\"[::]:443\"]\naccept_proxy = [\"{CLIENT_SECOND}\"]\n{extra}\n\
         [[route]]\nhost = \"{NAME}\"\nto = \"{}\"\n",
        lab.home_address()
    )
}

#[test]
fn a_listed_proxy_is_believed_byte_by_byte() -> Result<()> {
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, &listening(lab, "60s", "deny = [\"203.0.113.66\"]"))?;
        let hello = ClientHello::new(NAME).records();
        let edge: SocketAddr = "192.0.2.1:443".parse()?;
        let edge_v6 = "[2001:db8::1]:443".parse()?;
        for (header, client) in [
            (b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n".to_vec(), "203.0.113.9:4711"),
            (b"PROXY TCP6 2001:db8::9 2001:db8::1 4712 443\r\n".to_vec(), "[2001:db8::9]:4712"),
            (header_v2("203.0.113.9:4713".parse()?, edge, b"\xe0\0\x03own", 0), "203.0.113.9:4713"),
            (header_v2("[2001:db8::9]:4714".parse()?, edge_v6, b"", 0), "[2001:db8::9]:4714"),
            // A listener on [::] sees IPv4 clients in this form.
            (header_v2("[::ffff:203.0.113.9]:4715".parse()?, edge_v6, b"", 0), "203.0.113.9:4715"),
        ] {
            let mut stream = lab.client.connect_from(CLIENT_SECOND.into(), lab.edge.at(443))?;
            for byte in header.iter().chain(&hello[..hello.len() - 1]) {
                stream.write_all(&[*byte])?;
            }
            stream.write_all(&hello[hello.len() - 1..])?;
            let mut back = vec![0; hello.len()];
            stream.read_exact(&mut back)?;
            ensure!(back == hello, "{client}: the backend got other bytes");
            drop(stream);
            edged.access_log.wait_for(client, |record| record["client"] == client)?;
        }
        // Access rules are about the client, not about the proxy.
        let accepted = service.accepted();
        let mut denied = lab.client.connect_from(CLIENT_SECOND.into(), lab.edge.at(443))?;
        denied.write_all(b"PROXY TCP4 203.0.113.66 192.0.2.1 4711 443\r\n")?;
        ensure!(echo_once(&mut denied, &hello).is_err() && service.accepted() == accepted);
        edged.access_log.wait_for("the refusal", |record| record["close"] == "denied")?;
        Ok(())
    })
}

#[test]
fn other_headers_are_reset_and_counted() -> Result<()> {
    case(|lab| {
        let service = service::echo(&lab.home, lab.home_at(443))?;
        let edged = Edged::start(lab, &listening(lab, "3s", ""))?;
        let hello = ClientHello::new(NAME).records();
        let (client, edge): (SocketAddr, _) = ("203.0.113.9:4711".parse()?, "192.0.2.1:443".parse()?);
        let v1 = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n";
        let listed = IpAddr::from(CLIENT_SECOND);
        let unlisted = IpAddr::from(lab.client.v4);
        let before = |hello: &[u8], header: &[u8]| [header, hello].concat();
        let cases: &[(&str, IpAddr, Vec<u8>, &str)] = &[
            ("spoofed, version 1", unlisted, before(&hello, v1), "unknown_protocol"),
            (
                "spoofed, version 2",
                unlisted,
                before(&hello, &header_v2(client, edge, b"", 0)),
                "unknown_protocol",
            ),
            ("none", listed, hello.clone(), "proxy_header"),
            ("malformed", listed, b"PROXY TCP4 203.0.113.9 192.0.2.1 4711\r\n".to_vec(), "proxy_header"),
            ("version 1, too long", listed, before(&[b'1'; 120], b"PROXY TCP4 "), "proxy_header"),
            ("version 2, too long", listed, header_v2(client, edge, b"", 9000), "proxy_header"),
            ("a length too short", listed, header_v2(client, edge, b"", -4), "proxy_header"),
            (
                "a TLV cut by the length",
                listed,
                header_v2(client, edge, b"\x02\0\x30a.proxy.example", -4),
                "proxy_header",
            ),
            ("a wrong checksum", listed, header_v2(client, edge, b"\x03\0\x04\0\0\0\0", 0), "proxy_header"),
            // The hello is taken for TLVs, and more of them would have to come.
            (
                "a length too long",
                listed,
                before(&hello, &header_v2(client, edge, b"", 3000)),
                "proxy_header_timeout",
            ),
            ("late", listed, v1[..20].to_vec(), "proxy_header_timeout"),
        ];
        for (what, from, bytes, close) in cases {
            let mut stream = lab.client.connect_from(*from, lab.edge.at(443))?;
            let own = stream.local_addr()?;
            // The reset may come while we write.
            let _ = stream.write_all(bytes);
            let (answer, end) = stream::read_to_end(&mut stream)?;
            ensure!(answer.is_empty() && end == End::Reset, "{what}: {end:?} after {answer:?}");
            let record = edged.access_log.wait_for_client(own)?;
            ensure!(record["close"] == *close, "{what}: {record}");
        }
        ensure!(service.accepted() == 0, "a refused client reached the backend");
        let counted = |status: &serde_json::Value| {
            for close in ["unknown_protocol", "proxy_header", "proxy_header_timeout"] {
                let count = cases.iter().filter(|(_, _, _, expected)| *expected == close).count();
                ensure!(status["rejected"][close] == count, "{close}: {}", status["rejected"]);
            }
            Ok(())
        };
        edged.edgectl().until(&["status"], counted).map(drop)
    })
}

/// The bytes before the hello.
fn header_before(lab: &Lab, edge: SocketAddr, hello: &[u8], port: u16) -> Result<Vec<u8>> {
    let length = hello.len();
    let service = Service::start(&lab.home, lab.home_at(port), move |mut stream| {
        let mut fixed = [0; 16];
        stream.read_exact(&mut fixed)?;
        let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
        stream.read_exact(&mut rest)?;
        let mut behind = vec![0; length];
        stream.read_exact(&mut behind)?;
        Ok([&fixed[..], &rest].concat())
    })?;
    let mut stream = lab.client.connect(edge)?;
    stream.write_all(hello)?;
    service.outcome()
}

#[test]
fn a_header_has_the_tlvs_that_were_asked_for_and_never_too_many() -> Result<()> {
    case(|lab| {
        let route = |name: &str, port: u16, more: &str| {
            let to = lab.home_at(port);
            format!("[[route]]\nhost = \"{name}\"\nto = \"{to}\"\nproxy_protocol = \"v2\"\n{more}\n")
        };
        let mut edged =
            Edged::start(lab, &[route("*", 1001, ""), route("*.all.example", 1002, TLVS)].concat())?;
        let browser = ["h2", "http/1.1"];
        let many: Vec<String> = (0..300).map(|number| format!("protocol-{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let long = format!("{0}.{0}.all.example", "n".repeat(60));
        let longest = format!("{0}.{0}.{0}.all.example", "n".repeat(63));
        for (name, alpn, port, kinds) in [
            ("a.example", &browser[..], 1001, &[][..]),
            ("a.example", &many, 1001, &[]),
            ("a.all.example", &browser, 1002, &[3, 5, 2, 1]),
            ("a.all.example", &many, 1002, &[3, 5, 2]),
            (&long, &browser, 1002, &[3, 5, 2]),
            (&longest, &browser, 1002, &[3, 5]),
        ] {
            let hello = ClientHello::new(name).alpn(alpn).records();
            for (edge, addresses) in [(lab.edge.at(443), 28), (lab.edge.at_v6(443), 52)] {
                let header = header_before(lab, edge, &hello, port)?;
                ensure!(header.len() <= 232, "{name}: {} bytes", header.len());
                let mut found = Vec::new();
                let mut rest = &header[addresses..];
                while let [kind, high, low, behind @ ..] = rest {
                    found.push(*kind);
                    rest = &behind[usize::from(u16::from_be_bytes([*high, *low]))..];
                }
                // An IPv4 header has room for more.
                let is_more = addresses == 28 && found.starts_with(kinds);
                ensure!(found == kinds || is_more, "{name} by {edge}: {found:?}, not {kinds:?}");
            }
        }
        let written = edged.process().whole_log()?;
        ensure!(written.matches("TLVs are left out").count() == 1, "{written}");
        let report = edged.edgectl().run(&["doctor", "--json"])?;
        let report = String::from_utf8_lossy(&report.stdout).into_owned();
        ensure!(report.contains("28 bytes for clients of IPv4, 52 for those of IPv6"), "{report}");
        ensure!(report.contains("up to 232 bytes with authority, alpn, unique_id, crc32c"), "{report}");
        Ok(())
    })
}

#[test]
fn doctor_tells_who_expects_another_header() -> Result<()> {
    if !require::all(SERVERS) {
        return Ok(());
    }
    case(|lab| {
        let authority = Authority::new(lab)?;
        let certificate = authority.issue(lab, &["*.proxy.example"])?;
        let _plain = Nginx::tls(&lab.home, lab.home.at(443), &certificate)?;
        let _nginx = Nginx::behind_proxy(&lab.home, &[lab.home.at(1443)], &certificate)?;
        let _haproxy = Haproxy::behind_proxy(&lab.home, &[lab.home.at(2443)], &certificate)?;
        let route = |name: &str, port: u16, header: &str| {
            format!(
                "[[route]]\nhost = \"{name}.proxy.example\"\nto = \"{}\"\nproxy_protocol = \"{header}\"\n",
                lab.home.at(port)
            )
        };
        let edged = Edged::start(
            lab,
            &[route("a", 443, "v2"), route("b", 1443, "off"), route("c", 2443, "v2"), route("d", 5, "v1")]
                .concat(),
        )?;
        // A server that is slow for a moment does not answer in the doctor's time.
        wait::until_ok("the doctor to tell", SOON, || {
            // It ends with 1, for something is wrong.
            let report = edged.edgectl().run(&["doctor", "--json"])?;
            headers_are_told(lab, &serde_json::from_slice(&report.stdout)?)
        })
    })
}

/// The findings that doctor must report in [`doctor_tells_who_expects_another_header`].
fn headers_are_told(lab: &Lab, report: &serde_json::Value) -> Result<()> {
    let checks = report["checks"].as_array().context("no checks")?;
    let about = |port: u16| -> Vec<_> {
        let of = format!("PROXY header for {}", lab.home.at(port));
        let name =
            |check: &&serde_json::Value| check["name"].as_str().is_some_and(|name| name.starts_with(&of));
        checks.iter().filter(name).collect()
    };
    let text = |check: &serde_json::Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    for (port, status, message, remedy) in [
        (
            443,
            "fail",
            "is sent a PROXY header of version 2, but answers with no PROXY header",
            "accept-proxy",
        ),
        (1443, "fail", "is sent no PROXY header, but answers with a PROXY header of version 2", "\"v2\""),
        (2443, "ok", "is sent a PROXY header of version 2, and takes it", ""),
    ] {
        let [check] = about(port)[..] else { lab::bail!("{port}: {report}") };
        let fits = check["status"] == status && text(check, "message").starts_with(message);
        ensure!(fits && text(check, "remedy").contains(remedy), "{check}");
    }
    ensure!(about(5).is_empty(), "nothing is known of what is not there: {report}");
    Ok(())
}
