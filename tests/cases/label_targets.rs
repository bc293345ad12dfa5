//! `to = "{label}.home.arpa"`: a name for each of a route's clients, looked up when one comes.

use lab::{
    Edged, Result,
    dns::NameServer,
    ensure,
    hello::ClientHello,
    metrics::{ADMIN, Metrics},
    service,
    topology::EDGE_INSIDE,
    wait::{self, SOON},
};
use serde_json::Value;

use crate::{answer_to, case, greeting};

const TO: &str = "{label}.home.arpa:1001";

fn body(server: &NameServer, more: &str) -> String {
    format!(
        "[resolver]\nservers = [\"{}\"]\nsearch = [\"lan\"]\n\
         [[route]]\nhost = \"*.example.com\"\nto = \"{TO}\"\n{more}",
        server.address()
    )
}

#[test]
fn each_name_has_a_home_of_its_own() -> Result<()> {
    case(|lab| {
        let _services = [(lab.home_at(1001), "four"), (lab.home.at_v6(1001), "six")]
            .map(|(address, name)| service::named(&lab.home, address, name));
        let server = NameServer::start(&lab.edge, EDGE_INSIDE.into(), 60)?;
        server.set("four.home.arpa", &[lab.home.v4.into()]);
        server.set("six.home.arpa", &[lab.home.v6.into()]);
        server.set("a.deep.home.arpa", &[lab.home.v4.into()]);
        let edged = Edged::plan(lab, &body(&server, "proxy_protocol = \"off\"\n")).daemon(ADMIN).start()?;
        for (name, service) in
            [("four.example.com", "four"), ("six.example.com", "six"), ("a.deep.example.com", "four")]
        {
            let got = greeting(lab, name)?;
            ensure!(got == service, "{name} reached {got:?}");
            let record = edged.access_log.wait_for_host(name)?;
            let address = if service == "six" { lab.home.at_v6(1001) } else { lab.home_at(1001) };
            ensure!(
                record["backend"] == address.to_string() && record["route"] == "*.example.com",
                "{record}"
            );
        }
        let queries = server.queries();
        ensure!(greeting(lab, "four.example.com")? == "four");
        ensure!(server.queries() == queries, "known for its TTL");
        // One backend in lists and metrics, however many names there are.
        let backends = edged.edgectl().list("backends")?;
        ensure!(backends.len() == 1 && backends[0]["to"] == TO, "{backends:?}");
        ensure!(backends[0]["state"] == "up" && backends[0]["address"].is_null(), "{backends:?}");
        let series = format!("edge_backend_last_success_timestamp_seconds{{pool=\"{TO}\",backend=\"{TO}\"}}");
        ensure!(Metrics::read(&lab.edge)?.find(&series).is_some(), "{series}");
        // Its address is known while the name server is away, and a name that is none does not count against it.
        server.fail(true);
        ensure!(greeting(lab, "six.example.com")? == "six");
        Ok(())
    })
}

#[test]
fn names_that_clients_make_up_are_bounded() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(1001), "real")?;
        let server = NameServer::start(&lab.edge, EDGE_INSIDE.into(), 60)?;
        server.set("real.home.arpa", &[lab.home.v4.into()]);
        let edged = Edged::start(lab, &body(&server, ""))?;
        ensure!(greeting(lab, "real.example.com")? == "real");
        let before = server.queries();
        let hello = ClientHello::new("none.example.com").records();
        for _ in 0..20 {
            answer_to(lab, lab.edge.at(443), &hello)?;
        }
        // Both families, once: that there is no such name is remembered too, and no search domain is tried.
        ensure!(server.queries() == before + 2, "{} queries", server.queries() - before);
        let told = |record: &Value| {
            record["sni"] == "none.example.com"
                && record["close"] == "connect_failed"
                && record["backend"].is_null()
        };
        let records = edged.access_log.wait_for_count(20, "names that are none", told)?;
        let error = records[0]["error"].as_str().unwrap_or_default();
        ensure!(error.contains("there is no such name") && error.contains("none"), "{error}");
        ensure!(
            !edged.as_process().log().contains("no backend could be connected"),
            "one warning for each client"
        );
        for number in 0..200 {
            let hello = ClientHello::new(&format!("x{number}.example.com")).records();
            answer_to(lab, lab.edge.at(443), &hello)?;
        }
        ensure!(greeting(lab, "real.example.com")? == "real");
        let backends = edged.edgectl().list("backends")?;
        ensure!(backends.len() == 1 && backends[0]["state"] == "up", "{backends:?}");
        // A name that is added is there soon.
        server.set("none.home.arpa", &[lab.home.v4.into()]);
        wait::until_ok("the new name", SOON, || {
            ensure!(greeting(lab, "none.example.com")? == "real");
            Ok(())
        })
    })
}

#[test]
fn a_route_at_run_time_needs_a_suffix_and_a_wildcard() -> Result<()> {
    case(|lab| {
        let edged = Edged::start(lab, "")?;
        for (host, to, expected) in [
            ("*.example.com", "{label}", "could name any host"),
            ("*.example.com", "{name}.home.arpa", "expected one {label}"),
            ("a.example.com", "{label}.home.arpa", "has none"),
            ("*", "{label}.home.arpa", "has none"),
            (".example.com", "{label}.home.arpa", "has none"),
        ] {
            let complaint = edged.edgectl().refused(1, &["routes", "add", host, to])?;
            ensure!(complaint.contains(expected), "{host} to {to}: {complaint}");
        }
        edged.edgectl().text(&["routes", "add", "*.example.com", "{label}.home.arpa:443"])?;
        let test = edged.edgectl().json(&["routes", "test", "a.example.com"])?;
        ensure!(test["route"]["to"] == "{label}.home.arpa:443", "{test}");
        Ok(())
    })
}
