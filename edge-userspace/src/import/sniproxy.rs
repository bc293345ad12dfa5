//! sniproxy.conf: listeners and tables of regular expressions (sniproxy's `sniproxy.conf(5)`).

use std::{collections::HashMap, sync::Arc};

use super::{
    Failure, Source,
    model::{Bind, Front, Model, Place, Rule, To, When, address},
    pattern,
};
use crate::spec::{Protocol, ProxyProtocol};

/// A line that does not belong to a block, or a block with its lines.
struct Entry {
    place: Place,
    words: Vec<String>,
    block: Option<Vec<Entry>>,
}

/// Blocks in blocks: `listener { access_log { … } }` is the deepest there is.
const DEEPEST: usize = 8;

pub(super) fn read(sources: &[Source], model: &mut Model) -> Result<(), Failure> {
    let mut entries = Vec::new();
    for source in sources {
        let file = Arc::from(source.name.as_str());
        let mut lines =
            source.text.lines().enumerate().map(|(at, line)| (Place::new(&file, at + 1), words(line)));
        entries.extend(block(&mut lines, 0)?.0);
    }
    let mut tables: HashMap<&str, &Entry> = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.words[0] == "table") {
        tables.insert(entry.words.get(1).map_or("", |name| name), entry);
    }
    for entry in &entries {
        match &*entry.words[0] {
            "listener" | "listen" => listener(entry, &tables, model),
            "table" | "user" | "username" | "group" | "groupname" | "pidfile" | "error_log"
            | "access_log" => {}
            "resolver" => {
                let why = "edge asks the system's name servers; [resolver] names others";
                model.lose(&entry.place, "resolver", why);
            }
            _ => model.lose(&entry.place, entry.words.join(" "), "edge has no such setting"),
        }
    }
    Ok(())
}

/// Entries up to the closing brace (`true`) or the end.
fn block(
    lines: &mut impl Iterator<Item = (Place, Vec<String>)>,
    depth: usize,
) -> Result<(Vec<Entry>, bool), Failure> {
    let mut entries: Vec<Entry> = Vec::new();
    while let Some((place, mut words)) = lines.next() {
        match words.last().map(String::as_str) {
            None => {}
            Some("}") if words.len() == 1 => return Ok((entries, true)),
            Some("{") => {
                if depth >= DEEPEST {
                    return Err(Failure::at(&place, "blocks are nested too deeply"));
                }
                words.pop();
                let (inner, closed) = block(lines, depth + 1)?;
                if !closed {
                    return Err(Failure::at(&place, "the block has no `}`"));
                }
                // `table NAME` with the brace on a line of its own.
                match (words.is_empty(), entries.last_mut()) {
                    (false, _) => entries.push(Entry { place, words, block: Some(inner) }),
                    (true, Some(title)) if title.block.is_none() => title.block = Some(inner),
                    _ => return Err(Failure::at(&place, "a block without a name")),
                }
            }
            _ => entries.push(Entry { place, words, block: None }),
        }
    }
    Ok((entries, false))
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            // Only a backslash and a quote need one; before anything else it is part of an expression.
            '\\' => match characters.next() {
                Some(escaped @ ('\\' | '"')) => word.get_or_insert_default().push(escaped),
                Some(other) => word.get_or_insert_default().extend(['\\', other]),
                None => {}
            },
            '#' if !quoted => break,
            ';' if !quoted => words.extend(word.take()),
            '{' | '}' if !quoted && word.is_none() => words.push(character.to_string()),
            _ if character.is_whitespace() && !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

fn listener(entry: &Entry, tables: &HashMap<&str, &Entry>, model: &mut Model) {
    let address_words = entry.words[1..].join(":");
    let Some(bind) = Bind::read(&address_words) else {
        return model.lose(&entry.place, entry.words.join(" "), "edge listens on TCP addresses with a port");
    };
    let name = format!("port-{}", bind.first);
    let mut front = Front::new(&name, &entry.place, Protocol::Tls);
    front.binds.push(bind);
    front.first_match_wins = true;
    let mut table = "";
    let mut fallback = None;
    for line in entry.block.iter().flatten() {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        match words[..] {
            ["proto" | "protocol", protocol] => {
                front.protocol = if protocol == "http" { Protocol::Http } else { Protocol::Tls };
            }
            ["table", name] => table = name,
            ["fallback", to, ref options @ ..] => fallback = Some((to, options.to_vec(), line)),
            ["access_log" | "bad_requests" | "reuseport" | "ipv6_v6only", ..] => {}
            _ => model.lose(&line.place, words.join(" "), "edge has no such setting"),
        }
    }
    match tables.get(table) {
        Some(found) => front.rules = rules(found, model),
        None if fallback.is_some() => {}
        None => model.lose(&entry.place, entry.words.join(" "), format!("there is no table {table}")),
    }
    if let Some((to, options, line)) = fallback {
        let text = line.words.join(" ");
        match target(to, &options) {
            Some(to) => front.rules.push(Rule { when: When::default(), to, place: line.place.clone() }),
            None => model.lose(&line.place, text, "no address that edge could connect to"),
        }
    }
    model.fronts.push(front);
}

fn rules(table: &Entry, model: &mut Model) -> Vec<Rule> {
    let mut rules = Vec::new();
    for line in table.block.iter().flatten() {
        let text = line.words.join(" ");
        let [expression, to, options @ ..] = &*line.words else {
            model.lose(&line.place, text, "not a line of a table");
            continue;
        };
        if to.starts_with('*') {
            let why =
                "the client would choose where edge connects to (an open proxy): name the hosts in routes";
            model.lose(&line.place, text, why);
            continue;
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        match (pattern::hosts(expression, true), target(to, &options)) {
            (None, _) => {
                model.lose(&line.place, text, "edge matches exact names and everything below a name");
            }
            (_, None) => model.lose(&line.place, text, "no address that edge could connect to"),
            (Some(hosts), Some(to)) => {
                rules.push(Rule { when: When::hosts(hosts), to, place: line.place.clone() });
            }
        }
    }
    rules
}

fn target(text: &str, options: &[&str]) -> Option<To> {
    let header = options.contains(&"proxy_protocol");
    let proxy_protocol = if header { ProxyProtocol::V1 } else { ProxyProtocol::Off };
    // `192.0.2.1 443` is the older form.
    let port = options.iter().find(|option| option.parse::<u16>().is_ok());
    let to = match port {
        Some(port) if text.contains(':') => address(&format!("[{}]:{port}", text.trim_matches(['[', ']']))),
        Some(port) => address(&format!("{text}:{port}")),
        None => address(text).or_else(|| address(text.trim_matches(['[', ']']))),
    };
    Some(To::Address { to: to?, proxy_protocol, connect_timeout: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_the_backslashes_of_expressions() {
        assert_eq!(words(r"  example\.com  192.0.2.1:443 # x"), [r"example\.com", "192.0.2.1:443"]);
        assert_eq!(words(r"example\\.com *"), [r"example\.com", "*"]);
        assert_eq!(words(r#"filename "/var/log/a b""#), ["filename", "/var/log/a b"]);
        assert_eq!(words("table {"), ["table", "{"]);
        assert_eq!(words("[a-z]{2} x"), ["[a-z]{2}", "x"]);
        assert!(words(r"\").is_empty());
    }
}
