//! Host names: one type for client requests, route conditions and the operator's settings.
//!
//! A [`HostName`] is normalised: lower-case A-labels without a trailing dot, at most 253 octets
//! (RFC 1035 §2.3.4, RFC 5890 §2.3.2.1). Underscores are accepted, since real services use them.

use std::{borrow::Borrow, fmt, net::IpAddr, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The longest name in text form without the trailing dot (RFC 1035 §2.3.4: 255 octets on the wire).
pub const MAX_NAME: usize = 253;
/// The longest label (RFC 1035 §2.3.4).
pub const MAX_LABEL: usize = 63;

/// A normalised host name. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Why some text is no host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HostNameError {
    /// Nothing there, or only a dot.
    #[error("the name is empty")]
    Empty,
    /// More than [`MAX_NAME`] octets.
    #[error("the name is longer than 253 octets")]
    TooLong,
    /// Two dots in a row, or a leading dot.
    #[error("the name has an empty label")]
    EmptyLabel,
    /// A label of more than [`MAX_LABEL`] octets.
    #[error("a label of the name is longer than 63 octets")]
    LabelTooLong,
    /// A byte that no host name has.
    #[error("the name has a character that no host name has: {}", .0.escape_ascii())]
    Character(u8),
    /// An IPv4 or IPv6 address.
    #[error("an IP address is not a host name")]
    IpLiteral,
    /// A U-label that IDNA (UTS 46) refuses.
    #[error("the name cannot be converted to A-labels")]
    Idna,
}

impl HostName {
    /// Reads a name as it comes from the network: ASCII only, any case, one trailing dot allowed.
    pub fn parse(wire: &[u8]) -> Result<Self, HostNameError> {
        let name = wire.strip_suffix(b".").unwrap_or(wire);
        if name.is_empty() {
            return Err(HostNameError::Empty);
        }
        let text = match std::str::from_utf8(name) {
            Ok(text) => text,
            Err(bad) => return Err(HostNameError::Character(name[bad.valid_up_to()])),
        };
        if text.parse::<IpAddr>().is_ok() {
            return Err(HostNameError::IpLiteral);
        }
        if name.len() > MAX_NAME {
            return Err(HostNameError::TooLong);
        }
        for label in name.split(|&byte| byte == b'.') {
            if label.is_empty() {
                return Err(HostNameError::EmptyLabel);
            }
            if let Some(&bad) = label.iter().find(|byte| !is_name_byte(**byte)) {
                return Err(HostNameError::Character(bad));
            }
            if label.len() > MAX_LABEL {
                return Err(HostNameError::LabelTooLong);
            }
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }

    /// Parses a name as an operator writes it: like [`HostName::parse`], but U-labels are converted (UTS 46).
    pub fn from_text(text: &str) -> Result<Self, HostNameError> {
        if text.is_ascii() {
            return Self::parse(text.as_bytes());
        }
        let ascii = idna::domain_to_ascii(text).map_err(|_| HostNameError::Idna)?;
        Self::parse(ascii.as_bytes())
    }

    /// The name in lower-case A-labels.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_text(text)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised() {
        for (wire, name) in [
            ("Cloud.Example.COM", "cloud.example.com"),
            ("cloud.example.com.", "cloud.example.com"),
            ("_acme._tcp.example", "_acme._tcp.example"),
            ("localhost", "localhost"),
            ("1.2.3.4.example", "1.2.3.4.example"),
        ] {
            assert_eq!(HostName::parse(wire.as_bytes()).unwrap().as_str(), name);
        }
        assert_eq!(HostName::from_text("Bücher.example").unwrap().as_str(), "xn--bcher-kva.example");
    }

    #[test]
    fn what_is_no_name_is_refused_with_its_reason() {
        use HostNameError::*;
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = ["abcdefg."; 32].concat();
        for (wire, error) in [
            ("", Empty),
            (".", Empty),
            ("..", EmptyLabel),
            (".example", EmptyLabel),
            ("a..b", EmptyLabel),
            ("a b", Character(b' ')),
            ("a\0b", Character(0)),
            ("a/b", Character(b'/')),
            ("bücher.example", Character(0xc3)),
            ("192.0.2.1", IpLiteral),
            ("2001:db8::1", IpLiteral),
            (&long_label, LabelTooLong),
            (&long_name, TooLong),
        ] {
            assert_eq!(HostName::parse(wire.as_bytes()), Err(error), "{wire:?}");
        }
    }
}
