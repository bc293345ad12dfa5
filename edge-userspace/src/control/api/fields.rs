//! How single fields are written and read: times, prefixes, and values that may be one or a list.

use std::{
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time, written as RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl Timestamp {
    /// This moment.
    pub fn now() -> Self {
        Self(SystemTime::now())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(self.0).fmt(f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map(Self).map_err(de::Error::custom)
    }
}

/// Why some text is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or a CIDR prefix, like \"192.0.2.1\", \"192.0.2.0/24\" or \"2001:db8::/32\"")]
pub struct PrefixError;

/// Reads a CIDR prefix; an address alone means that address. Bits behind the prefix are cleared.
pub fn parse_prefix(text: &str) -> Result<IpNet, PrefixError> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_| PrefixError)
}

pub(super) fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    parse_prefix(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

pub(super) fn some_prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
    prefix(deserializer).map(Some)
}

pub(super) fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts: Vec<String> = one_or_many(deserializer)?;
    texts.iter().map(|text| parse_prefix(text)).collect::<Result<_, _>>().map_err(de::Error::custom)
}

pub(super) fn some_prefixes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<IpNet>>, D::Error> {
    prefixes(deserializer).map(Some)
}

/// A value or a list of values.
pub(super) fn one_or_many<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    struct Visitor<T>(std::marker::PhantomData<T>);

    impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string or a list of strings")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            T::deserialize(de::value::StrDeserializer::new(text)).map(|value| vec![value])
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut values = Vec::new();
            while let Some(value) = list.next_element()? {
                values.push(value);
            }
            Ok(values)
        }
    }

    deserializer.deserialize_any(Visitor(std::marker::PhantomData))
}

/// Whether a field of a request may be left out.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A single value as itself, several as a list: [`one_or_many`] reads both.
pub(super) fn as_one_or_many<T: Serialize, S: Serializer>(
    values: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match values {
        [one] => one.serialize(serializer),
        many => many.serialize(serializer),
    }
}

pub(super) fn some_one_or_many<'de, T, D>(deserializer: D) -> Result<Option<Vec<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    one_or_many(deserializer).map(Some)
}

/// A whole number; as text too, since a query string has nothing else.
pub(super) fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a whole number")]
    enum Number {
        Number(usize),
        Text(String),
    }
    match Number::deserialize(deserializer)? {
        Number::Number(value) => Ok(value),
        Number::Text(text) => {
            text.parse().map_err(|_| de::Error::invalid_value(de::Unexpected::Str(&text), &"a whole number"))
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
pub(super) const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A truth value; as text too, since a query string has nothing else.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected true or false")]
    enum Flag {
        Bool(bool),
        Text(String),
    }
    match Flag::deserialize(deserializer)? {
        Flag::Bool(value) => Ok(value),
        Flag::Text(text) => match text.as_str() {
            "" | "1" | "true" => Ok(true),
            "0" | "false" => Ok(false),
            other => Err(de::Error::invalid_value(de::Unexpected::Str(other), &"true or false")),
        },
    }
}

/// A span of time as an operator writes it, like `"90s"` or `"1h 30m"`.
pub(super) mod span {
    use super::{Deserialize, Deserializer, Duration, Serializer, de};

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(in crate::control::api) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match span {
            Some(span) => serializer.collect_str(&humantime::format_duration(*span)),
            None => serializer.serialize_none(),
        }
    }

    pub(in crate::control::api) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        match humantime::parse_duration(&text) {
            Ok(span) if !span.is_zero() => Ok(Some(span)),
            _ => Err(de::Error::invalid_value(
                de::Unexpected::Str(&text),
                &"a time like \"10m\" or \"1h 30m\"",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339_in_utc_with_milliseconds() {
        let time = Timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123));
        let text = serde_json::to_string(&time).unwrap();
        assert_eq!(text, "\"2023-11-14T22:13:20.123Z\"");
        assert_eq!(serde_json::from_str::<Timestamp>(&text).unwrap(), time);
    }

    #[test]
    fn an_address_is_a_prefix_and_host_bits_are_cleared() {
        for (text, net) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:db8::1/32", "2001:db8::/32"),
        ] {
            assert_eq!(parse_prefix(text).unwrap().to_string(), net);
        }
        for text in ["", "192.0.2.0/33", "192.0.2", "example.com", "::/129"] {
            assert_eq!(parse_prefix(text), Err(PrefixError), "{text:?}");
        }
    }

    #[test]
    fn numbers_are_read_from_json_and_from_a_query() {
        let read = |text: &str| number(&mut serde_json::Deserializer::from_str(text)).ok();
        assert_eq!([read("20"), read("\"20\""), read("0")], [Some(20), Some(20), Some(0)]);
        assert_eq!([read("-1"), read("\"many\""), read("true"), read("1.5")], [None; 4]);
    }

    #[test]
    fn flags_are_read_from_json_and_from_a_query() {
        for (text, value) in
            [("true", true), ("\"true\"", true), ("\"\"", true), ("false", false), ("\"0\"", false)]
        {
            assert_eq!(flag(&mut serde_json::Deserializer::from_str(text)).unwrap(), value, "{text}");
        }
        assert!(flag(&mut serde_json::Deserializer::from_str("\"perhaps\"")).is_err());
        assert!(flag(&mut serde_json::Deserializer::from_str("7")).is_err());
    }
}
