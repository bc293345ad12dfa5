//! A TOML text as tables whose keys are read by name, so that every key that was not read is unknown.
//!
//! The code that reads a table is the list of its keys: a new key is one more call of [`Section::or`] or a
//! similar method. Problems are collected, not returned, so that one pass over a file finds all of them.

use std::{cell::RefCell, collections::BTreeMap};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    problem::{ConfigError, Problem, Refusal, did_you_mean},
    value::Value,
};

/// A text that is being read, and what was found wrong with it.
pub(super) struct Document<'d> {
    file: &'d str,
    text: &'d str,
    /// Where each line begins.
    lines: Vec<usize>,
    found: RefCell<Found>,
}

#[derive(Default)]
struct Found {
    refusals: Vec<(usize, Refusal)>,
    unknown: Vec<UnknownKey>,
    /// The keys of each table that was read, by its title.
    known: BTreeMap<&'static str, Vec<&'static str>>,
}

struct UnknownKey {
    at: usize,
    key: String,
    title: &'static str,
}

/// The title of the table that holds all others.
const TOP: &str = "";

/// Where a table is, in words.
fn place(title: &str) -> String {
    if title == TOP { "at the top of the file".to_owned() } else { format!("in {title}") }
}

impl Document<'_> {
    /// Reads a whole text. `read` gets the top table; its result is used only if the text has no errors.
    pub(super) fn read<T>(
        file: &str,
        text: &str,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> Result<T, ConfigError> {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let document = Document { file, text, lines, found: RefCell::default() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            document.refuse_syntax(error);
        }
        let mut top = Section::new(&document, TOP, 0, Some(table.get_ref()));
        // A text that does not parse gets no further complaints about its contents.
        let made = errors.is_empty().then(|| read(&mut top));
        if errors.is_empty() {
            top.finish();
        }
        let problems = document.problems();
        match made {
            Some(made) if problems.is_empty() => Ok(made),
            _ => {
                let more = problems.len().saturating_sub(ConfigError::MOST);
                Err(ConfigError { problems: problems.into_iter().take(ConfigError::MOST).collect(), more })
            }
        }
    }

    fn refuse_syntax(&self, error: &toml::de::Error) {
        const MOST: usize = 60;
        let span = error.span().unwrap_or_default();
        let message = match self.text.get(span.clone()).unwrap_or_default().trim() {
            "" => error.message().to_owned(),
            culprit if culprit.len() > MOST || culprit.contains('\n') => error.message().to_owned(),
            culprit => format!("{}: `{culprit}`", error.message()),
        };
        self.refuse(span.start, Refusal::new(message));
    }

    pub(super) fn refuse(&self, at: usize, refusal: Refusal) {
        self.found.borrow_mut().refusals.push((at, refusal));
    }

    /// The line of a place, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines.partition_point(|&start| start <= at)
    }

    fn problems(&self) -> Vec<Problem> {
        let Found { mut refusals, unknown, known } = self.found.take();
        refusals.extend(unknown.into_iter().map(|unknown| (unknown.at, unknown.refusal(&known))));
        refusals.sort_by_key(|(at, _)| *at);
        let problem = |(at, Refusal { message, hint })| {
            let line = self.line(at);
            let before = self.text.get(self.lines[line - 1]..at).unwrap_or_default();
            let column = before.chars().count() + 1;
            Problem { file: self.file.to_owned(), line: Some(line), column: Some(column), message, hint }
        };
        refusals.into_iter().map(problem).collect()
    }
}

impl UnknownKey {
    fn refusal(&self, known: &BTreeMap<&str, Vec<&'static str>>) -> Refusal {
        let Self { key, title, .. } = self;
        let here = known.get(title).map_or(&[][..], Vec::as_slice);
        let tables = known.iter().filter(|(_, keys)| keys.contains(&key.as_str()));
        let elsewhere: Vec<_> = tables.map(|(title, _)| place(title)).collect();
        let hint = match did_you_mean(key, here.iter().copied()) {
            _ if !elsewhere.is_empty() => format!("it belongs {}", elsewhere.join(" or ")),
            Some(near) => near,
            None => format!("the keys there are {}", here.join(", ")),
        };
        Refusal::new(format!("unknown key `{key}` {}", place(title))).hint(hint)
    }
}

