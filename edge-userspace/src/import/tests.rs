//! The fixtures of `tests/import`: each folder has a configuration, what it becomes, and what is lost. After a change on
//! purpose, `EDGE_UPDATE_FIXTURES=1 cargo test import` writes the last two again.

use std::{collections::HashMap, fs, io, path::Path};

use super::*;

/// Files in memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    files: HashMap<String, String>,
    variables: HashMap<String, String>,
}

impl Memory {
    pub(super) fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    fn with_file(mut self, name: &str, text: &str) -> Self {
        self.files.insert(name.to_owned(), text.to_owned());
        self
    }
}

impl Files for Memory {
    fn read(&self, path: &str) -> io::Result<String> {
        self.files.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, pattern: &str) -> Vec<String> {
        vec![pattern.to_owned()]
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }
}

fn source(name: &str, text: &str) -> Source {
    Source { name: name.to_owned(), text: text.to_owned() }
}

#[test]
fn realistic_configurations_become_what_they_should() {
    let update = std::env::var_os("EDGE_UPDATE_FIXTURES").is_some();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import");
    let mut count = 0;
    let mut wrong = Vec::new();
    let mut folders: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders {
        let is_input =
            |name: &str| !["edge.toml", "lost.txt"].contains(&name) && !name.starts_with("included");
        let mut names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| is_input(name))
            .collect();
        names.sort();
        let sources: Vec<_> =
            names.iter().map(|name| source(name, &fs::read_to_string(folder.join(name)).unwrap())).collect();
        let imported = import(&sources, None, &Disk::beside(&folder.join("x"))).unwrap();
        let prefix = format!("{}/", folder.display());
        let lines: Vec<_> = imported.untranslated.iter().map(ToString::to_string).collect();
        let lost = if lines.is_empty() { String::new() } else { lines.join("\n") + "\n" };
        for (name, made) in [("edge.toml", &imported.text), ("lost.txt", &lost.replace(&prefix, ""))] {
            let made = made.replace(&prefix, "");
            let path = folder.join(name);
            if update {
                fs::write(&path, &made).unwrap();
            } else if fs::read_to_string(&path).unwrap_or_default() != made {
                wrong.push(format!("{}:\n{made}", path.display()));
            }
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 10, "only {count} fixtures");
}

#[test]
fn a_prefix_of_any_fixture_neither_panics_nor_makes_an_invalid_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/import");
    for folder in fs::read_dir(root).unwrap() {
        for file in fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)).step_by(7) {
                for format in [Format::Haproxy, Format::Nginx, Format::Sniproxy, Format::Traefik] {
                    let made = import(&[source("x", &text[..end])], Some(format), &Memory::default());
                    if let Err(Failure::Invalid(error)) = made {
                        panic!("{} up to {end} as {format:?}: {error}", path.display());
                    }
                }
            }
        }
    }
}

#[test]
fn hostile_nesting_and_includes_end() {
    let files = Memory::default().with_file("loop.conf", "include loop.conf;\n");
    let read = |text: &str, format| import(&[source("x", text)], Some(format), &files);
    assert!(read("stream { include loop.conf; }", Format::Nginx).is_err());
    assert!(read(&"a {".repeat(100_000), Format::Nginx).is_err());
    assert!(read(&"a {\n".repeat(100_000), Format::Sniproxy).is_err());
    assert!(read(&"a;".repeat(300_000), Format::Nginx).is_err());
    let maps = "stream { map $a $b { default $a; } map $b $a { default $b; } \
                server { listen 1; proxy_pass $a; ssl_preread on; } }";
    assert!(!read(maps, Format::Nginx).unwrap().serves);
    assert!(matches!(import(&[source("x", "hello\n")], None, &files), Err(Failure::Unknown)));
}

#[test]
fn a_rule_that_was_never_reached_is_left_out_and_an_earlier_condition_is_kept() {
    let text = "frontend f\n bind :443\n mode tcp\n\
                use_backend inside if { src 10.0.0.0/8 }\n\
                use_backend wide if { req.ssl_sni -m end .a.test }\n\
                use_backend narrow if { req.ssl_sni www.a.test }\n\
                use_backend other if { req.ssl_sni b.test }\n\
                backend inside\n server s 192.0.2.1:443\nbackend wide\n server s 192.0.2.2:443\n\
                backend narrow\n server s 192.0.2.3:443\nbackend other\n server s 192.0.2.4:443\n";
    let imported = import(&[source("h", text)], None, &Memory::default()).unwrap();
    assert!(!imported.text.contains("192.0.2.3"), "{}", imported.text);
    assert!(imported.untranslated.iter().any(|lost| lost.line == 6 && lost.why.contains("line 5")));
    let inside = imported.text.split("\n\n").find(|table| table.contains("192.0.2.1")).unwrap();
    assert!(inside.contains("b.test") && inside.contains("*.a.test"), "{inside}");
}
