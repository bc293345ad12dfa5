//! Lines and words of haproxy.cfg: quotes, escapes, comments and variables (configuration manual, 2.2).

use std::{sync::Arc, time::Duration};

use crate::import::{Files, model::Place};

/// The words of a line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    pub(super) words: Vec<String>,
}

impl Line {
    pub(super) fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    pub(super) fn text(&self) -> String {
        self.words.join(" ")
    }
}

/// All lines that have a word.
pub(super) fn lines(text: &str, file: &Arc<str>, files: &dyn Files) -> Vec<Line> {
    let numbered = text.lines().enumerate();
    numbered
        .map(|(at, line)| Line { place: Place::new(file, at + 1), words: words(line, files) })
        .filter(|line| !line.words.is_empty())
        .collect()
}

fn words(line: &str, files: &dyn Files) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\'' | '"', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (_, Some(open)) if character == open => quote = None,
            ('\\', None | Some('"')) => {
                // Before a character that needs none, as in a regular expression between quotes, it stays.
                let escaped = characters.next();
                let word = word.get_or_insert_default();
                if quote.is_some() && !matches!(escaped, Some('\\' | '"' | '$')) {
                    word.push('\\');
                }
                word.extend(escaped);
            }
            ('$', Some('"')) => {
                let braces = characters.next_if_eq(&'{').is_some();
                let mut name = String::new();
                while let Some(next) =
                    characters.next_if(|next| next.is_ascii_alphanumeric() || matches!(next, '_' | '.'))
                {
                    name.push(next);
                }
                if braces {
                    // A default after a dash is used where the variable is not set.
                    let mut rest = String::new();
                    while let Some(next) = characters.next_if(|next| *next != '}') {
                        rest.push(next);
                    }
                    characters.next();
                    let value = files.variable(&name).or_else(|| rest.strip_prefix('-').map(str::to_owned));
                    word.get_or_insert_default().push_str(&value.unwrap_or_else(|| format!("${{{name}}}")));
                } else {
                    let value = files.variable(&name).unwrap_or_else(|| format!("${name}"));
                    word.get_or_insert_default().push_str(&value);
                }
            }
            ('#', None) => break,
            (space, None) if space.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// A time, in milliseconds without a unit (2.5).
pub(super) fn time(text: &str) -> Option<Duration> {
    let digits = text.find(|next: char| !next.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let milliseconds = match &text[digits..] {
        "us" => number / 1000,
        "" | "ms" => number,
        "s" => number.checked_mul(1000)?,
        "m" => number.checked_mul(60_000)?,
        "h" => number.checked_mul(3_600_000)?,
        "d" => number.checked_mul(86_400_000)?,
        _ => return None,
    };
    // Edge takes a year at most.
    Some(Duration::from_millis(milliseconds.min(365 * 86_400_000)))
}

/// Settings of HAProxy's own process, and what edge does without being told.
const NEEDLESS: &str = "daemon user group uid gid chroot pidfile nbthread nbproc cpu-map master-worker log log-format \
    log-tag log-send-hostname stats description node retries errorfile hard-stop-after set-dumpable ulimit-n quiet enabled \
    unique-id-format unique-id-header default-path server-state-file localpeer no";
const NEEDLESS_TIMEOUTS: &str = "check queue http-request http-keep-alive client-fin server-fin tarpit";
const NEEDLESS_OPTIONS: &str = "tcplog httplog httpslog dontlognull dontlog-normal redispatch tcpka clitcpka srvtcpka \
    socket-stats log-health-checks log-separate-errors logasap ssl-hello-chk tcp-check http-server-close httpclose \
    forceclose http-keep-alive tcp-smart-accept tcp-smart-connect splice-auto splice-request splice-response contstats \
    abortonclose nolinger";

/// Whether edge does the same without being told, or the setting is about HAProxy's own process.
pub(super) fn is_needless(words: &[String]) -> bool {
    let is_in = |list: &str, word: &str| list.split_whitespace().any(|known| known == word);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match *words {
        ["timeout", kind, ..] => is_in(NEEDLESS_TIMEOUTS, kind),
        ["option", option, ..] => is_in(NEEDLESS_OPTIONS, option),
        // Everything is inspected before it is passed on.
        [] | ["tcp-request", "content", "accept", ..] => true,
        [first, ..] => is_in(NEEDLESS, first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::Memory;

    #[test]
    fn words_are_split_as_the_manual_says() {
        let files = Memory::default().with_variable("NAME", "a b");
        for (line, expected) in [
            ("  bind *:443  # comment", vec!["bind", "*:443"]),
            (
                r#"acl a req.ssl_sni "a b" 'c # d' e\ f"#,
                vec!["acl", "a", "req.ssl_sni", "a b", "c # d", "e f"],
            ),
            (r#"x "${NAME}" "$NAME.x" '$NAME' $NAME"#, vec!["x", "a b", "$NAME.x", "$NAME", "$NAME"]),
            (r#""${NO-fallback}" "${NO}" "#, vec!["fallback", "${NO}"]),
            (r#"x """#, vec!["x", ""]),
            (r"^a\.b$", vec!["^a.b$"]),
            (r#""^a\.b$""#, vec![r"^a\.b$"]),
            ("# only", vec![]),
            (r#"open "quote"#, vec!["open", "quote"]),
        ] {
            assert_eq!(words(line, &files), expected, "{line}");
        }
    }

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in [("5s", 5000), ("50000", 50_000), ("1m", 60_000), ("30ms", 30), ("0", 0)]
        {
            assert_eq!(time(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        assert_eq!((time("5 s"), time(""), time("x")), (None, None, None));
        assert!(time("18446744073709551615d").is_none());
    }
}
