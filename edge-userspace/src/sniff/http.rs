//! The host of a connection's first HTTP/1 request (RFC 9112 §3.2).
//!
//! `httparse` reads only that one head, and only its host is used: later requests of the connection follow
//! the first. A head that could lead us and the backend to different hosts is refused. The backend judges
//! everything else, and the bytes are forwarded unchanged.

use crate::spec::HostName;

use super::{Rejection, Sniff};

mod authority;
mod opening;
mod redirect;
mod request_line;
pub mod response;

use authority::Authority;
pub use opening::MAX_OPENING;
pub(super) use opening::opening;
pub use redirect::to_https;
use request_line::RequestLine;
pub use response::{redirection, response, status_of};

/// The most fields that are taken: as many as Node's servers do.
const MAX_FIELDS: usize = 2048;
/// Fields for which there is room on the stack: more than almost any client sends.
const USUAL_FIELDS: usize = 128;
/// The start of the HTTP/2 connection preface (RFC 9113 §3.4); no HTTP/1 request begins so.
pub(super) const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

/// The parts of a request head that routing uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// The host asked for, without its port; `None` without one, and for an IP literal.
    pub host: Option<HostName>,
    /// The bytes up to the end of the head, empty lines before and after it included.
    pub head_len: usize,
}

/// Reads a request head from bytes that arrive in pieces.
///
/// It keeps its position: all calls together look at each byte a constant number of times, and copy none.
#[derive(Debug)]
pub struct RequestHeadReader {
    max_head: usize,
    /// How many bytes have been searched for the end of a line.
    searched: usize,
    /// Where the line begins that is not yet complete.
    line: usize,
    /// Whether the request line is complete and well-formed.
    has_request_line: bool,
    /// The complete lines behind it.
    fields: usize,
}

impl RequestHeadReader {
    /// `max_head`: the largest head taken, in bytes.
    pub fn new(max_head: usize) -> Self {
        Self { max_head, searched: 0, line: 0, has_request_line: false, fields: 0 }
    }

    /// Examines the bytes received so far. `received` holds all bytes from the connection's first one on, at
    /// least those of the previous call. After a result other than [`Sniff::Incomplete`] the reader is reset.
    pub fn read(&mut self, received: &[u8]) -> Sniff<RequestHead> {
        let head = self
            .advance(received)
            .and_then(|head| head.map(|(end, fields)| head_of(&received[..end], fields)).transpose());
        let answer = head.into();
        if answer != Sniff::Incomplete {
            *self = Self::new(self.max_head);
        }
        answer
    }

    /// Looks for the end of the head, which the bytes reach up to, and counts the lines behind the request line.
    fn advance(&mut self, received: &[u8]) -> Result<Option<(usize, usize)>, Rejection> {
        let received = &received[..received.len().min(self.max_head)];
        while let Some(length) =
            received.get(self.searched..).and_then(|new| new.iter().position(|&byte| byte == b'\n'))
        {
            let end = self.searched + length + 1;
            let is_empty = matches!(&received[self.line..end], b"\n" | b"\r\n");
            if self.has_request_line && is_empty {
                return Ok(Some((end, self.fields)));
            }
            if self.has_request_line {
                self.fields += 1;
                if self.fields > MAX_FIELDS {
                    return Err(Rejection::TooManyFields);
                }
            }
            if !is_empty && !self.has_request_line {
                judge_opening(&received[self.line..end])?;
                judge_request_line(&received[self.line..end])?;
                self.has_request_line = true;
            }
            // Empty lines before the request are passed over (RFC 9112 §2.2).
            self.line = end;
            self.searched = end;
        }
        if !self.has_request_line {
            judge_opening(received.get(self.line..).unwrap_or_default())?;
        }
        self.searched = self.searched.max(received.len());
        if received.len() == self.max_head { Err(Rejection::TooLarge) } else { Ok(None) }
    }
}

/// Recognises, from its first bytes, a line that cannot become a request line. A client of another protocol
/// would otherwise wait for an answer instead of sending an empty line.
fn judge_opening(line: &[u8]) -> Result<(), Rejection> {
    match *line {
        [22, 3, ..] => Err(Rejection::TlsOnHttp),
        [] | [22] => Ok(()),
        [first, ..] if first == b'\r' || is_token_byte(first) => {
            if line.starts_with(HTTP2_PREFACE) {
                return Err(Rejection::Http2Preface);
            }
            Ok(())
        }
        _ => Err(Rejection::UnknownProtocol),
    }
}

/// A byte of a token, such as a method (RFC 9110 §5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn judge_request_line(line: &[u8]) -> Result<(), Rejection> {
    match httparse::Request::new(&mut []).parse(line) {
        Ok(_) => Ok(()),
        Err(httparse::Error::Version) if RequestLine::of_another_version(line).is_some() => Ok(()),
        Err(error) => Err(malformed(error)),
    }
}

