//! Regular expressions for host names, as people write them: read as the hosts that edge has, where that is possible.

use crate::spec::HostPattern;

/// The most alternatives of one expression.
const MOST: usize = 64;

/// The hosts that an expression matches; `None` where edge has no such hosts. `sought` says that the expression may match
/// anywhere in the name: `example\.com` then stands for `www.example.com` too.
///
/// A class before the first dot (`[^.]+\.`, `\w+\.`) becomes `*.`, which matches names at any depth. A dot that is not
/// escaped is taken for a dot.
pub(super) fn hosts(expression: &str, sought: bool) -> Option<Vec<HostPattern>> {
    let text = expression.trim();
    let text = text.strip_prefix("(?i)").unwrap_or(text);
    let (text, from_start) = match text.strip_prefix('^') {
        Some(rest) => (rest, true),
        None => (text, !sought),
    };
    let text = match text.strip_suffix('$') {
        Some(rest) if !rest.ends_with('\\') => rest,
        _ => text,
    };
    let mut hosts = Vec::new();
    for alternative in alternatives(text)? {
        for host in alternative_hosts(&alternative, from_start)? {
            if !hosts.contains(&host) {
                hosts.push(host);
            }
        }
    }
    Some(hosts)
}

/// The expression without its groups: each choice written out.
fn alternatives(text: &str) -> Option<Vec<String>> {
    let mut done = vec![String::new()];
    let mut rest = text;
    loop {
        let Some(open) = unescaped(rest, '(') else {
            let choices: Vec<&str> = rest.split('|').collect();
            if choices.len() > 1 && text.len() != rest.len() {
                return None;
            }
            return combined(&done, &choices);
        };
        let close = open + unescaped(&rest[open..], ')')?;
        let (before, inner, after) = (&rest[..open], &rest[open + 1..close], &rest[close + 1..]);
        // `|` beside a group, and a group in a group.
        if before.contains('|') || unescaped(inner, '(').is_some() {
            return None;
        }
        let inner = inner.strip_prefix("?:").unwrap_or(inner);
        let mut choices: Vec<&str> = inner.split('|').map(|choice| choice.trim_start_matches('^')).collect();
        rest = after;
        if let Some(after) = rest.strip_prefix('?') {
            choices.push("");
            rest = after;
        } else if rest.starts_with(['*', '+', '{']) {
            return None;
        }
        done = combined(&combined(&done, &[before])?, &choices)?;
    }
}

fn combined(before: &[String], choices: &[&str]) -> Option<Vec<String>> {
    if before.len().saturating_mul(choices.len()) > MOST {
        return None;
    }
    Some(
        before
            .iter()
            .flat_map(|before| choices.iter().map(move |choice| format!("{before}{choice}")))
            .collect(),
    )
}

/// Where a character first stands without a backslash before it, outside of a class.
fn unescaped(text: &str, wanted: char) -> Option<usize> {
    let (mut escaped, mut class) = (false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ']' if class => class = false,
            '[' => class = true,
            _ if class => {}
            _ if character == wanted => return Some(at),
            _ => {}
        }
    }
    None
}

fn alternative_hosts(text: &str, from_start: bool) -> Option<Vec<HostPattern>> {
    if matches!(text, "" | ".*" | ".+") {
        return (!text.is_empty() || !from_start).then(|| vec![HostPattern::Any]);
    }
    if let Some((any, rest)) = wildcard(text) {
        return match rest.strip_prefix("\\.").or_else(|| rest.strip_prefix('.')) {
            Some(name) => format!("*.{}", literal(name)?).parse().ok().map(|host| vec![host]),
            // `.*example.com`: the name itself, too.
            None if any => HostPattern::several(&format!(".{}", literal(rest)?)).ok(),
            None => None,
        };
    }
    let name = literal(text)?;
    match name.strip_prefix('.') {
        Some(name) if !from_start => format!("*.{name}").parse().ok().map(|host| vec![host]),
        Some(_) => None,
        None if from_start => name.parse().ok().map(|host| vec![host]),
        None => HostPattern::several(&format!(".{name}")).ok(),
    }
}

/// An expression for any text at the beginning: whether it may have dots, and what follows it.
fn wildcard(text: &str) -> Option<(bool, &str)> {
    for (start, any) in [(".*", true), (".+", true), ("\\w+", false), ("\\w*", false), ("\\S+", true)] {
        if let Some(rest) = text.strip_prefix(start) {
            return Some((any, rest.trim_start_matches('?')));
        }
    }
    let class = text.strip_prefix('[')?;
    let rest = &class[class.find(']')? + 1..];
    Some((false, rest.strip_prefix(['+', '*'])?))
}

/// The name in an expression that has nothing but a name.
fn literal(text: &str) -> Option<String> {
    let mut name = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next()? {
                escaped @ ('.' | '-' | '_') => name.push(escaped),
                _ => return None,
            },
            '.' | '-' | '_' => name.push(character),
            _ if character.is_alphanumeric() => name.push(character),
            _ => return None,
        }
    }
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, sought: bool) -> Option<String> {
        let hosts = hosts(text, sought)?;
        Some(hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn common_expressions_are_hosts() {
        for (text, sought, meant) in [
            (r"^cloud\.example\.com$", true, "cloud.example.com"),
            (r"^cloud.example.com$", true, "cloud.example.com"),
            (r"^.*\.example\.com$", true, "*.example.com"),
            (r".*\.example\.com", false, "*.example.com"),
            (r"^[^.]+\.example\.com$", true, "*.example.com"),
            (r"^[a-z0-9-]+\.example\.com$", true, "*.example.com"),
            (r"^(.+\.)?example\.com$", true, "*.example.com example.com"),
            (r"^(www|cloud)\.example\.com$", true, "www.example.com cloud.example.com"),
            (
                r"^(?:www\.)?example\.(com|org)$",
                true,
                "www.example.com www.example.org example.com example.org",
            ),
            (r"(^|\.)example\.com$", true, "example.com *.example.com"),
            (r".*example\.com", false, "example.com *.example.com"),
            (r"\.example\.com$", true, "*.example.com"),
            (r"example\.com", true, "example.com *.example.com"),
            (r"example\.com", false, "example.com"),
            (r"a\.test|b\.test", false, "a.test b.test"),
            (".*", false, "*"),
        ] {
            let Some(found) = read(text, sought) else { panic!("{text}: nothing") };
            if text.starts_with("(^|") {
                assert!(found.contains("*.example.com") && found.contains("example.com"), "{text}: {found}");
            } else {
                assert_eq!(found, meant, "{text}");
            }
        }
    }

    #[test]
    fn what_no_host_can_say_is_nothing() {
        for text in [
            r"^www\d+\.example\.com$",
            r"^(?<sub>.+)\.example\.com$",
            "((a))",
            "(a",
            "a)",
            "[a",
            "^",
            "",
            r"\",
            "(a|b){2}",
            "^.example$",
            "(.test",
        ] {
            assert_eq!(read(text, false), None, "{text}");
        }
        assert_eq!(read(&"(a|b)".repeat(50), false), None);
        assert_eq!(read(&"(".repeat(100_000), false), None);
    }
}
