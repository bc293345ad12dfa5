//! Targets whose name depends on the client's: `{label}.home.arpa`, where `{label}` is what the `*` of the route matched.

use std::{fmt, str::FromStr, sync::Arc};

use super::{HostName, HostNameError};

/// The placeholder for a part of the client's name.
const PLACE: &str = "{label}";

/// Top-level domains of home networks: nobody can register a name in them (RFC 6762 appendix G, RFC 2606).
const PRIVATE: [&str; 8] = ["home", "internal", "intranet", "lan", "local", "localdomain", "private", "test"];

/// A name with one `{label}` in front of a fixed suffix.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelName {
    before: Arc<str>,
    /// The text after `{label}`, with the suffix that every name ends in, whatever the client asks for.
    after: Arc<str>,
}

/// Why some text is no such name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelNameError {
    /// Clients could name any host.
    #[error(
        "without a fixed suffix clients could name any host; write one behind it, like \"{{label}}.home.arpa:443\""
    )]
    NoSuffix,
    /// Other braces than those of one `{label}`.
    #[error("expected one {{label}}, like \"{{label}}.home.arpa:443\"")]
    Braces,
    /// The result is no name.
    #[error("with `{{label}}` replaced, this is not a host name: {0}")]
    Name(#[from] HostNameError),
}

impl LabelName {
    /// Whether this is meant as such a name.
    pub fn is_meant(text: &str) -> bool {
        text.contains(['{', '}'])
    }

    /// The name for a client; `None` where it would be none.
    pub fn name(&self, label: &str) -> Option<HostName> {
        format!("{}{label}{}", self.before, self.after).parse().ok()
    }
}

impl FromStr for LabelName {
    type Err = LabelNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (before, after) = text.split_once(PLACE).ok_or(LabelNameError::Braces)?;
        if Self::is_meant(before) || Self::is_meant(after) {
            return Err(LabelNameError::Braces);
        }
        let suffix = after.split_once('.').map_or("", |(_, suffix)| suffix);
        let last = suffix.rsplit('.').next().unwrap_or_default();
        // A name that ends in a number is none, and `{label}.1.2.3` might be an address.
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit());
        // Below a public top-level domain a client's owner could register the name.
        let is_public = last == suffix && !PRIVATE.iter().any(|private| suffix.eq_ignore_ascii_case(private));
        if is_number || is_public {
            return Err(LabelNameError::NoSuffix);
        }
        let example: HostName = format!("{before}x{after}").parse()?;
        let (before, after) = example.as_str().split_at(before.len());
        Ok(Self { before: before.into(), after: after[1..].into() })
    }
}

impl fmt::Display for LabelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{PLACE}{}", self.before, self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_below_the_suffix() {
        let read = |text: &str| text.parse::<LabelName>();
        let plain = read("{label}.Home.arpa").unwrap();
        assert_eq!(plain.to_string(), "{label}.home.arpa");
        assert_eq!(plain.name("cloud").unwrap().as_str(), "cloud.home.arpa");
        assert_eq!(plain.name("a.b").unwrap().as_str(), "a.b.home.arpa");
        assert_eq!(plain.name(&"a".repeat(64)), None);
        assert_eq!(read("{label}.lan").unwrap().name("nas").unwrap().as_str(), "nas.lan");
        let within = read("web-{label}-1.home.arpa").unwrap();
        assert_eq!(within.name("x").unwrap().as_str(), "web-x-1.home.arpa");
        for text in [
            "{label}",
            "{label}x",
            "x.{label}",
            "{label}.",
            "{label}.1.2.3",
            "{label}.0",
            "{label}.com",
            "{label}-edge.com",
        ] {
            assert_eq!(read(text), Err(LabelNameError::NoSuffix), "{text}");
        }
        for text in ["{name}.home.arpa", "{label}.{label}.arpa", "{label.home.arpa", "{}.home.arpa"] {
            assert_eq!(read(text), Err(LabelNameError::Braces), "{text}");
        }
        assert!(matches!(read("{label}..arpa"), Err(LabelNameError::Name(_))));
        assert!(matches!(read("a b{label}.home.arpa"), Err(LabelNameError::Name(_))));
    }
}
