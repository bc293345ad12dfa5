//! Against a name server in the same process.

use std::collections::HashMap;

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{Record, rdata},
};
use tokio::net::UdpSocket;

use super::*;

pub(in crate::pool) const IMPATIENT: Patience =
    Patience { server: Duration::from_millis(100), down: Duration::from_millis(100) };

pub(in crate::pool) type Zone = Arc<Mutex<HashMap<(String, RecordType), Option<Vec<RData>>>>>;

/// A name server: what the zone has, NXDOMAIN for the rest, and silence where it has `None`. TTL 60.
pub(in crate::pool) async fn server() -> (SocketAddr, Zone) {
    let zone = Zone::default();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let records = Arc::clone(&zone);
    tokio::spawn(async move {
        let mut buffer = [0; 1500];
        loop {
            let (len, from) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..len]).unwrap();
            let query = question.queries[0].clone();
            let key = (query.name().to_ascii(), query.query_type());
            let found = records.lock().unwrap().get(&key).cloned();
            let mut reply = question.into_response();
            match found {
                Some(None) => continue,
                Some(Some(found)) => {
                    let record = |data| Record::from_rdata(query.name().clone(), 60, data);
                    reply.add_answers(found.into_iter().map(record));
                }
                None => reply.metadata.response_code = ResponseCode::NXDomain,
            }
            socket.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
        }
    });
    (address, zone)
}

pub(in crate::pool) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn put(zone: &Zone, name: &str, kind: RecordType, records: Option<Vec<RData>>) {
    zone.lock().unwrap().insert((name.to_owned(), kind), records);
}

pub(in crate::pool) fn address(zone: &Zone, name: &str, text: &str) {
    let kind = if ip(text).is_ipv6() { RecordType::AAAA } else { RecordType::A };
    put(zone, name, kind, Some(vec![ip(text).into()]));
}

fn host(text: &str) -> HostName {
    text.parse().unwrap()
}

fn endpoints(found: &Found) -> Vec<(IpAddr, Option<u16>)> {
    found.endpoints.iter().map(|endpoint| (endpoint.ip, endpoint.port)).collect()
}

#[tokio::test]
async fn both_families_are_found_with_their_time_to_live() {
    let (server, zone) = server().await;
    address(&zone, "caddy.home.example.", "192.0.2.1");
    address(&zone, "caddy.home.example.", "2001:db8::1");
    let resolver = Resolver::new(&[server], [], None);
    let mut memory = Memory::default();
    let found = resolver.resolve(&host("caddy.home.example"), &mut memory).await.unwrap();
    assert_eq!(endpoints(&found), [(ip("2001:db8::1"), None), (ip("192.0.2.1"), None)]);
    let ttl = found.ttl.unwrap();
    assert!((Duration::from_secs(50)..=Duration::from_mins(1)).contains(&ttl), "{ttl:?}");
    let error = resolver.resolve(&host("other.home.example"), &mut Memory::default()).await.unwrap_err();
    assert_eq!(error, "the name has no address");
}

#[tokio::test]
async fn each_suffix_has_its_servers() {
    let (everything, zone) = server().await;
    address(&zone, "nas.tail.ts.net.", "192.0.2.99");
    address(&zone, "nas.parts.net.", "192.0.2.3");
    let (magic, zone) = server().await;
    address(&zone, "nas.tail.ts.net.", "192.0.2.2");
    let resolver = Resolver::new(&[everything], [(host("ts.net"), vec![magic])], None);
    for (name, expected) in [("nas.tail.ts.net", "192.0.2.2"), ("nas.parts.net", "192.0.2.3")] {
        let found = resolver.resolve(&host(name), &mut Memory::default()).await.unwrap();
        assert_eq!(endpoints(&found), [(ip(expected), None)], "{name}");
    }
}

#[tokio::test]
async fn a_search_domain_leads_to_the_servers_of_its_suffix() {
    let (everything, zone) = server().await;
    address(&zone, "nas.", "192.0.2.99");
    address(&zone, "nas.tail.ts.net.", "192.0.2.99");
    address(&zone, "nas.home.", "192.0.2.3");
    let (magic, tail) = server().await;
    address(&tail, "nas.tail.ts.net.", "192.0.2.2");
    address(&tail, "nas.home.tail.ts.net.", "192.0.2.99");
    let search = ["lan", "tail.ts.net"].map(host);
    let suffixes = [(host("ts.net"), vec![magic])];
    let resolver = Resolver::with_patience(&[everything], suffixes, Some(&search), IMPATIENT);
    let ask = async |name| {
        let found = resolver.resolve(&host(name), &mut Memory::default()).await;
        found.map(|found| endpoints(&found)[0].0.to_string())
    };
    assert_eq!(ask("nas").await.as_deref(), Ok("192.0.2.2"));
    assert_eq!(ask("nas.home").await.as_deref(), Ok("192.0.2.3"), "one with a dot is taken as it is first");
    address(&zone, "nas.lan.", "192.0.2.4");
    assert_eq!(ask("nas").await.as_deref(), Ok("192.0.2.4"), "the first domain goes first");
    for kind in [RecordType::A, RecordType::AAAA] {
        put(&zone, "nas.lan.", kind, None);
    }
    let error = ask("nas").await.unwrap_err();
    assert_eq!(error, "nas.lan: the name servers do not answer", "who is silent may still have it");
    let error = ask("other").await.unwrap_err();
    assert_eq!(error, "there is no address for other.lan, other.tail.ts.net, other");
}

