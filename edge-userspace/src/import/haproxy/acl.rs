//! ACLs and conditions of haproxy.cfg (configuration manual, 7): as conditions of routes, where edge has them.

use std::{collections::HashMap, sync::Arc};

use crate::{
    import::{
        Files,
        model::{Alternatives, When, both, net},
        pattern,
    },
    spec::{ClientProtocol, HostPattern},
};

/// The meaning of a condition.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meaning {
    /// Conditions of a route. One that is empty always holds.
    When(Alternatives),
    /// The client's address is none of these.
    NotFrom(Vec<ipnet::IpNet>),
    /// Whether the client came by TLS to a frontend that ends it; never here.
    EndsTls,
    /// A request for an ACME challenge, which edge lets through by itself.
    Challenge,
    /// Holds for no client here.
    Never,
    /// Edge has nothing like it; the reason.
    Unknown(String),
}

impl Meaning {
    fn always() -> Self {
        Self::When(vec![When::default()])
    }
}

/// The ACLs of one section, by name.
#[derive(Debug, Default)]
pub(super) struct Acls(HashMap<String, Meaning>);

impl Acls {
    /// Takes `acl NAME CRITERION…`; further ones of the same name are alternatives.
    pub(super) fn define(&mut self, words: &[&str], files: &dyn Files) {
        let [name, criterion @ ..] = words else { return };
        let meaning = criterion_meaning(criterion, files);
        let meaning = match (self.0.remove(*name), meaning) {
            (Some(Meaning::When(mut known)), Meaning::When(more)) => {
                known.extend(more);
                Meaning::When(known)
            }
            (Some(unknown @ Meaning::Unknown(_)), _) => unknown,
            (_, meaning) => meaning,
        };
        self.0.insert((*name).to_owned(), meaning);
    }

    /// The meaning of the words after `if`.
    pub(super) fn condition(&self, words: &[&str], files: &dyn Files) -> Meaning {
        let mut alternatives = Vec::new();
        let mut terms: Vec<Meaning> = Vec::new();
        let mut rest = words;
        loop {
            match rest {
                [] | ["||" | "or", ..] => {
                    match all(std::mem::take(&mut terms)) {
                        Meaning::When(more) => alternatives.extend(more),
                        Meaning::Never => {}
                        // One alternative that edge does not have leaves a part of the clients out.
                        other if alternatives.is_empty() && rest.is_empty() => return other,
                        Meaning::Unknown(why) => return Meaning::Unknown(why),
                        _ => return Meaning::Unknown("edge has no such alternative".to_owned()),
                    }
                    match rest {
                        [_, after @ ..] => rest = after,
                        _ if alternatives.is_empty() => return Meaning::Never,
                        _ => return Meaning::When(alternatives),
                    }
                }
                ["and" | "&&", after @ ..] => rest = after,
                ["{" | "!{", after @ ..] => {
                    let end = after.iter().position(|word| *word == "}").unwrap_or(after.len());
                    let meaning = criterion_meaning(&after[..end], files);
                    terms.push(if rest[0] == "{" { meaning } else { not(meaning) });
                    rest = after.get(end + 1..).unwrap_or_default();
                }
                ["!", "{", after @ ..] => {
                    let end = after.iter().position(|word| *word == "}").unwrap_or(after.len());
                    terms.push(not(criterion_meaning(&after[..end], files)));
                    rest = after.get(end + 1..).unwrap_or_default();
                }
                [name, after @ ..] => {
                    let (negated, bare) = match name.strip_prefix('!') {
                        Some(bare) => (true, bare),
                        None => (false, *name),
                    };
                    let meaning = self.named(bare);
                    terms.push(if negated { not(meaning) } else { meaning });
                    rest = after;
                }
            }
        }
    }

    fn named(&self, name: &str) -> Meaning {
        match (self.0.get(name), name) {
            (Some(meaning), _) => meaning.clone(),
            // Predefined (7.4).
            (None, "TRUE" | "HTTP" | "REQ_CONTENT" | "WAIT_END" | "METH_GET") => Meaning::always(),
            (None, "FALSE") => Meaning::Never,
            (None, "LOCALHOST") => Meaning::When(vec![When {
                from: ["127.0.0.1/8", "::1/128"].iter().filter_map(|text| net(text)).collect(),
                ..When::default()
            }]),
            (None, _) => Meaning::Unknown(format!("the file has no ACL called {name}")),
        }
    }
}

/// The opposite of a condition, for `unless`.
pub(super) fn not(meaning: Meaning) -> Meaning {
    match meaning {
        Meaning::EndsTls | Meaning::Never | Meaning::Challenge => Meaning::always(),
        Meaning::When(when) if when == [When::default()] => Meaning::Never,
        Meaning::When(when) => match &*when {
            [only] if *only == (When { from: only.from.clone(), ..When::default() }) => {
                Meaning::NotFrom(only.from.clone())
            }
            _ => Meaning::Unknown("edge has no condition that excludes hosts".to_owned()),
        },
        Meaning::NotFrom(from) => Meaning::When(vec![When { from, ..When::default() }]),
        unknown @ Meaning::Unknown(_) => unknown,
    }
}

/// All of several conditions.
fn all(terms: Vec<Meaning>) -> Meaning {
    let mut together = vec![When::default()];
    let mut other = None;
    for term in terms {
        match term {
            Meaning::When(when) => match both(&together, &when) {
                Some(both) => together = both,
                None => return Meaning::Unknown("edge cannot combine these conditions".to_owned()),
            },
            Meaning::Never | Meaning::EndsTls => return Meaning::Never,
            unknown @ Meaning::Unknown(_) => return unknown,
            term => other = Some(term),
        }
    }
    match other {
        None => Meaning::When(together),
        Some(other) if together == [When::default()] => other,
        Some(Meaning::Challenge) => Meaning::Challenge,
        Some(_) => Meaning::Unknown("edge cannot combine these conditions".to_owned()),
    }
}

