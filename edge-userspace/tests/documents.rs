//! The documents say nothing that the programs do not understand: every configuration, every command of
//! `edgectl`, every link.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use edge::config::Settings;

/// The Markdown files that operators read, with their text.
fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let listed = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let markdown = listed.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let files = markdown.chain([root.join("README.md"), root.join("CONTRIBUTING.md")]);
    files.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

/// The fenced blocks in a language, each with the number of its first line, counted from 1.
fn blocks(text: &str, language: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut current: Option<(usize, bool, usize, String)> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut current, line.trim_start().strip_prefix("```")) {
            (None, Some(of)) => {
                let indent = line.len() - line.trim_start().len();
                current = Some((number + 2, of == language, indent, String::new()));
            }
            (Some(_), Some(_)) => {
                let (first, wanted, _, body) = current.take().unwrap();
                blocks.extend(wanted.then_some((first, body)));
            }
            (Some((_, _, indent, body)), None) => {
                body.push_str(line.get(*indent..).unwrap_or_default());
                body.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

#[test]
fn every_configuration_in_the_documents_is_accepted() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (path, text) in documents() {
        for (line, block) in blocks(&text, "toml") {
            count += 1;
            if let Err(error) = Settings::parse("edge.toml", &block) {
                wrong.push(format!("{}, the block at line {line}: {error}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 20, "the documents have {count} configurations");
}

/// `--help` behind a command keeps it from doing anything; what stands before that has to be understood.
#[test]
fn every_command_in_the_documents_is_understood() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for (path, text) in documents() {
        for (line, block) in blocks(&text, "console") {
            let typed = block.lines().filter_map(|line| line.strip_prefix("# ").or(line.strip_prefix("$ ")));
            for command in typed.filter_map(|line| line.strip_prefix("edgectl ")) {
                count += 1;
                let command = command.split("  #").next().unwrap();
                let edgectl = Command::new(env!("CARGO_BIN_EXE_edgectl"))
                    .args(command.split_whitespace().take_while(|word| *word != ">"))
                    .arg("--help")
                    .output()
                    .unwrap();
                if !edgectl.status.success() {
                    let said = String::from_utf8_lossy(&edgectl.stderr);
                    wrong
                        .push(format!("{}, block at line {line}: edgectl {command}: {said}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 8, "the documents have {count} commands of edgectl");
}

#[test]
fn every_link_between_the_documents_leads_somewhere() {
    let documents = documents();
    let mut wrong = Vec::new();
    for (path, text) in &documents {
        for link in links(text) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let Ok(target) = target.canonicalize() else {
                wrong.push(format!("{}: {link}: there is no such file", path.display()));
                continue;
            };
            let known = documents.iter().find(|(path, _)| *path == target);
            if !anchor.is_empty() && !known.is_some_and(|(_, text)| anchors(text).contains(anchor)) {
                wrong.push(format!("{}: {link}: there is no such heading", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_book_has_every_document() {
    let documents = documents();
    let (summary, text) = documents.iter().find(|(path, _)| path.ends_with("SUMMARY.md")).unwrap();
    let listed: BTreeSet<_> = links(text).into_iter().map(|link| summary.with_file_name(link)).collect();
    let there: BTreeSet<_> = documents
        .iter()
        .map(|(path, _)| path.clone())
        .filter(|path| path.parent() == summary.parent() && path != summary)
        .collect();
    assert_eq!(listed, there);
}

/// The targets of links that are not addresses, outside of code.
fn links(text: &str) -> Vec<&str> {
    let mut is_code = false;
    let mut links = Vec::new();
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        if is_code {
            continue;
        }
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        links.extend(targets.map(|(target, _)| target).filter(|target| !target.contains("://")));
    }
    links
}

/// The anchors of the headings, as forges and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        is_code ^= line.trim_start().starts_with("```");
        let Some(heading) = line.strip_prefix('#').filter(|_| !is_code) else { continue };
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|one| one.is_alphanumeric() || " -_".contains(*one));
        anchors.insert(kept.collect::<String>().replace(' ', "-"));
    }
    anchors
}
