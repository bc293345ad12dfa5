//! Server names that cannot be host names. They go to the log only, and never select a route.

use std::fmt;

/// Bytes of it that are kept: a connection keeps them as long as it lives.
pub const MAX_RAW_NAME: usize = 128;

/// The bytes of a name that is none, or the first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawName {
    start: Box<[u8]>,
    is_cut: bool,
}

impl RawName {
    /// Keeps at most [`MAX_RAW_NAME`] bytes.
    pub fn new(name: &[u8]) -> Self {
        let start = &name[..name.len().min(MAX_RAW_NAME)];
        Self { start: start.into(), is_cut: start.len() < name.len() }
    }
}

/// Printable ASCII, everything else escaped as in Rust's byte strings; `...` marks truncation.
impl fmt::Display for RawName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.start.escape_ascii(), if self.is_cut { "..." } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_escaped_and_bounded() {
        for (name, text) in [
            (&b""[..], ""),
            (b"a.example:443", "a.example:443"),
            ("b\u{fc}cher.example".as_bytes(), r"b\xc3\xbccher.example"),
            (b"a\0\n\"b", r#"a\x00\n\"b"#),
            (&[b'a'; MAX_RAW_NAME], &"a".repeat(MAX_RAW_NAME)),
            (&[b'a'; 5000], &format!("{}...", "a".repeat(MAX_RAW_NAME))),
        ] {
            assert_eq!(RawName::new(name).to_string(), text);
        }
    }
}
