//! Values of a configuration: how each kind is parsed, and the message if it is not one.
//!
//! A reader takes a [`Value`] and returns `None` after it has reported a problem.

use std::{
    borrow::Cow,
    fmt::{self, Display},
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use serde::{
    Deserialize,
    de::{self, IntoDeserializer},
};
use toml::{Spanned, de::DeValue};

use super::{
    document::Document,
    problem::{Refusal, did_you_mean},
};

/// A value, with its place and the key it belongs to.
pub(super) struct Value<'d> {
    document: &'d Document<'d>,
    key: &'static str,
    inner: &'d Spanned<DeValue<'d>>,
}

impl<'d> Value<'d> {
    pub(super) fn new(
        document: &'d Document<'d>,
        key: &'static str,
        inner: &'d Spanned<DeValue<'d>>,
    ) -> Self {
        Self { document, key, inner }
    }

    pub(super) fn get(&self) -> &'d DeValue<'d> {
        self.inner.get_ref()
    }

    /// Where it begins, in bytes.
    pub(super) fn at(&self) -> usize {
        self.inner.span().start
    }

    /// The line on which it begins, from 1.
    pub(super) fn line(&self) -> usize {
        self.document.line(self.at())
    }

    /// Says what is wrong with the value.
    pub(super) fn refuse<T>(&self, refusal: Refusal) -> Option<T> {
        let message = format!("`{}`: {}", self.key, refusal.message);
        self.document.refuse(self.at(), Refusal { message, ..refusal });
        None
    }

    /// Says that the value is of another kind than wanted.
    pub(super) fn expected<T>(&self, expected: impl Display) -> Option<T> {
        self.refuse(Refusal::new(format!("expected {expected}, got {}", self.found())))
    }

    /// The value found, short enough for a message.
    fn found(&self) -> String {
        match self.get() {
            DeValue::String(text) => quoted(text),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Datetime(time) => time.to_string(),
            DeValue::Array(items) if items.is_empty() => "an empty list".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        }
    }

