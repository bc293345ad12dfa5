//! `map $ssl_preread_server_name $name { … }`, and maps that lead to maps.

use std::collections::{HashMap, HashSet};

use super::{lex::Directive, named_target};
use crate::{
    import::{
        model::{Model, Place, Rule, To, When},
        pattern,
    },
    spec::{ClientProtocol, HostPattern},
};

/// The deepest chain of maps.
const DEEPEST: usize = 8;
/// The most lines that are looked at when maps lead to maps.
const MOST_LINES: usize = 100_000;

/// A walk through maps: those on the way, and how many lines it has seen.
#[derive(Default)]
struct Walk {
    above: Vec<String>,
    lines: usize,
}

pub(super) type Maps = HashMap<String, Map>;

/// One map: what it looks at, and its lines.
#[derive(Clone, Debug)]
pub(super) struct Map {
    source: String,
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    key: String,
    value: String,
    place: Place,
    /// Whether `*.` and `.` at the beginning of a key have their meaning.
    hostnames: bool,
}

impl Map {
    pub(super) fn read(source: &str, lines: &[Directive], model: &mut Model) -> Self {
        let hostnames = lines.iter().any(|line| line.words() == ["hostnames"]);
        let mut read = Vec::new();
        for line in lines {
            match line.words()[..] {
                ["hostnames" | "volatile"] => {}
                [key, value] => read.push(Line {
                    key: key.to_owned(),
                    value: value.to_owned(),
                    place: line.place.clone(),
                    hostnames,
                }),
                _ => model.lose(&line.place, line.text(), "not a line of a map"),
            }
        }
        Self { source: source.to_owned(), lines: read }
    }
}

/// The rules of a map and of those that its values name.
pub(super) fn rules(variable: &str, suffix: &str, maps: &Maps, model: &mut Model) -> Vec<Rule> {
    let mut rules = Vec::new();
    follow(variable, suffix, &When::default(), &mut Walk::default(), maps, &mut rules, model);
    rules
}

fn follow(
    variable: &str,
    suffix: &str,
    given: &When,
    walk: &mut Walk,
    maps: &Maps,
    rules: &mut Vec<Rule>,
    model: &mut Model,
) {
    let Some(map) = maps.get(variable) else { return };
    walk.above.push(variable.to_owned());
    let mut seen = HashSet::new();
    for line in &map.lines {
        walk.lines += 1;
        let text = format!("{} {}", line.key, line.value);
        // Nothing to connect to is what a client without a route gets.
        if line.value.is_empty() && line.key == "default" {
            continue;
        }
        // A map that looks at another map falls back to it, or from it.
        let falls_back = maps.contains_key(&map.source) && (line.key == "default" || line.key.is_empty());
        let when =
            if falls_back { Some(When::default()) } else { meaning(&map.source, line, &map.lines, model) };
        let Some(when) = when else { continue };
        if !seen.insert(&line.key) {
            model.lose(&line.place, text, "the key is there already");
            continue;
        }
        let Some(when) = given.and(&when) else {
            model.lose(&line.place, text, "edge cannot combine these conditions");
            continue;
        };
        if line.value.is_empty() {
            rules.push(Rule { when, to: To::Refuse, place: line.place.clone() });
            continue;
        }
        let next = line.value.replace(['{', '}'], "");
        if line.value.contains('$') {
            let (next, more) = match next.rsplit_once(':') {
                Some((next, port)) => (next.to_owned(), format!(":{port}")),
                None => (next, suffix.to_owned()),
            };
            if !maps.contains_key(&next) {
                let why = "the client would choose where edge connects to (an open proxy): name the hosts in routes";
                model.lose(&line.place, text, why);
            } else if walk.above.contains(&next) || walk.above.len() >= DEEPEST || walk.lines > MOST_LINES {
                model.lose(&line.place, text, "maps that lead to each other without an end");
            } else {
                follow(&next, &more, &when, walk, maps, rules, model);
            }
            continue;
        }
        match named_target(&line.value, model)
            .or_else(|| named_target(&format!("{}{suffix}", line.value), model))
        {
            Some(to) => rules.push(Rule { when, to, place: line.place.clone() }),
            None => model.lose(&line.place, text, "no upstream and no address that edge could connect to"),
        }
    }
    walk.above.pop();
}