#[tokio::test]
async fn the_system_has_hosts_and_domains_of_its_own() {
    let (server, zone) = server().await;
    address(&zone, "nas.lan.", "192.0.2.1");
    address(&zone, "caddy.lan.", "192.0.2.1");
    let mut hosts = Hosts::default();
    let (caddy, record) = (Name::from_ascii("caddy.").unwrap(), RData::from(ip("192.0.2.2")));
    let query = Query::query(caddy.clone(), RecordType::A);
    let found = Lookup::new_with_max_ttl(query, [Record::from_rdata(caddy.clone(), 60, record)]);
    hosts.insert(caddy, RecordType::A, found);
    let system = Arc::new(System {
        files: file_times(),
        client: given(&[server], IMPATIENT.server),
        search: Search::new(&[host("lan")]),
        hosts,
    });
    for (servers, search, expected) in [
        (&[][..], None, Ok("192.0.2.1")),
        (&[], Some(&[][..]), Err("the name has no address")),
        (&[server], None, Err("the name has no address")),
    ] {
        let resolver = Resolver::with_patience(servers, [], search, IMPATIENT);
        *resolver.system.lock().unwrap() = Arc::clone(&system);
        let found = resolver.resolve(&host("nas"), &mut Memory::default()).await;
        let found = found.map(|found| endpoints(&found)[0].0.to_string());
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{servers:?} {search:?}");
        let found = resolver.resolve(&host("caddy"), &mut Memory::default()).await.unwrap();
        assert_eq!(endpoints(&found), [(ip("192.0.2.2"), None)], "the hosts file goes first");
    }
}

#[tokio::test]
async fn a_name_that_is_gone_keeps_its_addresses_and_is_asked_for_again_soon() {
    let (server, zone) = server().await;
    address(&zone, "caddy.home.example.", "192.0.2.1");
    let resolver = Resolver::new(&[server], [], None);
    let mut memory = Memory::default();
    let name = host("caddy.home.example");
    resolver.resolve(&name, &mut memory).await.unwrap();
    zone.lock().unwrap().clear();
    let found = resolver.resolve(&name, &mut memory).await.unwrap();
    assert_eq!((endpoints(&found), found.ttl), (vec![(ip("192.0.2.1"), None)], None));
}

#[tokio::test]
async fn a_service_is_found_by_srv() {
    let (server, zone) = server().await;
    let srv = |priority, port, target: &str| {
        RData::SRV(rdata::SRV::new(priority, 1, port, Name::from_ascii(target).unwrap()))
    };
    let records = vec![srv(20, 9443, "mobile.example."), srv(10, 8443, "fibre.example.")];
    put(&zone, "_https._tcp.home.example.", RecordType::SRV, Some(records));
    address(&zone, "fibre.example.", "192.0.2.1");
    address(&zone, "mobile.example.", "192.0.2.2");
    let resolver = Resolver::new(&[server], [], Some(&[host("home.example")]));
    for name in ["_https._tcp.home.example", "_https._tcp"] {
        let found = resolver.resolve(&host(name), &mut Memory::default()).await.unwrap();
        assert_eq!(
            endpoints(&found),
            [(ip("192.0.2.1"), Some(8443)), (ip("192.0.2.2"), Some(9443))],
            "{name}"
        );
    }
}

#[tokio::test]
async fn an_unanswered_family_keeps_its_addresses() {
    let (server, zone) = server().await;
    address(&zone, "caddy.home.example.", "192.0.2.1");
    address(&zone, "caddy.home.example.", "2001:db8::1");
    let resolver = Resolver::with_patience(&[server], [], None, IMPATIENT);
    let mut memory = Memory::default();
    let name = host("caddy.home.example");
    resolver.resolve(&name, &mut memory).await.unwrap();
    put(&zone, "caddy.home.example.", RecordType::AAAA, None);
    address(&zone, "caddy.home.example.", "192.0.2.7");
    let found = resolver.resolve(&name, &mut memory).await.unwrap();
    assert_eq!(endpoints(&found), [(ip("2001:db8::1"), None), (ip("192.0.2.7"), None)]);
    assert_eq!(found.ttl, None, "ask again soon");
}

#[tokio::test]
async fn without_name_servers_there_is_a_reason() {
    let resolver = Resolver::with_patience(&["127.0.0.1:1".parse().unwrap()], [], None, IMPATIENT);
    let error = resolver.resolve(&host("caddy.home.example"), &mut Memory::default()).await.unwrap_err();
    assert!(!error.is_empty());
}
