//! 100,000 routes: how long it takes to read them, to build the table, and to find one.

use std::{hint::black_box, net::IpAddr};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use edge::{
    config::Settings,
    route::{Query, Rule, Table},
    spec::{AlpnList, ClientProtocol, Conditions, HostName},
};

const ROUTES: usize = 100_000;

fn rules() -> Vec<Rule<usize>> {
    let host = |nth: usize| match nth % 10 {
        0 => format!("*.zone{nth}.example.net"),
        _ => format!("host{nth}.zone{}.example.com", nth / 100),
    };
    (0..ROUTES)
        .filter_map(|nth| {
            let host = host(nth).parse().ok()?;
            let conditions = Conditions::of(host);
            Some(Rule { conditions, target: nth })
        })
        .collect()
}

/// A configuration with the same routes.
fn file(rules: &[Rule<usize>]) -> String {
    let route =
        |rule: &Rule<_>| format!("[[route]]\nhost = \"{}\"\nto = \"100.64.0.2\"\n\n", rule.conditions.host);
    rules.iter().map(route).collect()
}

fn route(bench: &mut Criterion) {
    let rules = rules();
    assert_eq!(rules.len(), ROUTES);
    let table = Table::new(rules.clone());
    let alpn: AlpnList = [&b"h2"[..], b"http/1.1"].into_iter().collect();
    let source = IpAddr::from([192, 0, 2, 1]);
    let mut group = bench.benchmark_group("route");
    group.bench_function("build 100,000", |bencher| {
        bencher.iter_batched(|| rules.clone(), Table::new, BatchSize::LargeInput);
    });
    let text = file(&rules);
    group.bench_function("read the configuration of 100,000", |bencher| {
        bencher.iter(|| Settings::parse("edge.toml", &text).map(|settings| settings.routes.len()));
    });
    for (what, name) in [
        ("exact", "host%.zone@.example.com"),
        ("suffix", "a.b.zone%.example.net"),
        ("none", "host%.zone@.example.org"),
        ("none, 100 labels", "a.%"),
    ] {
        // A different name each time, so that the memory of the last look-up does not help.
        let names: Vec<HostName> = (0..ROUTES)
            .step_by(7)
            .map(|nth| nth - nth % 10 + usize::from(what == "exact"))
            .filter_map(|nth| {
                let tail = if what.ends_with("labels") { vec!["b"; 98].join(".") } else { nth.to_string() };
                name.replace('%', &tail).replace('@', &(nth / 100).to_string()).parse().ok()
            })
            .collect();
        let query =
            |host| Query { host, protocol: ClientProtocol::Tls, alpn: &alpn, source, listener: "https" };
        let found = names.iter().filter(|name| table.find(&query(Some(*name))).is_some()).count();
        assert_eq!(found, if what.starts_with("none") { 0 } else { names.len() });
        let mut turn = names.iter().cycle();
        group.bench_function(format!("find {what}"), |bencher| {
            bencher.iter(|| table.find(black_box(&query(turn.next()))).map(|rule| rule.target));
        });
    }
    group.finish();
}

criterion_group!(benches, route);
criterion_main!(benches);
