//! Request lines of versions other than HTTP/1.0 and HTTP/1.1: `SOURCE /radio ICE/1.0`,
//! `DESCRIBE rtsp://… RTSP/1.0`.
//!
//! Such protocols have HTTP's fields, and often a Host among them. The backend decides whether it supports
//! the version. Only the plainest form is accepted: one space between the parts, and nothing but visible
//! ASCII in them.

use super::is_token_byte;

/// The parts of a request line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RequestLine<'head> {
    pub(super) method: &'head str,
    pub(super) target: &'head str,
    /// The bytes up to the end of the line, empty lines before it included.
    pub(super) length: usize,
}

impl<'head> RequestLine<'head> {
    /// Parses the first line of a head. `None` if it has another form, or a version that `httparse` handles.
    pub(super) fn of_another_version(head: &'head [u8]) -> Option<Self> {
        let start = head.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
        let end = start + head[start..].iter().position(|byte| *byte == b'\n')?;
        let line = &head[start..end];
        let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).ok()?;
        let mut parts = line.split(' ');
        let (method, target, version) = (parts.next()?, parts.next()?, parts.next()?);
        let is_line = parts.next().is_none()
            && !method.is_empty()
            && method.bytes().all(is_token_byte)
            && !target.is_empty()
            && target.bytes().all(|byte| byte.is_ascii_graphic())
            && is_version(version);
        is_line.then_some(Self { method, target, length: end + 1 })
    }
}

/// A name, a slash and two digits with a dot between them (RFC 9112 §2.3), but not one of HTTP/1.
fn is_version(version: &str) -> bool {
    let Some((name, number)) = version.split_once('/') else { return false };
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_number =
        matches!(number.as_bytes(), [major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit());
    is_name && is_number && !matches!(version, "HTTP/1.0" | "HTTP/1.1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_versions_are_taken_apart() {
        let line = RequestLine::of_another_version(b"\r\nSOURCE /radio.ogg ICE/1.0\r\nHost: a\r\n\r\n");
        assert_eq!(line, Some(RequestLine { method: "SOURCE", target: "/radio.ogg", length: 29 }));
        let line = RequestLine::of_another_version(b"PLAY rtsp://cam.example/1 RTSP/2.0\n");
        assert_eq!(line.map(|line| line.target), Some("rtsp://cam.example/1"));
    }

    #[test]
    fn other_forms_are_none() {
        for head in [
            "GET / HTTP/1.1\r\n",
            "GET / HTTP/1.0\r\n",
            "GET / x ICE/1.0\r\n",
            "GET  / ICE/1.0\r\n",
            "GET / ICE/1.0 \r\n",
            "GET / ICE/1\r\n",
            "GET / ICE/1.10\r\n",
            "GET / /1.0\r\n",
            "GET /\r\n",
            "G\u{1}T / ICE/1.0\r\n",
            "GET /\t ICE/1.0\r\n",
            "GET / ICE/1.0",
            "\r\n",
        ] {
            assert_eq!(RequestLine::of_another_version(head.as_bytes()), None, "{head:?}");
        }
    }
}
