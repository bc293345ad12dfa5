//! Problems in a configuration, each with its place. Users meet this part of the module most.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A problem in a configuration. Displays as `file:line:column: message; hint`, on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file as it was named when it was read.
    pub file: String,
    /// The line, from 1; `None` where the file as a whole is meant.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
    /// The problem, and what was expected instead.
    pub message: String,
    /// How to mend it, where that can be said.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        write!(f, ": {}", self.message)?;
        self.hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
    }
}

/// A refused configuration, with all of its problems. Displays one line per problem.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigError {
    /// The problems in the order of the file, [`ConfigError::MOST`] at most; never empty.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub more: usize,
}

impl ConfigError {
    /// The most problems that are listed; a generated file of 100,000 routes can have the same one in each.
    pub const MOST: usize = 50;

    /// The file as a whole cannot be used.
    pub(super) fn of_file(file: &str, refusal: Refusal) -> Self {
        let Refusal { message, hint } = refusal;
        Self {
            problems: vec![Problem { file: file.to_owned(), line: None, column: None, message, hint }],
            more: 0,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, problem) in self.problems.iter().enumerate() {
            let newline = if nth == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// The reason for a refusal before its place is known: shared by the file and calls of the control API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The problem.
    pub message: String,
    /// How to mend it.
    pub hint: Option<String>,
}

impl Refusal {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// The known word that was probably meant, as a question.
pub(super) fn did_you_mean<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    nearest(word, known).map(|near| format!("did you mean `{near}`?"))
}

fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let close = |near: &str| {
        let distance = strsim::damerau_levenshtein(word, near);
        // A third of the letters may differ, or one is the other with a suffix (`route`, `routes`).
        let within = (near.len().max(word.len()) / 3).max(1);
        let longer = word.len().min(near.len()) >= 3 && (near.starts_with(word) || word.starts_with(near));
        (distance <= within || longer).then_some(distance)
    };
    let near = known.into_iter().filter_map(|near| Some((close(near)?, near)));
    near.min_by_key(|(distance, _)| *distance).map(|(_, near)| near)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_one_that_could_be_meant() {
        let known = ["host", "to", "listener", "proxy_protocol"];
        for (word, near) in [
            ("hots", Some("host")),
            ("hostname", Some("host")),
            ("listen", Some("listener")),
            ("proxyprotocol", Some("proxy_protocol")),
            ("proxy-protocol", Some("proxy_protocol")),
            ("t", Some("to")),
            ("backend", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), near, "{word:?}");
        }
    }

    #[test]
    fn each_problem_is_one_line() {
        let whole = ConfigError::of_file("edge.toml", Refusal::new("no such file").hint("create it"));
        assert_eq!(whole.to_string(), "edge.toml: no such file; create it");
        let at = Problem { line: Some(3), column: Some(7), hint: None, ..whole.problems[0].clone() };
        let error = ConfigError { problems: vec![at.clone(), at], more: 2 };
        assert_eq!(error.to_string(), "edge.toml:3:7: no such file\nedge.toml:3:7: no such file\nand 2 more");
    }
}
