//! haproxy.cfg: frontends in TCP mode that choose by SNI, frontends in HTTP mode that choose by Host, and their backends
//! (HAProxy configuration manual, 2.1 to 4).

mod acl;
mod backend;
mod frontend;
mod lex;

use std::{collections::HashMap, sync::Arc, time::Duration};

use self::{frontend::Frontend, lex::Line};
use super::{
    Files, Source,
    model::{Model, Place, To},
};

/// One section: the words of its title and its lines.
struct Section {
    title: Vec<String>,
    place: Place,
    lines: Vec<Line>,
}

impl Section {
    fn kind(&self) -> &str {
        self.title.first().map_or("", |word| word)
    }

    fn name(&self) -> &str {
        self.title.get(1).map_or("", |word| word)
    }
}

/// The settings of the last `defaults` section.
#[derive(Clone, Debug, Default)]
struct Defaults {
    http: bool,
    connect: Option<Duration>,
    client: Option<Duration>,
    server: Option<Duration>,
    tunnel: Option<Duration>,
    balance: Option<Vec<String>>,
    default_backend: Option<String>,
}

impl Defaults {
    /// Takes a line if it is one of these settings.
    fn take(&mut self, words: &[String]) -> bool {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match *words {
            ["mode", mode] => self.http = mode == "http",
            ["timeout", "connect", time] => self.connect = lex::time(time),
            ["timeout", "client" | "clitimeout", time] => self.client = lex::time(time),
            ["timeout", "server" | "srvtimeout", time] => self.server = lex::time(time),
            ["timeout", "tunnel", time] => self.tunnel = lex::time(time),
            _ => return false,
        }
        true
    }

    /// For how long nothing may move: `timeout tunnel` replaces those of both sides.
    fn idle(&self) -> Option<Duration> {
        self.tunnel.or_else(|| self.client.max(self.server))
    }
}

pub(super) fn read(sources: &[Source], files: &dyn Files, model: &mut Model) {
    let mut defaults = Defaults::default();
    let mut fronts: Vec<(Frontend, Defaults)> = Vec::new();
    let mut backends: HashMap<String, Defaults> = HashMap::new();
    for section in sections(sources, files, model) {
        match section.kind() {
            "global" => global(&section, model),
            "defaults" => {
                defaults = Defaults::default();
                for line in &section.lines {
                    match line.words()[..] {
                        ["balance", ..] => defaults.balance = Some(line.words.clone()),
                        ["default_backend", name] => defaults.default_backend = Some(name.to_owned()),
                        _ if defaults.take(&line.words) || lex::is_needless(&line.words) => {}
                        _ => model.lose(&line.place, line.text(), frontend::reason(&line.words)),
                    }
                }
            }
            "frontend" | "listen" => {
                let mut own = defaults.clone();
                let front = frontend::read(&section, &mut own, files, model);
                if section.kind() == "listen" {
                    let mut own = defaults.clone();
                    let pool = backend::read(&section, &mut own, model);
                    if !pool.backends.is_empty() {
                        model.pools.push(pool);
                    }
                }
                fronts.push((front, own));
            }
            "backend" => {
                let mut own = defaults.clone();
                let pool = backend::read(&section, &mut own, model);
                backends.insert(pool.name.clone(), own);
                model.pools.push(pool);
            }
            "resolvers" => {
                let why = "edge asks the system's name servers; [resolver] names others";
                model.lose(&section.place, section.title.join(" "), why);
            }
            _ => model.lose(&section.place, section.title.join(" "), "edge has nothing like this section"),
        }
    }
    for (front, mut own) in fronts {
        // The timeouts of the server's side are the backend's.
        let first = front.rules.iter().find_map(|rule| match &rule.to {
            To::Pool(name) => backends.get(name),
            _ => None,
        });
        if let Some(backend) = first {
            own.server = backend.server;
            own.tunnel = backend.tunnel.or(own.tunnel);
        }
        frontend::finish(front, &own, model);
    }
}

fn sections(sources: &[Source], files: &dyn Files, model: &mut Model) -> Vec<Section> {
    const KEYWORDS: [&str; 19] = [
        "global",
        "defaults",
        "frontend",
        "backend",
        "listen",
        "resolvers",
        "peers",
        "userlist",
        "mailers",
        "cache",
        "program",
        "ring",
        "http-errors",
        "fcgi-app",
        "log-forward",
        "crt-store",
        "traces",
        "log-profile",
        "acme",
    ];
    let mut sections: Vec<Section> = Vec::new();
    for source in sources {
        let name = Arc::from(source.name.as_str());
        for line in lex::lines(&source.text, &name, files) {
            match line.words.first() {
                Some(first) if KEYWORDS.contains(&first.as_str()) => {
                    sections.push(Section { title: line.words, place: line.place, lines: Vec::new() });
                }
                Some(first) if first.starts_with('.') => {
                    model.lose(&line.place, line.text(), "conditional blocks are read as if they all held");
                }
                _ => match sections.last_mut() {
                    Some(section) => section.lines.push(line),
                    None => model.lose(&line.place, line.text(), "it stands in no section"),
                },
            }
        }
    }
    sections
}

fn global(section: &Section, model: &mut Model) {
    for line in &section.lines {
        match line.words()[..] {
            ["maxconn", number] => model.connections = number.parse().unwrap_or(0),
            _ if lex::is_needless(&line.words) => {}
            [first, ..]
                if first.starts_with("ssl-") || first.starts_with("tune.") || first.ends_with("-base") => {}
            _ => model.lose(&line.place, line.text(), "edge has no such setting"),
        }
    }
}
