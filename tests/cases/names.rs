//! Which name goes where, and backends that are names themselves.

use std::net::Ipv4Addr;

use lab::{
    Edged, Lab, Result,
    dns::NameServer,
    ensure,
    hello::ClientHello,
    service,
    topology::EDGE_INSIDE,
    wait::{self, SOON},
};

use crate::{answer_to, case, greeting};

#[test]
fn the_closest_name_wins() -> Result<()> {
    case(|lab| {
        let _services = [(1001, "exact"), (1002, "wild"), (1003, "deep"), (1004, "any")]
            .map(|(port, name)| service::named(&lab.home, lab.home_at(port), name));
        let route =
            |host: &str, port: u16| format!("[[route]]\nhost = \"{host}\"\nto = \"{}\"\n", lab.home_at(port));
        let _edged = Edged::start(
            lab,
            &[
                route("*", 1004),
                route("*.example.com", 1002),
                route("*.deep.example.com", 1003),
                route("cloud.example.com", 1001),
                route("bücher.example", 1001),
            ]
            .concat(),
        )?;
        for (name, service) in [
            ("cloud.example.com", "exact"),
            ("CLOUD.Example.COM", "exact"),
            ("cloud.example.com.", "exact"),
            ("other.example.com", "wild"),
            ("a.b.c.example.com", "wild"),
            ("x.cloud.example.com", "wild"),
            ("example.com", "any"),
            ("notexample.com", "any"),
            ("x.deep.example.com", "deep"),
            ("deep.example.com", "wild"),
            ("_dmarc.example.com", "wild"),
            ("xn--bcher-kva.example", "exact"),
        ] {
            let got = greeting(lab, name)?;
            ensure!(got == service, "{name} reached {got:?}, not {service}");
        }
        Ok(())
    })
}

#[test]
fn alpn_and_source_choose_among_routes_of_a_name() -> Result<()> {
    case(|lab| {
        let _services = [(1001, "plain"), (1002, "acme"), (1003, "near"), (1004, "v6")]
            .map(|(port, name)| service::named(&lab.home, lab.home_at(port), name));
        let route = |port: u16, conditions: &str| {
            format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n{conditions}\n", lab.home_at(port))
        };
        let edged = Edged::start(
            lab,
            &[
                route(1001, ""),
                route(1002, "alpn = [\"acme-tls/1\"]"),
                route(1003, "from = [\"198.18.1.3/32\"]"),
                route(1004, "from = [\"fd18:1::/32\"]"),
            ]
            .concat(),
        )?;
        let plain = ClientHello::new("a.example").alpn(&["h2", "http/1.1"]).records();
        let acme = ClientHello::new("a.example").alpn(&["acme-tls/1"]).records();
        ensure!(answer_to(lab, lab.edge.at(443), &plain)? == "plain");
        ensure!(answer_to(lab, lab.edge.at(443), &acme)? == "acme");
        ensure!(answer_to(lab, lab.edge.at_v6(443), &plain)? == "v6");
        let mut stream = lab.client.connect_from(lab::topology::CLIENT_SECOND.into(), lab.edge.at(443))?;
        std::io::Write::write_all(&mut stream, &plain)?;
        crate::expect(&mut stream, "near")?;
        let record = edged.access_log.wait_for("acme", |record| record["alpn"][0] == "acme-tls/1")?;
        ensure!(record["ech"] == false, "{record}");
        Ok(())
    })
}

fn named_backend(lab: &Lab, server: &NameServer) -> String {
    format!(
        "[resolver]\nservers = [\"{}\"]\n[[pool]]\nname = \"p\"\nhealth = {{ kind = \"off\" }}\n\
         [[pool.backend]]\nto = \"nas.lab.test\"\n[[route]]\nhost = \"*\"\nto = \"p\"\n\
         [[route]]\nhost = \"fixed.example\"\nto = \"{}\"\n",
        server.address(),
        lab.home_at(443)
    )
}

