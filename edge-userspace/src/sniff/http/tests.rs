//! Heads made by hand, one property each.

use super::*;
use crate::spec::HostNameError;

const MAX: usize = 16384;

fn host_in(head: &str) -> Result<Option<String>, Rejection> {
    match request_head(head.as_bytes(), MAX) {
        Sniff::Complete(found) => {
            assert_eq!(found.head_len, head.len());
            Ok(found.host.map(|name| name.to_string()))
        }
        Sniff::Rejected(rejection) => Err(rejection),
        Sniff::Incomplete => panic!("incomplete: {head:?}"),
    }
}

#[track_caller]
fn found(head: &str, host: &str) {
    assert_eq!(host_in(head), Ok(Some(host.into())), "{head:?}");
}

#[track_caller]
fn nameless(head: &str) {
    assert_eq!(host_in(head), Ok(None), "{head:?}");
}

#[track_caller]
fn malformed(head: &str) {
    assert!(matches!(host_in(head), Err(Rejection::Malformed(_))), "{head:?}: {:?}", host_in(head));
}

#[test]
fn the_host_is_that_of_the_field() {
    found("GET / HTTP/1.1\r\nHost: Cloud.Example.COM\r\n\r\n", "cloud.example.com");
    found("GET / HTTP/1.1\r\nAccept: */*\r\nhOsT:\t a.example:8080 \t\r\nX: y\r\n\r\n", "a.example");
    found("GET / HTTP/1.0\r\nHost: a.example.\r\n\r\n", "a.example");
    found("OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
    found("GET //b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
    found("M-SEARCH /?u=http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
}

#[test]
fn no_usable_name() {
    nameless("GET / HTTP/1.0\r\n\r\n");
    nameless("GET / HTTP/1.1\r\nHost:\r\n\r\n");
    nameless("GET / HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n");
    nameless("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n");
    malformed("GET / HTTP/1.1\r\nAccept: */*\r\n\r\n");
    malformed("GET http://a.example/ HTTP/1.1\r\n\r\n");
}

#[test]
fn an_absolute_target_names_the_host() {
    found("GET http://A.example:80/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
    found("GET http://a.example HTTP/1.1\r\nHost: a.example:80\r\n\r\n", "a.example");
    found("GET HTTP://a.example?q HTTP/1.0\r\n\r\n", "a.example");
    found("GET ws+x://a.example#f HTTP/1.1\r\nHost:\r\n\r\n", "a.example");
    nameless("GET http://[2001:db8::1]/ HTTP/1.1\r\nHost: [2001:DB8::1]:80\r\n\r\n");
    malformed("GET http:/// HTTP/1.1\r\nHost: a.example\r\n\r\n");
    malformed("GET ://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n");
    malformed("GET 1http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n");
    malformed("GET a.example HTTP/1.1\r\nHost: a.example\r\n\r\n");
    malformed("GET * HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert_eq!(
        host_in("GET http://a.example@b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n"),
        Err(Rejection::BadName(HostNameError::Character(b'@')))
    );
}

#[test]
fn other_versions_go_by_the_host_that_they_name() {
    found("SOURCE /radio ICE/1.0\r\nHost: a.example\r\n\r\n", "a.example");
    found("DESCRIBE rtsp://a.example:554/1 RTSP/1.0\r\nCSeq: 1\r\n\r\n", "a.example");
    found("GET / HTTP/2.0\r\nHost: a.example\r\n\r\n", "a.example");
    found("\r\nGET / HTTP/1.2\nHost: a.example\n\n", "a.example");
    found("GET / X/1.0\r\nHost: a.example\r\n\r\n", "a.example");
    nameless("OPTIONS * RTSP/1.0\r\nHost: 192.0.2.1\r\n\r\n");
    malformed("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n");
    malformed("SOURCE /radio ICE/1.0\r\nHost : a.example\r\n\r\n");
    malformed("SOURCE /radio ICE/1.0\r\nHost: a.example\r\n folded\r\n\r\n");
    for head in [
        "SOURCE /radio ICE/1.0\r\nHost: a.example\r\nHost: a.example\r\n\r\n",
        "PLAY rtsp://a.example/1 RTSP/1.0\r\nHost: b.example\r\n\r\n",
    ] {
        assert_eq!(host_in(head), Err(Rejection::TwoHosts), "{head:?}");
    }
}

#[test]
fn connect_names_its_host_too() {
    found("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
    found("CONNECT a.example:443 HTTP/1.0\r\n\r\n", "a.example");
    assert_eq!(
        host_in("CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n"),
        Err(Rejection::TwoHosts)
    );
    assert!(host_in("CONNECT /x HTTP/1.1\r\nHost: a.example\r\n\r\n").is_err());
}

#[test]
fn two_hosts_are_refused() {
    for head in [
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nX: y\r\nHOST: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost:\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n",
        "GET http://192.0.2.1/ HTTP/1.1\r\nHost: 192.0.2.2\r\n\r\n",
        // A line that ends with LF alone is a line.
        "GET / HTTP/1.1\r\nX: y\nHost: a.example\r\nHost: b.example\r\n\r\n",
    ] {
        assert_eq!(host_in(head), Err(Rejection::TwoHosts), "{head:?}");
    }
}

#[test]
fn what_another_parser_may_read_differently_is_refused() {
    for head in [
        "GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\rHost: b.example\r\nHost: a.example\r\n\r\n",
        "GET / HTTP/1.1\r\nX: \0\r\nHost: a.example\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET / x HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET /\r\n",
        "\rGET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
    ] {
        malformed(head);
    }
    assert_eq!(
        host_in("GET / HTTP/1.1\r\nHost: a.example, b.example\r\n\r\n"),
        Err(Rejection::BadName(HostNameError::Character(b',')))
    );
}

#[test]
fn line_ends_and_empty_lines_as_rfc_9112_has_them() {
    found("\r\n\r\nGET / HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example");
    found("\nGET / HTTP/1.1\nHost: a.example\n\n", "a.example");
    found("GET / HTTP/1.1\nHost: a.example\n\r\n", "a.example");
    let Sniff::Complete(head) = request_head(b"GET / HTTP/1.0\r\n\r\nHost: b.example\r\n\r\n", MAX) else {
        panic!()
    };
    assert_eq!((head.host, head.head_len), (None, 18));
}

#[test]
fn each_answer_is_the_same_in_pieces_and_comes_at_its_last_byte() {
    for head in [
        "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "\r\n\nPOST http://a.example:80/ HTTP/1.1\nhost: a.example\nContent-Length: 3\n\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
    ] {
        let mut reader = RequestHeadReader::new(MAX);
        for end in 0..head.len() {
            assert_eq!(reader.read(&head.as_bytes()[..end]), Sniff::Incomplete);
            assert_eq!(request_head(&head.as_bytes()[..end], MAX), Sniff::Incomplete);
        }
        let whole = reader.read(head.as_bytes());
        assert_ne!(whole, Sniff::Incomplete);
        assert_eq!(request_head(head.as_bytes(), MAX), whole);
        assert_eq!(request_head(&[head.as_bytes(), b"abc\r\n\r\n"].concat(), MAX), whole);
    }
}

#[test]
fn other_protocols_are_told_early() {
    for (bytes, rejection, at) in [
        (&b"\x16\x03\x01\x02\x00\x01"[..], Rejection::TlsOnHttp, 2),
        (b"\x16\x01", Rejection::UnknownProtocol, 2),
        (b"\0\0\0\x08", Rejection::UnknownProtocol, 1),
        (b" GET / HTTP/1.1", Rejection::UnknownProtocol, 1),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Rejection::Http2Preface, 14),
        (b"SSH-2.0-x\r\n", Rejection::Malformed("a bad character in the request line"), 11),
        (b"EHLO a.example\r\n", Rejection::Malformed("a bad character in the request line"), 16),
    ] {
        let mut reader = RequestHeadReader::new(MAX);
        for end in 0..at {
            assert_eq!(reader.read(&bytes[..end]), Sniff::Incomplete, "{}", bytes.escape_ascii());
        }
        let answer = Sniff::Rejected(rejection);
        assert_eq!(reader.read(&bytes[..at]), answer, "{}", bytes.escape_ascii());
        assert_eq!(request_head(bytes, MAX), answer);
    }
}

#[test]
fn heads_are_bounded() {
    let head = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
    let with_body = format!("{head}{}", "x".repeat(MAX));
    assert!(matches!(request_head(with_body.as_bytes(), head.len()), Sniff::Complete(_)));
    for end in head.len() - 1..with_body.len() {
        let answer = request_head(&with_body.as_bytes()[..end], head.len() - 1);
        assert_eq!(answer, Sniff::Rejected(Rejection::TooLarge));
    }
    assert_eq!(request_head(&b"\r\n".repeat(MAX), MAX), Sniff::Rejected(Rejection::TooLarge));
    for version in ["HTTP/1.1", "ICE/1.0"] {
        let head = |count| format!("GET / {version}\r\nHost: a.example\r\n{}\r\n", "a:\n".repeat(count));
        for count in [USUAL_FIELDS - 1, USUAL_FIELDS, 200, MAX_FIELDS - 1] {
            found(&head(count), "a.example");
        }
        assert_eq!(host_in(&head(MAX_FIELDS)), Err(Rejection::TooManyFields));
    }
}

/// A head that began to be read anew with each byte or line would take minutes here.
#[test]
fn the_largest_head_in_drips_costs_linear_time() {
    let limit = 65536;
    let field = [&b"a:"[..], &[b'b'; 40], b"\n"].concat();
    for head in [b"\n".repeat(limit), [&b"GET / HTTP/1.1\r\n"[..], &field.repeat(limit / 43)].concat()] {
        let mut reader = RequestHeadReader::new(limit);
        for end in 0..limit {
            assert_eq!(reader.read(&head[..end]), Sniff::Incomplete);
        }
        assert_eq!(reader.read(&head), Sniff::Rejected(Rejection::TooLarge));
    }
}