fn tells_tls(lines: &[Line]) -> bool {
    lines.iter().any(|line| line.key.starts_with("TLSv1.2") || line.key.starts_with("TLSv1.3"))
}

/// Clients that speak no TLS: by the port of their target SSH, or anything.
fn not_tls(line: &Line, model: &Model) -> When {
    let mut backends =
        model.pools.iter().filter(|pool| pool.name == line.value).flat_map(|pool| &pool.backends);
    let ssh = line.value.ends_with(":22") || backends.any(|backend| backend.to.port == Some(22));
    let protocol = if ssh { ClientProtocol::Ssh } else { ClientProtocol::Any };
    When { protocols: vec![protocol], ..When::default() }
}

fn meaning(source: &str, line: &Line, lines: &[Line], model: &mut Model) -> Option<When> {
    let text = || format!("{} {}", line.key, line.value);
    let key = line.key.strip_prefix('\\').unwrap_or(&line.key);
    match source {
        "$ssl_preread_server_name" => {
            if key == "default" {
                return Some(When::default());
            }
            if key.is_empty() {
                // The clients without a name get what `default` gets in edge.
                if lines.iter().any(|line| line.key == "default") {
                    let why = "in edge clients without a name get the route for `*`";
                    model.lose(&line.place, text(), why);
                    return None;
                }
                return Some(When::default());
            }
            let hosts = match key.strip_prefix("~*").or_else(|| key.strip_prefix('~')) {
                Some(expression) => pattern::hosts(expression, true),
                None if !line.hostnames && key.starts_with(['*', '.']) => {
                    model.lose(&line.place, text(), "without `hostnames` in the map no name is like this");
                    return None;
                }
                None => HostPattern::several(key).ok(),
            };
            if hosts.is_none() {
                model.lose(&line.place, text(), "edge matches exact names and everything below a name");
            }
            hosts.map(When::hosts)
        }
        "$ssl_preread_alpn_protocols" => {
            let expression = key.trim_start_matches(['~', '*']).trim_matches(['^', '$', '\\', 'b']);
            match key {
                "default" => Some(When::default()),
                _ if expression.is_empty() || expression.contains(['(', '[', '*', '|', ',']) => {
                    model.lose(&line.place, text(), "edge matches clients that offer a protocol of a list");
                    None
                }
                _ => Some(When { alpn: vec![expression.into()], ..When::default() }),
            }
        }
        "$ssl_preread_protocol" => match key {
            // A version that has the same target as another.
            _ if key.starts_with("TLS")
                && lines
                    .iter()
                    .take_while(|other| other.key != line.key)
                    .any(|other| other.key.starts_with("TLS") && other.value == line.value) =>
            {
                None
            }
            // Versions of TLS have lines of their own: what is left is not TLS.
            "default" if !lines.iter().any(|line| line.key.is_empty()) && tells_tls(lines) => {
                Some(not_tls(line, model))
            }
            "default" if tells_tls(lines) => None,
            "" => Some(not_tls(line, model)),
            "default" => Some(When::default()),
            _ if lines.iter().any(|other| other.key == "default" && other.value == line.value)
                && lines.iter().any(|other| other.key.is_empty()) =>
            {
                Some(When::default())
            }
            _ if key.starts_with("TLSv1.3") || key.starts_with("TLSv1.2") => Some(When::default()),
            _ => {
                model.lose(&line.place, text(), "edge does not tell versions of TLS apart");
                None
            }
        },
        "$remote_addr" | "$binary_remote_addr" if key != "default" => {
            let from = crate::import::model::net(key).map(|net| vec![net]);
            if from.is_none() {
                model.lose(&line.place, text(), "not an address");
            }
            from.map(|from| When { from, ..When::default() })
        }
        "$remote_addr" | "$binary_remote_addr" => Some(When::default()),
        _ => {
            model.lose(&line.place, text(), format!("edge has no condition like {source}"));
            None
        }
    }
}