#[test]
fn a_backend_may_be_a_name() -> Result<()> {
    case(|lab| {
        let _old = service::named(&lab.home, lab.home_at(443), "old")?;
        lab.home.ip(&["address", "add", "198.18.2.9/24", "dev", "eth0"])?;
        let _new = service::named(&lab.home, "198.18.2.9:443".parse()?, "new")?;
        let server = NameServer::start(&lab.edge, EDGE_INSIDE.into(), 1)?;
        // Not resolvable at start: a warning, not an exit.
        let _edged = Edged::start(lab, &named_backend(lab, &server))?;
        ensure!(greeting(lab, "fixed.example")? == "old");
        server.set("nas.lab.test", &[lab.home.v4.into()]);
        let reaches = |service: &str| {
            wait::until_true(&format!("the name to lead to {service}"), SOON, || {
                greeting(lab, "a.example").is_ok_and(|got| got == service)
            })
        };
        reaches("old")?;
        server.set("nas.lab.test", &["198.18.2.9".parse()?]);
        reaches("new")?;
        // While resolution fails, the last good address is kept.
        server.fail(true);
        let asked = server.queries();
        wait::until_true("the name to be asked for again", SOON, || server.queries() >= asked + 3)?;
        ensure!(greeting(lab, "a.example")? == "new", "the last good address was lost");
        Ok(())
    })
}

#[test]
fn a_search_domain_completes_a_name_and_its_suffix_says_who_is_asked() -> Result<()> {
    case(|lab| {
        let hosts = [8, 9, 10].map(|last| Ipv4Addr::new(198, 18, 2, last));
        let mut services = Vec::new();
        for (host, name) in hosts.iter().zip(["tailnet", "nearer", "wrong"]) {
            lab.home.ip(&["address", "add", &format!("{host}/24"), "dev", "eth0"])?;
            services.push(service::named(&lab.home, (*host, 443).into(), name)?);
        }
        let [tailnet, nearer, wrong] = hosts.map(|host| [host.into()]);
        let server = NameServer::start(&lab.edge, EDGE_INSIDE.into(), 1)?;
        let magic = NameServer::start(&lab.edge, Ipv4Addr::LOCALHOST.into(), 1)?;
        // Neither the name as it is counts nor what others say about the suffix.
        server.set("nas", &wrong);
        server.set("nas.tail.test", &wrong);
        magic.set("nas.tail.test", &tailnet);
        let resolver = format!(
            "[resolver]\nsearch = [\"near.test\", \"tail.test\"]\nsuffixes = {{ \"tail.test\" = [\"{}\"] }}\n",
            magic.address()
        );
        let body =
            named_backend(lab, &server).replace("[resolver]\n", &resolver).replace("nas.lab.test", "nas:443");
        let edged = Edged::start(lab, &body)?;
        let reaches = |service: &str| {
            wait::until_true(&format!("the name to lead to {service}"), SOON, || {
                greeting(lab, "a.example").is_ok_and(|got| got == service)
            })
        };
        reaches("tailnet")?;
        let listed = edged.edgectl().list("backends")?;
        ensure!(
            listed.iter().any(|backend| backend["to"] == "nas:443" && backend["state"] == "up"),
            "{listed:?}"
        );
        // A server that fails does not say that there is no such name.
        magic.fail(true);
        let asked = server.queries();
        wait::until_true("some more rounds of questions", SOON, || server.queries() >= asked + 6)?;
        ensure!(greeting(lab, "a.example")? == "tailnet", "a failing name server led elsewhere");
        magic.fail(false);
        server.set("nas.near.test", &nearer);
        reaches("nearer")?;
        Ok(())
    })
}

#[test]
fn a_dead_name_server_costs_nobody_the_way() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let server = NameServer::start(&lab.edge, EDGE_INSIDE.into(), 1)?;
        server.set("nas.lab.test", &[lab.home.v4.into()]);
        let edged = Edged::start(lab, &named_backend(lab, &server))?;
        let resolved = || {
            let list = edged.edgectl().list("backends").unwrap_or_default();
            list.iter().any(|backend| backend["to"] == "nas.lab.test" && backend["state"] != "down")
        };
        wait::until_true("the name to resolve", SOON, resolved)?;
        drop(server);
        // Longer than the TTL of a second and a question that nobody answers.
        let since = std::time::Instant::now();
        wait::until_true("the TTL to end", SOON, || since.elapsed() > std::time::Duration::from_secs(3))?;
        ensure!(greeting(lab, "a.example")? == "reached", "the last good address was lost");
        ensure!(resolved(), "down without a name server");
        Ok(())
    })
}