fn criterion_meaning(words: &[&str], files: &dyn Files) -> Meaning {
    let [sample, rest @ ..] = words else { return Meaning::Unknown("an empty ACL".to_owned()) };
    // Converters follow a comma outside of parentheses.
    let mut depth = 0_usize;
    let end = sample.find(|next| {
        match next {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        next == ',' && depth == 0
    });
    let sample = sample[..end.unwrap_or(sample.len())].to_ascii_lowercase();
    let Values { method, values } = match values(rest, files) {
        Ok(values) => values,
        Err(why) => return Meaning::Unknown(why),
    };
    match sample.as_str() {
        "req.ssl_hello_type" | "req_ssl_hello_type" | "req.ssl_ver" | "req_ssl_ver" | "req.len"
        | "always_true" | "req.proto_http" | "wait_end" => Meaning::always(),
        "always_false" => Meaning::Never,
        "ssl_fc" => Meaning::EndsTls,
        "req.ssl_alpn" | "req_ssl_alpn" => {
            let alpn = values.iter().flat_map(|value| value.split(',')).map(Arc::from).collect();
            Meaning::When(vec![When { alpn, ..When::default() }])
        }
        "src" => match values.iter().map(|value| net(value)).collect::<Option<Vec<_>>>() {
            Some(from) if !from.is_empty() => Meaning::When(vec![When { from, ..When::default() }]),
            _ => Meaning::Unknown("not a list of prefixes".to_owned()),
        },
        "path_beg" | "path" | "path_dir" | "path_reg" | "path_sub" | "url_beg" => {
            if !values.is_empty() && values.iter().all(|value| value.contains(".well-known/acme-challenge")) {
                Meaning::Challenge
            } else {
                Meaning::Unknown("edge does not route by path: let home do it".to_owned())
            }
        }
        _ if sample.starts_with("payload(0") || sample.starts_with("req.payload(0") => {
            let ssh = |value: &String| {
                let value = value.to_ascii_uppercase();
                value.starts_with("5353482D") || value.starts_with("SSH-")
            };
            if !values.is_empty() && values.iter().all(ssh) {
                Meaning::When(vec![When { protocols: vec![ClientProtocol::Ssh], ..When::default() }])
            } else {
                Meaning::Unknown("edge does not know this protocol by its first bytes".to_owned())
            }
        }
        _ => match host_method(&sample, method.as_deref()) {
            Some(method) => match hosts(&method, &values) {
                Some(hosts) => Meaning::When(vec![When::hosts(hosts)]),
                None => Meaning::Unknown("edge matches exact names and everything below a name".to_owned()),
            },
            None if sample.starts_with("ssl_fc") || sample.starts_with("ssl_c") => {
                Meaning::Unknown("it needs TLS to end here, which edge never does".to_owned())
            }
            None => Meaning::Unknown(format!("edge has no condition like {sample}")),
        },
    }
}

/// How a sample of the host is compared; `None` where it is something else.
fn host_method(sample: &str, given: Option<&str>) -> Option<String> {
    const SNI: [&str; 2] = ["req.ssl_sni", "req_ssl_sni"];
    let method = |name: &str| Some(given.unwrap_or(name).to_owned());
    for name in SNI {
        if let Some(rest) = sample.strip_prefix(name) {
            return method(rest.strip_prefix('_').unwrap_or("str"));
        }
    }
    let header = sample.strip_suffix("(host)")?;
    match header.strip_prefix("req.").unwrap_or(header).strip_prefix("hdr")? {
        "" => method("str"),
        rest => method(rest.strip_prefix('_')?),
    }
}

fn hosts(method: &str, values: &[String]) -> Option<Vec<HostPattern>> {
    let mut hosts = Vec::new();
    for value in values {
        // `Host` may have a port.
        let name = value.split(':').next().unwrap_or(value);
        let read = match method {
            "str" | "dir" => name.parse().ok().map(|host| vec![host]),
            "end" => match name.strip_prefix('.') {
                Some(name) => format!("*.{name}").parse().ok().map(|host| vec![host]),
                None => HostPattern::several(&format!(".{name}")).ok(),
            },
            "dom" => HostPattern::several(&format!(".{}", name.trim_start_matches('.'))).ok(),
            "reg" => pattern::hosts(value, true),
            "found" => return None,
            _ => None,
        };
        hosts.extend(read?);
    }
    (!hosts.is_empty()).then_some(hosts)
}

struct Values {
    method: Option<String>,
    values: Vec<String>,
}

/// Flags and values of a criterion (7.1.3); values may be in a file.
fn values(words: &[&str], files: &dyn Files) -> Result<Values, String> {
    let mut method = None;
    let mut values = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match *word {
            "-i" | "-n" | "-u" => {}
            "--" => break,
            "-m" => method = words.next().map(|method| (*method).to_owned()),
            "-f" => {
                let file = words.next().copied().unwrap_or_default();
                let text = files.read(file).map_err(|error| format!("{file} cannot be read: {error}"))?;
                let lines =
                    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
                values.extend(lines.map(str::to_owned));
            }
            value => values.push(value.to_owned()),
        }
    }
    values.extend(words.map(|word| (*word).to_owned()));
    Ok(Values { method, values })
}
