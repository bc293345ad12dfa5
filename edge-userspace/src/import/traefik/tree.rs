//! YAML, TOML and Docker labels as one kind of tree that knows its lines.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use saphyr_parser::{Event, Parser};
use toml::de::{DeTable, DeValue};

use crate::import::{Failure, model::Place};

/// The deepest nesting.
const DEEPEST: usize = 64;
/// The most nodes, with aliases written out.
const MOST: usize = 500_000;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
    /// How many nodes it has, itself among them.
    size: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    List(Rc<Vec<Node>>),
    Map(Rc<Vec<(String, Node)>>),
}

impl Node {
    fn new(place: Place, value: Value) -> Self {
        let size = match &value {
            Value::Text(_) => 1,
            Value::List(items) => 1 + items.iter().map(|item| item.size).sum::<usize>(),
            Value::Map(entries) => 1 + entries.iter().map(|(_, node)| node.size).sum::<usize>(),
        };
        Self { place, value, size }
    }

    /// The value of a key, whose case does not matter.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        self.entries().iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, node)| node)
    }

    /// The value behind several keys.
    pub(super) fn path(&self, keys: &[&str]) -> Option<&Self> {
        keys.iter().try_fold(self, |node, key| node.get(key))
    }

    pub(super) fn entries(&self) -> &[(String, Self)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_true(&self) -> bool {
        self.text().is_some_and(|text| text.eq_ignore_ascii_case("true"))
    }

    /// The texts of a list, or of a text with commas.
    pub(super) fn texts(&self) -> Vec<String> {
        match &self.value {
            Value::Text(text) => {
                text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
            }
            Value::List(items) => items.iter().filter_map(|item| item.text().map(str::to_owned)).collect(),
            Value::Map(_) => Vec::new(),
        }
    }

    /// A text in the same place.
    pub(super) fn replaced(&self, text: &str) -> Self {
        Self::new(self.place.clone(), Value::Text(text.to_owned()))
    }

    pub(super) fn empty(place: Place) -> Self {
        Self::new(place, Value::Map(Rc::default()))
    }

    /// With what another tree has and this one does not.
    pub(super) fn merged(&self, other: &Self, depth: usize) -> Self {
        let (Value::Map(ours), Value::Map(theirs)) = (&self.value, &other.value) else { return self.clone() };
        if depth >= DEEPEST {
            return self.clone();
        }
        let mut entries = (**ours).clone();
        for (key, theirs) in theirs.iter() {
            match entries.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case(key)) {
                Some((_, ours)) => *ours = ours.merged(theirs, depth + 1),
                None => entries.push((key.clone(), theirs.clone())),
            }
        }
        Self::new(self.place.clone(), Value::Map(Rc::new(entries)))
    }
}

/// The tree of labels: `traefik.tcp.routers.web.rule=…`, each with its line. Keys are split at dots.
pub(super) fn of_labels(labels: &[(String, Node)], place: &Place) -> Node {
    labels.iter().take(MOST).fold(Node::empty(place.clone()), |tree, (key, value)| {
        let keys: Vec<&str> = key.split('.').take(DEEPEST).collect();
        let leaf = keys.iter().rev().fold(value.clone(), |node, key| {
            let place = node.place.clone();
            Node::new(place, Value::Map(Rc::new(vec![((*key).to_owned(), node)])))
        });
        tree.merged(&leaf, 0)
    })
}

/// A list or a table that is being read.
enum Open {
    List(Vec<Node>),
    /// The entries, and the key that waits for its value.
    Map(Vec<(String, Node)>, Option<String>),
}

