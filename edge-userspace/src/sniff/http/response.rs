//! The edge's own complete HTTP answers: for a client that it refuses, and for a backend that it cannot
//! reach.
//!
//! They are fixed bytes, so that even many answers need neither memory nor time.

use crate::sniff::Rejection;

macro_rules! answer {
    ($status:literal, $length:literal, $text:literal) => {
        concat!(
            "HTTP/1.1 ",
            $status,
            "\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ",
            $length,
            "\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
            $text
        )
        .as_bytes()
    };
}

/// A server's connection preface and a GOAWAY with `HTTP_1_1_REQUIRED` (RFC 9113 §3.4, §6.8), for a client
/// that starts HTTP/2 without negotiation.
const HTTP_1_1_REQUIRED: &[u8] = b"\0\0\0\x04\0\0\0\0\0\
    \0\0\x08\x07\0\0\0\0\0\
    \0\0\0\0\0\0\0\x0d";

/// The complete answer for a status: 400, 404, 408, 431, 502, 503 or 505. For any other status it is that of
/// 500.
///
/// Each contains `Connection: close` and the reason in plain text.
pub fn response(status: u16) -> &'static [u8] {
    match status {
        400 => answer!("400 Bad Request", "47", "400: the request is malformed, or its host is.\n"),
        404 => answer!("404 Not Found", "38", "404: there is no route for this host.\n"),
        408 => answer!("408 Request Timeout", "37", "408: the request head took too long.\n"),
        431 => answer!("431 Request Header Fields Too Large", "36", "431: the request head is too large.\n"),
        502 => answer!("502 Bad Gateway", "48", "502: the service behind here cannot be reached.\n"),
        503 => answer!("503 Service Unavailable", "37", "503: there are too many connections.\n"),
        505 => answer!("505 HTTP Version Not Supported", "33", "505: only HTTP/1 is spoken here.\n"),
        _ => answer!("500 Internal Server Error", "23", "500: an internal fault\n"),
    }
}

/// The answer that sends a client to this address, which is visible ASCII. It has no body, so that it fits a HEAD too.
pub fn redirection(location: &str) -> String {
    format!(
        "HTTP/1.1 308 Permanent Redirect\r\nLocation: {location}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

/// The status of an answer, where it is one of HTTP/1.1.
pub fn status_of(answer: &[u8]) -> Option<&str> {
    std::str::from_utf8(answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()
}

impl Rejection {
    fn http_status(&self) -> Option<u16> {
        match self {
            Self::HttpOnTls | Self::Malformed(_) | Self::BadName(_) | Self::TwoHosts => Some(400),
            Self::TooLarge | Self::TooManyFields => Some(431),
            Self::Http2Preface => Some(505),
            Self::TlsOnHttp
            | Self::UnknownProtocol
            | Self::UnexpectedMessage
            | Self::TooManyRecords
            | Self::PostgresWithoutTls
            | Self::ProxyHeader(_) => None,
        }
    }

    /// The answer that explains to an HTTP client why it is refused; `None` if the peer does not speak HTTP.
    ///
    /// For all clients except TLS ones, this answer is the first choice, then [`Rejection::alert`], then a
    /// reset.
    pub fn http_answer(&self) -> Option<&'static [u8]> {
        match self {
            Self::Http2Preface => Some(HTTP_1_1_REQUIRED),
            // Most often someone who left out the "s": say it.
            Self::HttpOnTls => Some(answer!(
                "400 Bad Request",
                "57",
                "400: this port speaks TLS. Begin the address by https://\n"
            )),
            _ => self.http_status().map(response),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_complete_and_true_to_their_length() {
        for (status, answer) in [400, 404, 408, 431, 500, 502, 503, 505]
            .map(|status| (status, response(status)))
            .into_iter()
            .chain([(400, Rejection::HttpOnTls.http_answer().unwrap())])
        {
            let mut fields = [httparse::EMPTY_HEADER; 8];
            let mut parsed = httparse::Response::new(&mut fields);
            let head = parsed.parse(answer).unwrap().unwrap();
            assert_eq!(parsed.code, Some(status));
            let field = |name| parsed.headers.iter().find(|field| field.name == name).unwrap().value;
            assert_eq!(field("Connection"), b"close");
            assert_eq!(field("Content-Length"), (answer.len() - head).to_string().as_bytes(), "{status}");
            assert!(answer[head..].starts_with(status.to_string().as_bytes()));
        }
        assert_eq!(response(999), response(500));
    }

    #[test]
    fn a_redirection_is_a_whole_answer() {
        let answer = redirection("https://a.example/");
        let mut fields = [httparse::EMPTY_HEADER; 8];
        let mut parsed = httparse::Response::new(&mut fields);
        assert_eq!(parsed.parse(answer.as_bytes()).unwrap().unwrap(), answer.len());
        assert_eq!(parsed.code, Some(308));
        assert_eq!(parsed.headers[0].value, b"https://a.example/");
    }

    #[test]
    fn who_does_not_speak_http_gets_no_answer() {
        assert_eq!(Rejection::TlsOnHttp.http_answer(), None);
        assert_eq!(Rejection::UnknownProtocol.http_answer(), None);
        assert_eq!(Rejection::TooLarge.http_answer(), Some(response(431)));
    }

    #[test]
    fn the_answer_to_http2_is_two_whole_frames() {
        let (settings, goaway) = HTTP_1_1_REQUIRED.split_at(9);
        assert_eq!(settings, [0, 0, 0, 4, 0, 0, 0, 0, 0]);
        assert_eq!((goaway[2], goaway[3]), (8, 7));
        assert_eq!(goaway.len(), 9 + 8);
        assert_eq!(goaway.last(), Some(&0xd));
    }
}
