//! Clients of every TLS library reach the right server, byte for byte, without the edge in between showing.

use std::{fs, process::Command};

use lab::{
    Context, Edged, Lab, Result,
    certificates::Authority,
    clients::Fetch,
    ensure,
    peers::{Caddy, Nginx},
    require::{self, Need},
    stream::Pattern,
};

use crate::{case, tunnel_case};

const CLIENTS: &[Need] = &[
    Need::Program("nginx", "nginx"),
    Need::Program("caddy", "caddy"),
    Need::Program("curl", "curl"),
    Need::Program("openssl", "openssl"),
    Need::Program("gnutls-cli", "gnutls-bin"),
    Need::Program("tstclnt", "libnss3-tools"),
    Need::Program("python3", "python3"),
];

/// Large enough that bulk tiers take over, and odd.
const CONTENT: usize = 3_000_001;

type Client = fn(&Fetch<'_>) -> Result<Vec<u8>>;

/// nginx as web.example and Caddy as go.example, each with a `/blob` of its own content.
struct Servers {
    authority: Authority,
    nginx: Nginx,
    _caddy: Caddy,
    contents: [(&'static str, Vec<u8>); 2],
}

fn servers(lab: &Lab) -> Result<Servers> {
    let authority = Authority::new(lab)?;
    let nginx = Nginx::tls(&lab.home, lab.home_at(443), &authority.issue(lab, &["web.example"])?)?;
    let go = authority.issue(lab, &["go.example"])?;
    let caddy = Caddy::tls(&lab.home, lab.home_at(8443), "go.example", &go)?;
    let contents =
        [("web.example", Pattern::new(1).bytes(CONTENT)), ("go.example", Pattern::new(2).bytes(CONTENT))];
    fs::write(nginx.files.join("blob"), &contents[0].1)?;
    fs::write(caddy.files.join("blob"), &contents[1].1)?;
    Ok(Servers { authority, nginx, _caddy: caddy, contents })
}

fn routes(lab: &Lab) -> String {
    format!(
        "[[route]]\nhost = \"web.example\"\nto = \"{home}\"\n\
         [[route]]\nhost = \"go.example\"\nto = \"{home}:8443\"\n",
        home = lab.home_address()
    )
}

fn every_client(lab: &Lab) -> Result<()> {
    let servers = servers(lab)?;
    let edged = Edged::start(lab, &routes(lab))?;
    let clients: &[(&str, Client)] = &[
        ("curl, HTTP/1.1", |fetch| fetch.curl(&["--http1.1"])),
        ("curl, HTTP/2", |fetch| fetch.curl(&["--http2"])),
        ("openssl, TLS 1.2", |fetch| fetch.openssl(&["-tls1_2"])),
        ("openssl, TLS 1.3", |fetch| fetch.openssl(&["-tls1_3"])),
        ("GnuTLS", |fetch| fetch.gnutls()),
        ("Python", |fetch| fetch.python()),
        ("NSS", |fetch| fetch.nss()),
    ];
    let mut count = 0;
    for (name, content) in &servers.contents {
        for (client, get) in clients {
            let fetch = Fetch {
                from: &lab.client,
                edge: lab.edge.at(443),
                name,
                path: "/blob",
                authority: &servers.authority,
            };
            let got = get(&fetch).with_context(|| format!("{client} from {name}"))?;
            ensure!(got == *content, "{client} got other bytes from {name}");
            count += 1;
        }
    }
    let records =
        edged.access_log.wait_for_count(count, "all clients", |record| record["bytes_down"].is_u64())?;
    for record in records {
        let down = record["bytes_down"].as_u64().context("bytes_down")?;
        ensure!(down > CONTENT as u64, "too few bytes counted: {record}");
    }
    Ok(())
}

#[test]
fn every_tls_library_gets_every_byte() -> Result<()> {
    if require::all(CLIENTS) { case(every_client) } else { Ok(()) }
}

#[test]
fn every_tls_library_gets_every_byte_through_wireguard() -> Result<()> {
    if require::all(CLIENTS) { tunnel_case(every_client) } else { Ok(()) }
}

#[test]
fn a_browser_loads_a_page() -> Result<()> {
    if !require::all(&[Need::Program("chromium", "chromium"), Need::Program("certutil", "libnss3-tools")]) {
        return Ok(());
    }
    case(|lab| {
        let servers = servers(lab)?;
        let page = "<html><body><p id=p></p><script>fetch('/part').then(r => r.text()).then(t => \
                    document.getElementById('p').textContent = 'the part says ' + t)</script></body></html>";
        fs::write(servers.nginx.files.join("page.html"), page)?;
        fs::write(servers.nginx.files.join("part"), "hello")?;
        let edged = Edged::start(lab, &routes(lab))?;
        let fetch = Fetch {
            from: &lab.client,
            edge: lab.edge.at(443),
            name: "web.example",
            path: "/page.html",
            authority: &servers.authority,
        };
        let document = fetch.chromium()?;
        ensure!(document.contains("the part says hello"), "{document}");
        let record = edged.access_log.wait_for_host("web.example")?;
        ensure!(record["alpn"].as_array().is_some_and(|alpn| alpn.contains(&"h2".into())), "{record}");
        Ok(())
    })
}

#[test]
fn plain_http_goes_by_host() -> Result<()> {
    if !require::all(&[Need::Program("nginx", "nginx"), Need::Program("curl", "curl")]) {
        return Ok(());
    }
    case(|lab| {
        let one = Nginx::plain(&lab.home, lab.home_at(80))?;
        let two = Nginx::plain(&lab.home, lab.home_at(8080))?;
        fs::write(one.files.join("who"), "one")?;
        fs::write(two.files.join("who"), "two")?;
        let edged = Edged::start(
            lab,
            &format!(
                "[[route]]\nhost = \"one.example\"\nto = \"{home}\"\n\
                 [[route]]\nhost = \"*.two.example\"\nto = \"{home}:8080\"\n",
                home = lab.home_address()
            ),
        )?;
        for (host, who) in [
            ("one.example", "one"),
            ("ONE.example", "one"),
            ("one.example:80", "one"),
            ("a.two.example", "two"),
            ("a.b.two.example.", "two"),
        ] {
            for edge in [lab.edge.at(80), lab.edge.at_v6(80)] {
                let mut curl = Command::new("curl");
                curl.args(["-sSf", "-H", &format!("Host: {host}"), &format!("http://{edge}/who")]);
                let got = lab.client.text_of(curl)?;
                ensure!(got == who, "{host} by {edge} reached {got:?}");
            }
        }
        let record = edged.access_log.wait_for_host("a.b.two.example")?;
        ensure!(record["listener"] == "http" && record["route"] == "*.two.example", "{record}");
        Ok(())
    })
}

#[test]
fn ipv6_all_the_way() -> Result<()> {
    if !require::all(CLIENTS) {
        return Ok(());
    }
    case(|lab| {
        let authority = Authority::new(lab)?;
        let nginx = Nginx::tls(&lab.home, lab.home.at_v6(443), &authority.issue(lab, &["web.example"])?)?;
        let content = Pattern::new(3).bytes(CONTENT);
        fs::write(nginx.files.join("blob"), &content)?;
        let route = format!("[[route]]\nhost = \"web.example\"\nto = \"{}\"\n", lab.home.v6);
        let edged = Edged::start(lab, &route)?;
        let edge = lab.edge.at_v6(443);
        let fetch =
            Fetch { from: &lab.client, edge, name: "web.example", path: "/blob", authority: &authority };
        ensure!(fetch.curl(&[])? == content);
        ensure!(Fetch { edge: lab.edge.at(443), ..fetch }.curl(&[])? == content, "from IPv4 to IPv6");
        let client = format!("[{}]:", lab.client.v6);
        let record = edged.access_log.wait_for("the one over IPv6", |record| {
            record["client"].as_str().is_some_and(|address| address.starts_with(&client))
        })?;
        ensure!(record["backend"] == format!("[{}]:443", lab.home.v6), "{record}");
        Ok(())
    })
}