pub(super) fn yaml(name: &str, text: &str) -> Result<Vec<Node>, Failure> {
    let file: Arc<str> = Arc::from(name);
    let mut documents = Vec::new();
    let mut open: Vec<(Open, Place, usize)> = Vec::new();
    let mut anchors: HashMap<usize, Node> = HashMap::new();
    let mut total = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            Failure::at(&Place::new(&file, error.marker().line()), format!("not YAML: {}", error.info()))
        })?;
        let place = Place::new(&file, span.start.line());
        let (node, anchor) = match event {
            Event::Scalar(text, _, anchor, _) => (Node::new(place, Value::Text(text.into_owned())), anchor),
            Event::Alias(anchor) => match anchors.get(&anchor) {
                Some(node) => (node.clone(), 0),
                None => return Err(Failure::at(&place, "an alias to something around it")),
            },
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) if open.len() >= DEEPEST => {
                let _ = anchor;
                return Err(Failure::at(&place, "nested too deeply"));
            }
            Event::SequenceStart(anchor, _) => {
                open.push((Open::List(Vec::new()), place, anchor));
                continue;
            }
            Event::MappingStart(anchor, _) => {
                open.push((Open::Map(Vec::new(), None), place, anchor));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some((Open::List(items), place, anchor)) => {
                    (Node::new(place, Value::List(Rc::new(items))), anchor)
                }
                Some((Open::Map(entries, _), place, anchor)) => {
                    (Node::new(place, Value::Map(Rc::new(entries))), anchor)
                }
                None => continue,
            },
            _ => continue,
        };
        total = total.saturating_add(node.size);
        if total > MOST {
            return Err(Failure::at(&node.place, "too much, with its aliases written out"));
        }
        if anchor != 0 {
            anchors.insert(anchor, node.clone());
        }
        match open.last_mut() {
            None => documents.push(node),
            Some((Open::List(items), ..)) => items.push(node),
            Some((Open::Map(_, key @ None), ..)) => *key = Some(node.text().unwrap_or_default().to_owned()),
            Some((Open::Map(entries, key), ..)) => match key.take() {
                // A merge: what it brings comes after the table's own keys.
                Some(key) if key == "<<" => {
                    let lists = node.items().iter().flat_map(Node::entries);
                    entries.extend(node.entries().iter().chain(lists).cloned());
                }
                Some(key) => entries.push((key, node)),
                None => {}
            },
        }
    }
    Ok(documents)
}

pub(super) fn toml(name: &str, text: &str) -> Result<Node, Failure> {
    let file: Arc<str> = Arc::from(name);
    let line = |at: usize| text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        Failure::at(&Place::new(&file, line(at)), format!("not TOML: {}", error.message()))
    })?;
    // Lines are counted once.
    let starts: Vec<usize> =
        std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let place = |at: usize| Place::new(&file, starts.partition_point(|start| *start <= at));
    Ok(of_toml_table(table.get_ref(), place(0), &place, 0))
}

fn of_toml_table(table: &DeTable<'_>, at: Place, place: &impl Fn(usize) -> Place, depth: usize) -> Node {
    let entries = table.iter().map(|(key, value)| {
        (key.get_ref().to_string(), of_toml(value.get_ref(), place(key.span().start), place, depth + 1))
    });
    Node::new(at, Value::Map(Rc::new(entries.collect())))
}

fn of_toml(value: &DeValue<'_>, at: Place, place: &impl Fn(usize) -> Place, depth: usize) -> Node {
    let text = match value {
        DeValue::Table(table) if depth < DEEPEST => return of_toml_table(table, at, place, depth),
        DeValue::Array(items) if depth < DEEPEST => {
            let items =
                items.iter().map(|item| of_toml(item.get_ref(), place(item.span().start), place, depth + 1));
            return Node::new(at, Value::List(Rc::new(items.collect())));
        }
        DeValue::String(text) => text.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Integer(number) => number.to_string(),
        _ => String::new(),
    };
    Node::new(at, Value::Text(text))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn anchors_merges_and_lines_are_kept() {
        let text = "a: &x\n  b: 1\n  c: [p, 'q']\nd:\n  <<: *x\n  e: |\n    two\n    lines\n";
        let node = &yaml("t", text).unwrap()[0];
        assert_eq!(node.path(&["D", "b"]).unwrap().text(), Some("1"));
        assert_eq!(node.path(&["a", "c"]).unwrap().texts(), ["p", "q"]);
        assert_eq!(node.path(&["d", "e"]).unwrap().text(), Some("two\nlines\n"));
        assert_eq!(node.path(&["a", "c"]).unwrap().place.line, 3);
    }

    #[test]
    fn hostile_yaml_is_an_error() {
        assert!(yaml("t", &"[".repeat(100_000)).is_err());
        assert!(yaml("t", &"- ".repeat(10_000)).is_err());
        assert!(yaml("t", "a: &x [*x]").is_err());
        assert!(yaml("t", "a: *nothing").is_err());
        let mut laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = level - 1;
            let list = vec![format!("*a{before}"); 10].join(", ");
            writeln!(laughs, "a{level}: &a{level} [{list}]").unwrap();
        }
        assert!(yaml("t", &laughs).is_err());
        assert!(toml("t", &"[".repeat(100_000)).is_err());
        assert!(toml("t", &format!("a = {}", "[".repeat(10_000))).is_err());
    }
}
