//! The cost of finding a connection's destination: hellos and heads of real clients, whole and byte by byte.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use edge::{
    proxy_protocol::{ProxySource, Tlvs, write},
    sniff::{
        http::{RequestHeadReader, request_head},
        proxy_header::proxy_header,
        tls::{ClientHelloReader, client_hello},
    },
    spec::{ProxyProtocol, ProxyTlvs},
};

/// The default of `limits.hello_bytes`.
const MAX: usize = 16384;

const SMALL: &[u8] = include_bytes!("../tests/captures/openssl-tls12.bin");
const POST_QUANTUM: &[u8] = include_bytes!("../tests/captures/chromium.bin");
const HEAD: &[u8] = b"GET /apps/files/?dir=/ HTTP/1.1\r\n\
    Host: cloud.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.9\r\n\
    Accept-Encoding: gzip, deflate\r\n\
    Connection: keep-alive\r\n\
    Upgrade-Insecure-Requests: 1\r\n\r\n";

/// The message of a hello that came in one record, in records of one byte.
fn one_byte_records(wire: &[u8]) -> Vec<u8> {
    wire[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect()
}

fn length(bytes: &[u8]) -> Throughput {
    Throughput::Bytes(bytes.len() as u64)
}

fn hellos(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("client hello");
    let records = one_byte_records(POST_QUANTUM);
    for (what, wire) in [("small", SMALL), ("post-quantum", POST_QUANTUM), ("one-byte records", &records)] {
        group.throughput(length(wire));
        group.bench_function(what, |bencher| bencher.iter(|| client_hello(black_box(wire), MAX)));
        group.bench_function(format!("{what}, byte by byte"), |bencher| {
            bencher.iter(|| {
                let mut reader = ClientHelloReader::new(MAX);
                for end in 1..=wire.len() {
                    black_box(reader.read(black_box(&wire[..end])));
                }
            });
        });
    }
    group.finish();
}

fn heads(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("request head");
    group.throughput(length(HEAD));
    group.bench_function("browser", |bencher| bencher.iter(|| request_head(black_box(HEAD), MAX)));
    group.bench_function("browser, byte by byte", |bencher| {
        bencher.iter(|| {
            let mut reader = RequestHeadReader::new(MAX);
            for end in 1..=HEAD.len() {
                black_box(reader.read(black_box(&HEAD[..end])));
            }
        });
    });
    group.finish();
}

fn proxy_headers(bench: &mut Criterion) {
    let mut group = bench.benchmark_group("PROXY header");
    let source = ProxySource::Client {
        source: ([192, 0, 2, 1], 5000).into(),
        destination: ([203, 0, 113, 1], 443).into(),
    };
    let authority = "cloud.example.com".parse().ok();
    let alpn = [&b"h2"[..], b"http/1.1"].into_iter().collect();
    let tlvs = Tlvs {
        wanted: ProxyTlvs::ALL,
        authority: authority.as_ref(),
        alpn: Some(&alpn),
        unique_id: Some(b"0123456789abcdef"),
        ..Tlvs::default()
    };
    for (what, version) in [("version 1", ProxyProtocol::V1), ("version 2", ProxyProtocol::V2)] {
        let header = write(version, source, &tlvs).bytes;
        group.throughput(length(&header));
        group.bench_function(format!("write {what}"), |bencher| {
            bencher.iter(|| write(version, black_box(source), black_box(&tlvs)));
        });
        group.bench_function(format!("read {what}"), |bencher| {
            bencher.iter(|| proxy_header(black_box(&header)));
        });
    }
    group.finish();
}

criterion_group!(benches, hellos, heads, proxy_headers);
criterion_main!(benches);