/// A table that is being read. Each key that it may have is read once, whether it is present or not.
pub(super) struct Section<'d> {
    document: &'d Document<'d>,
    title: &'static str,
    at: usize,
    table: Option<&'d DeTable<'d>>,
    asked: Vec<&'static str>,
}

impl<'d> Section<'d> {
    fn new(
        document: &'d Document<'d>,
        title: &'static str,
        at: usize,
        table: Option<&'d DeTable<'d>>,
    ) -> Self {
        Self { document, title, at, table, asked: Vec::new() }
    }

    /// The value of a key, if it is there.
    pub(super) fn value(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.asked.push(key);
        Some(Value::new(self.document, key, self.table?.get(key)?))
    }

    /// The value of a key that may be left out.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'d>) -> Option<T>,
    ) -> Option<T> {
        read(&self.value(key)?)
    }

    /// The value of a key that has a default.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value<'d>) -> Option<T>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// The value of a key that must be there; `example` is one that could stand.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Value<'d>) -> Option<T>,
    ) -> Option<T> {
        match self.value(key) {
            Some(value) => read(&value),
            None => self.refuse(
                Refusal::new(format!("no `{key}` {}", place(self.title)))
                    .hint(format!("add for example {key} = {example}")),
            ),
        }
    }

    /// A table, or where it is left out an empty one.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        title: &'static str,
        read: impl FnOnce(&mut Section<'d>) -> T,
    ) -> T {
        let (mut at, mut table) = (self.at, None);
        if let Some(value) = self.value(key) {
            at = value.at();
            match value.get() {
                DeValue::Table(found) => table = Some(found),
                _ => value
                    .expected(format_args!("a table, written {title} or as {key} = {{ … }}"))
                    .unwrap_or(()),
            }
        }
        let mut section = Section::new(self.document, title, at, table);
        let made = read(&mut section);
        section.finish();
        made
    }

    /// A list of tables, as `[[key]]` makes them; those that cannot be read are left out.
    pub(super) fn sections<T>(
        &mut self,
        key: &'static str,
        title: &'static str,
        mut read: impl FnMut(&mut Section<'d>) -> Option<T>,
    ) -> Vec<T> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let expected = || format!("tables, each written {title} with double brackets");
        let DeValue::Array(items) = value.get() else {
            return value.expected(expected()).unwrap_or_default();
        };
        let item = |item: &'d Spanned<DeValue<'d>>| {
            let DeValue::Table(table) = item.get_ref() else {
                return Value::new(self.document, key, item).expected(expected());
            };
            let mut section = Section::new(self.document, title, item.span().start, Some(table));
            let made = read(&mut section);
            section.finish();
            made
        };
        items.iter().filter_map(item).collect()
    }

    /// Whether a list is absent or empty; [`Section::sections`] complains if the value is not a list.
    pub(super) fn lacks(&self, key: &str) -> bool {
        let value = self.table.and_then(|table| table.get(key));
        value.is_none_or(|value| value.get_ref().as_array().is_some_and(|items| items.is_empty()))
    }

    /// Refuses the table as a whole.
    pub(super) fn refuse<T>(&self, refusal: Refusal) -> Option<T> {
        self.document.refuse(self.at, refusal);
        None
    }

    /// Refuses what stands at a place of the document.
    pub(super) fn refuse_at(&self, at: usize, refusal: Refusal) {
        self.document.refuse(at, refusal);
    }

    /// Whether nothing was refused so far, anywhere in the document.
    pub(super) fn is_sound(&self) -> bool {
        self.document.found.borrow().refusals.is_empty()
    }

    /// The line of the table's beginning.
    pub(super) fn line(&self) -> usize {
        self.document.line(self.at)
    }

    fn finish(self) {
        let mut found = self.document.found.borrow_mut();
        for (key, _) in self.table.into_iter().flatten() {
            if !self.asked.contains(&&**key.get_ref()) {
                let (at, key) = (key.span().start, key.get_ref().to_string());
                found.unknown.push(UnknownKey { at, key, title: self.title });
            }
        }
        found.known.entry(self.title).or_insert(self.asked);
    }
}
