//! Which TLVs a header of version 2 has, as the operator says it: `proxy_tlvs`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A kind of TLV that a header may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyTlv {
    /// The host that the client asks for.
    Authority,
    /// The client's ALPN list.
    Alpn,
    /// The id of the connection in the access log, or the one that the proxy before us gave it.
    UniqueId,
    /// A checksum of the header.
    Crc32c,
    /// The other TLVs of the header that came in.
    Received,
}

impl ProxyTlv {
    const ALL: [Self; 5] = [Self::Authority, Self::Alpn, Self::UniqueId, Self::Crc32c, Self::Received];

    fn name(self) -> &'static str {
        match self {
            Self::Authority => "authority",
            Self::Alpn => "alpn",
            Self::UniqueId => "unique_id",
            Self::Crc32c => "crc32c",
            Self::Received => "received",
        }
    }
}

/// Why some text is no [`ProxyTlv`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected authority, alpn, unique_id, crc32c or received")]
pub struct ProxyTlvError;

impl FromStr for ProxyTlv {
    type Err = ProxyTlvError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or(ProxyTlvError)
    }
}

/// A set of [`ProxyTlv`]; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProxyTlvs(u8);

impl ProxyTlvs {
    /// All there are.
    pub const ALL: Self = Self((1 << ProxyTlv::ALL.len()) - 1);

    /// Whether it is one of them.
    pub fn has(self, kind: ProxyTlv) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// With this one too.
    #[must_use]
    pub fn with(self, kind: ProxyTlv) -> Self {
        Self(self.0 | 1 << kind as u8)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in the set, each once.
    pub fn iter(self) -> impl Iterator<Item = ProxyTlv> {
        ProxyTlv::ALL.into_iter().filter(move |kind| self.has(*kind))
    }
}

impl FromIterator<ProxyTlv> for ProxyTlvs {
    fn from_iter<I: IntoIterator<Item = ProxyTlv>>(kinds: I) -> Self {
        kinds.into_iter().fold(Self::default(), Self::with)
    }
}

impl fmt::Display for ProxyTlvs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, kind) in self.iter().enumerate() {
            write!(f, "{}{}", if index > 0 { ", " } else { "" }, kind.name())?;
        }
        Ok(())
    }
}

impl Serialize for ProxyTlvs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for ProxyTlvs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<ProxyTlv>::deserialize(deserializer)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_written_and_read_as_the_list_of_its_names() {
        assert_eq!(serde_json::to_string(&ProxyTlvs::default()).unwrap(), "[]");
        let all = r#"["authority","alpn","unique_id","crc32c","received"]"#;
        assert_eq!(serde_json::to_string(&ProxyTlvs::ALL).unwrap(), all);
        assert_eq!(serde_json::from_str::<ProxyTlvs>(all).unwrap(), ProxyTlvs::ALL);
        let two: ProxyTlvs = [ProxyTlv::Crc32c, ProxyTlv::Alpn, ProxyTlv::Alpn].into_iter().collect();
        assert_eq!(two.to_string(), "alpn, crc32c");
        assert_eq!(
            ("unique_id".parse(), "uniqueid".parse::<ProxyTlv>()),
            (Ok(ProxyTlv::UniqueId), Err(ProxyTlvError))
        );
        assert!(two.has(ProxyTlv::Alpn) && !two.has(ProxyTlv::Authority));
    }
}