#[test]
fn a_service_is_found_with_its_port_and_its_second_target() -> Result<()> {
    case(|lab| {
        let first = service::named(&lab.home, lab.home_at(1001), "first")?;
        let _second = service::named(&lab.home, lab.home_at(1002), "second")?;
        let server = NameServer::start(&lab.edge, EDGE_INSIDE.into(), 60)?;
        server.set_service("_https._tcp.lab.test", &[(20, 1002, "b.lab.test"), (10, 1001, "a.lab.test")]);
        server.set("a.lab.test", &[lab.home.v4.into()]);
        server.set("b.lab.test", &[lab.home.v4.into()]);
        let body = named_backend(lab, &server).replace("nas.lab.test", "_https._tcp.lab.test");
        let _edged = Edged::start(lab, &body)?;
        wait::until_true("the service to be found", SOON, || {
            greeting(lab, "a.example").is_ok_and(|got| got == "first")
        })?;
        drop(first);
        ensure!(greeting(lab, "a.example")? == "second", "the next target is tried at once");
        Ok(())
    })
}

#[test]
fn an_address_family_that_leads_nowhere_costs_one_client_a_moment() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "reached")?;
        let server = NameServer::start(&lab.edge, EDGE_INSIDE.into(), 60)?;
        // On the link, but nobody has it: nothing refuses, and packets to it leave.
        let nobody = ["lladdr", "02:00:00:00:de:ad", "dev", "back", "nud", "permanent"];
        lab.edge.ip(&[&["-6", "neigh", "add", "fd18:2::dead"], &nobody[..]].concat())?;
        server.set("nas.lab.test", &["fd18:2::dead".parse()?, lab.home.v4.into()]);
        let body = named_backend(lab, &server).replace("health = {", "connect_timeout = \"25s\"\nhealth = {");
        let edged = Edged::start(lab, &body)?;
        wait::until_true("the name to resolve", SOON, || {
            let list = edged.edgectl().list("backends").unwrap_or_default();
            list.iter().any(|backend| backend["to"] == "nas.lab.test" && backend["state"] != "down")
        })?;
        let took = |id: &str| -> Result<f64> {
            let name = format!("{id}.example");
            ensure!(greeting(lab, &name)? == "reached");
            let record = edged.access_log.wait_for_host(&name)?;
            record["connect_ms"].as_f64().ok_or_else(|| lab::Error::msg(format!("{record}")))
        };
        // The head start of the first family (RFC 8305), and then the other; who answered goes first next time.
        let first = took("first")?;
        ensure!((240.0..10_000.0).contains(&first), "the first took {first} ms");
        // One of some, since a machine that is busy makes one or another wait as well.
        let mut later =
            ["second", "third", "fourth", "fifth"].map(took).into_iter().collect::<Result<Vec<_>>>()?;
        later.sort_by(f64::total_cmp);
        ensure!(later[0] < 200.0, "the later ones took {later:?} ms");
        Ok(())
    })
}

#[test]
fn a_list_of_addresses_is_a_pool() -> Result<()> {
    case(|lab| {
        let one = service::named(&lab.home, lab.home_at(1001), "one")?;
        let two = service::named(&lab.home, lab.home_at(1002), "two")?;
        let route =
            format!("[[route]]\nhost = \"*\"\nto = [\"{}\", \"{}\"]\n", lab.home_at(1001), lab.home_at(1002));
        let _edged = Edged::start(lab, &route)?;
        for _ in 0..20 {
            greeting(lab, "a.example")?;
        }
        let (first, second) = (one.accepted(), two.accepted());
        ensure!(first >= 5 && second >= 5, "{first} and {second} of 20");
        drop(two);
        for _ in 0..20 {
            ensure!(greeting(lab, "a.example")? == "one", "the backend that is left must take over");
        }
        Ok(())
    })
}