    pub(super) fn text(&self, expected: impl Display) -> Option<&'d str> {
        match self.get() {
            DeValue::String(text) => Some(text),
            _ => self.expected(expected),
        }
    }

    /// A text of which `read` makes something.
    pub(super) fn text_as<T>(
        &self,
        expected: impl Display,
        read: impl FnOnce(&str) -> Result<T, Refusal>,
    ) -> Option<T> {
        match read(self.text(expected)?) {
            Ok(made) => Some(made),
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// A list whose items `read` parses. All items are read, so that all bad ones are reported.
    pub(super) fn items<T>(
        &self,
        expected: impl Display,
        mut read: impl FnMut(&Value<'d>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let DeValue::Array(items) = self.get() else {
            let wrong = Refusal::new(format!("expected {expected}, got {}", self.found()));
            return self.refuse(match self.get() {
                DeValue::String(text) => wrong.hint(format!("write [{}]", quoted(text))),
                _ => wrong,
            });
        };
        let items: Vec<_> = items.iter().map(|item| read(&Value { inner: item, ..*self })).collect();
        items.into_iter().collect()
    }

    /// A table whose keys are names: `name` reads a key, `read` what it stands for.
    pub(super) fn entries<K, T>(
        &self,
        expected: impl Display,
        name: impl Fn(&str) -> Result<K, Refusal>,
        read: impl Fn(&Value<'d>) -> Option<T>,
    ) -> Option<Vec<(K, T)>> {
        let DeValue::Table(entries) = self.get() else { return self.expected(expected) };
        let entry = |(key, value): (&'d Spanned<_>, &'d Spanned<_>)| {
            let (key, at): (&Cow<'_, str>, _) = (key.get_ref(), key.span().start);
            let name = name(key).map_err(|Refusal { message, hint }| {
                self.document.refuse(at, Refusal { message: format!("`{}`: {message}", self.key), hint });
            });
            let value = read(&Value { inner: value, ..*self });
            Some((name.ok()?, value?))
        };
        entries.iter().map(entry).collect::<Vec<_>>().into_iter().collect()
    }
}

/// A text in quotation marks, on one line and cut where it is long.
pub(super) fn quoted(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

/// A whole number in a range.
pub(super) fn integer<T>(range: RangeInclusive<T>) -> impl Fn(&Value<'_>) -> Option<T>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    move |value| {
        let number = match value.get() {
            DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        };
        match number.and_then(|number| T::try_from(number).ok()).filter(|number| range.contains(number)) {
            Some(number) => Some(number),
            None => value.expected(format_args!("a whole number from {} to {}", range.start(), range.end())),
        }
    }
}

pub(super) fn boolean(value: &Value<'_>) -> Option<bool> {
    match value.get() {
        DeValue::Boolean(truth) => Some(*truth),
        _ => value.expected("true or false"),
    }
}

/// The longest duration that can be configured: long enough for any purpose, short enough to add to any
/// clock.
const LONGEST: Duration = Duration::from_hours(365 * 24);

/// A time that is not nothing.
pub(super) fn duration(value: &Value<'_>) -> Option<Duration> {
    let time = any_duration(value)?;
    if time.is_zero() { value.expected("a time longer than nothing") } else { Some(time) }
}

/// A time that may be nothing: `"0s"` or 0.
pub(super) fn duration_or_zero(value: &Value<'_>) -> Option<Duration> {
    let zero = matches!(value.get(), DeValue::Integer(number) if number.as_str() == "0");
    if zero { Some(Duration::ZERO) } else { any_duration(value) }
}

fn any_duration(value: &Value<'_>) -> Option<Duration> {
    const EXPECTED: &str = r#"a time with its unit, such as "500ms", "5s" or "1h""#;
    let wrong = |got: String| Refusal::new(format!("expected {EXPECTED}, got {got}"));
    let text = match value.get() {
        DeValue::String(text) => text,
        DeValue::Integer(number) => {
            return value.refuse(wrong(number.to_string()).hint(format!("write \"{number}s\" for seconds")));
        }
        _ => return value.expected(EXPECTED),
    };
    match humantime::parse_duration(text) {
        Ok(time) if time <= LONGEST => Some(time),
        Ok(_) => value.expected("a time of at most a year"),
        Err(_) if text.parse::<u64>().is_ok() => {
            value.refuse(wrong(quoted(text)).hint(format!("write \"{text}s\" for seconds")))
        }
        Err(_) => value.expected(EXPECTED),
    }
}

pub(super) fn path(value: &Value<'_>) -> Option<PathBuf> {
    match value.text("a path")? {
        "" => value.expected("a path"),
        text => Some(text.into()),
    }
}

/// A list of what `item` reads; `items` says what these are.
pub(super) fn list<'d, T>(
    items: &'static str,
    item: impl Fn(&Value<'d>) -> Option<T>,
) -> impl Fn(&Value<'d>) -> Option<Vec<T>> {
    move |value| value.items(format_args!("a list of {items}"), &item)
}

/// One of the names of an enum, as its serde attributes have them.
pub(super) fn one_of<T: for<'t> Deserialize<'t>>(value: &Value<'_>) -> Option<T> {
    let text = match value.get() {
        DeValue::String(text) => text,
        // No enum has the empty name, so that this gives the names it has.
        _ => "",
    };
    match variant(text) {
        Ok(variant) => Some(variant),
        Err(names) => {
            let wrong = Refusal::new(format!("expected {names}, got {}", value.found()));
            value.refuse(match did_you_mean(text, names.0.iter().copied()) {
                Some(near) => wrong.hint(near),
                None => wrong,
            })
        }
    }
}

fn variant<T: for<'t> Deserialize<'t>>(text: &str) -> Result<T, Variants> {
    let text: de::value::StrDeserializer<'_, Variants> = text.into_deserializer();
    T::deserialize(text)
}

/// The names that an enum has: the error of serde that knows them.
#[derive(Debug)]
struct Variants(&'static [&'static str]);

impl Display for Variants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, name) in self.0.iter().enumerate() {
            let between = match nth {
                0 => "",
                _ if nth + 1 == self.0.len() => " or ",
                _ => ", ",
            };
            write!(f, "{between}\"{name}\"")?;
        }
        Ok(())
    }
}

impl std::error::Error for Variants {}

impl de::Error for Variants {
    fn custom<T: Display>(_: T) -> Self {
        Self(&[])
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self(expected)
    }
}