/// A request, as far as anything here needs it.
struct Request<'head> {
    method: &'head str,
    target: &'head str,
    /// Of the target and of the Host field, which agree.
    authority: Authority,
}

fn head_of(head: &[u8], fields: usize) -> Result<RequestHead, Rejection> {
    let host = read_request(head, fields)?.authority.into_name();
    Ok(RequestHead { host, head_len: head.len() })
}

/// Parses a complete head, which ends with the last byte and has this many lines behind the request line.
fn read_request(head: &[u8], fields: usize) -> Result<Request<'_>, Rejection> {
    if fields <= USUAL_FIELDS {
        request_in(head, &mut [httparse::EMPTY_HEADER; USUAL_FIELDS])
    } else {
        request_in(head, &mut vec![httparse::EMPTY_HEADER; fields])
    }
}

fn request_in<'head>(
    head: &'head [u8],
    fields: &mut [httparse::Header<'head>],
) -> Result<Request<'head>, Rejection> {
    const AMBIGUOUS: Rejection = Rejection::Malformed("the end of the head is ambiguous");
    let mut request = httparse::Request::new(fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {
            let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
            let no_host = match request.version {
                // "A server MUST respond with a 400 to any HTTP/1.1 request message that lacks a Host header
                // field" (RFC 9112 §3.2), even if the target names one.
                Some(1) => Some("HTTP/1.1 without Host"),
                _ => None,
            };
            let authority = host_of(method, target, request.headers, no_host)?;
            Ok(Request { method, target, authority })
        }
        Ok(_) => Err(AMBIGUOUS),
        Err(error @ httparse::Error::Version) => {
            let line = RequestLine::of_another_version(head).ok_or_else(|| malformed(error))?;
            match httparse::parse_headers(&head[line.length..], fields) {
                Ok(httparse::Status::Complete((length, fields))) if line.length + length == head.len() => {
                    match host_of(line.method, line.target, fields, None)? {
                        Authority::Empty => Err(malformed(error)),
                        authority => Ok(Request { method: line.method, target: line.target, authority }),
                    }
                }
                Ok(_) => Err(AMBIGUOUS),
                Err(error) => Err(malformed(error)),
            }
        }
        Err(error) => Err(malformed(error)),
    }
}

fn malformed(error: httparse::Error) -> Rejection {
    use httparse::Error;
    Rejection::Malformed(match error {
        Error::HeaderName => "a field name with a bad character, or a folded field",
        Error::HeaderValue => "a field value with a bad character",
        Error::NewLine => "a bare CR",
        Error::Token | Error::Status => "a bad character in the request line",
        Error::TooManyHeaders => "more fields than lines",
        Error::Version => "not HTTP/1.0 or HTTP/1.1, and no host",
    })
}

/// The host of the target and of the Host field, which must be equal. `no_host` is the error if there is no
/// such field.
fn host_of(
    method: &str,
    target: &str,
    fields: &[httparse::Header<'_>],
    no_host: Option<&'static str>,
) -> Result<Authority, Rejection> {
    let target = target_authority(method, target)?;
    let mut fields = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let field = match (fields.next(), fields.next(), no_host) {
        // "A server MUST respond with a 400 to any request message that contains more than one Host header
        // field line", even if they are equal (RFC 9112 §3.2).
        (Some(_), Some(_), _) => return Err(Rejection::TwoHosts),
        (Some(field), None, _) => Authority::parse(field.value)?,
        (None, _, Some(wrong)) => return Err(Rejection::Malformed(wrong)),
        (None, _, None) => Authority::Empty,
    };
    match (target, field) {
        (Authority::Empty, one) | (one, Authority::Empty) => Ok(one),
        (one, other) if one == other => Ok(one),
        // A server that follows RFC 9112 §3.2.2 would use the target's host, others the field's.
        _ => Err(Rejection::TwoHosts),
    }
}

/// The authority in the request target (RFC 9112 §3.2); empty where the form has none.
fn target_authority(method: &str, target: &str) -> Result<Authority, Rejection> {
    if method == "CONNECT" {
        // Whether a tunnel is to be had is the backend's to say; which backend, the target says.
        return match Authority::parse(target.as_bytes())? {
            Authority::Empty => Err(Rejection::Malformed("CONNECT without a host")),
            authority => Ok(authority),
        };
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(Authority::Empty);
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(Rejection::Malformed("the request target has none of the forms of RFC 9112"));
    };
    if !scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        || !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    {
        return Err(Rejection::Malformed("the scheme of the request target"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match Authority::parse(authority.as_bytes())? {
        Authority::Empty => Err(Rejection::Malformed("an absolute request target without a host")),
        authority => Ok(authority),
    }
}

/// Reads a request head from all the bytes there are; see [`RequestHeadReader`].
pub fn request_head(received: &[u8], max_head: usize) -> Sniff<RequestHead> {
    RequestHeadReader::new(max_head).read(received)
}

#[cfg(test)]
mod tests;
