//! Which room may know which: the table "Rooms" in `docs/inside.md`, compared with the code.
//!
//! An arrow is any path that begins with `crate::` or `edge_common::` and is not in a comment: in a `use` line or in an
//! expression, test modules included. The binaries and `lib.rs` are wiring and may name every room.

#![expect(clippy::unwrap_used, reason = "a file or a table that is not as expected fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const TABLE: &str = include_str!("../../docs/inside.md");
/// The room with the system calls that need `unsafe`.
const UNSAFE: &str = "kernel";

#[test]
fn no_room_knows_more_than_it_may() {
    let table = table();
    let mut offences = Vec::new();
    for (room, files) in rooms() {
        let Some(may_know) = table.get(&room).map(|row| &row.may_know) else {
            offences.push(format!("edge-userspace/src: the room {room} has no row"));
            continue;
        };
        for file in files {
            let text = fs::read_to_string(source().join(&file)).unwrap();
            let place = |line: usize| format!("edge-userspace/src/{}:{line}", file.display());
            for (line, known) in arrows(&text) {
                if known != room && !may_know.contains(&known) {
                    offences.push(format!("{}: {room} → {known}", place(line)));
                }
            }
            offences
                .extend(escapes(&file, &text).map(|line| format!("{}: `super` leaves {room}", place(line))));
        }
    }
    assert!(
        offences.is_empty(),
        "docs/inside.md, \"Rooms\", does not allow:\n{}\nmove what both rooms need to one in a row above, or change the table",
        offences.join("\n")
    );
}

/// Each room is in a row below all that it may know.
#[test]
fn the_table_has_no_circle() {
    let table = table();
    for (room, Row { at, may_know }) in &table {
        for known in may_know {
            let below = table.get(known).unwrap_or_else(|| panic!("{room} → {known}: there is no such room"));
            assert!(below.at < *at, "{room} → {known}: {known} has to stand in a row above {room}");
        }
    }
    let there: BTreeSet<String> = rooms().into_keys().collect();
    for room in table.keys().filter(|room| *room != "edge-common") {
        assert!(
            there.contains(room),
            "the table has a row for {room}, and edge-userspace/src has no such room"
        );
    }
}

#[test]
fn only_the_kernel_room_may_be_unsafe() {
    for (room, files) in rooms().into_iter().filter(|(room, _)| room != UNSAFE) {
        let root = files.iter().find(|file| is_root(file)).unwrap();
        let text = fs::read_to_string(source().join(root)).unwrap();
        let first = text.lines().find(|line| !line.is_empty() && !line.starts_with("//!"));
        assert_eq!(
            first,
            Some("#![forbid(unsafe_code)]"),
            "edge-userspace/src/{}: the first line of code in {room}",
            root.display()
        );
    }
}

#[test]
fn arrows_are_seen_wherever_they_are_written() {
    let text = "\
use crate::{
    pool::{self, Backend}, // crate::comment
    spec::ClientProtocol as S,
};
//! [`crate::comment`]
pub(crate) use crate::route;
fn url() -> u8 { f(\"https://x\", crate::kernel::tcp::info); edge_common::flow::LABEL_BYTES }
";
    let seen = arrows(text);
    let seen: Vec<_> = seen.iter().map(|(line, room)| (*line, &**room)).collect();
    assert_eq!(seen, [(2, "pool"), (3, "spec"), (6, "route"), (7, "kernel"), (7, "edge-common")]);

    let escaped = |file: &str, text| escapes(Path::new(file), text).collect::<Vec<_>>();
    assert_eq!(escaped("hash.rs", "use super::pool;\nmod tests {\n    use super::*;\n}\n"), [1]);
    assert_eq!(escaped("pool/warm.rs", "use super::stock;\nuse super::super::route;\n"), [2]);
    assert_eq!(escaped("pool/warm.rs", "mod tests {\n    use super::super::stock;\n}\n"), [0; 0]);
}

/// One room of the table.
struct Row {
    /// Its row; two rooms may share one.
    at: usize,
    may_know: BTreeSet<String>,
}

/// The rooms of edge-userspace, and edge-common.
fn table() -> BTreeMap<String, Row> {
    let rooms = TABLE.split("\n## ").find_map(|section| section.strip_prefix("Rooms\n")).unwrap();
    let mut table = BTreeMap::new();
    for (at, row) in rooms.lines().filter(|line| line.starts_with("| `")).enumerate() {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let may_know: BTreeSet<String> = quoted(cells[3]).map(String::from).collect();
        assert!(
            !may_know.is_empty() || ["", "nothing"].contains(&cells[3]),
            "{:?} is no list of rooms",
            cells[3]
        );
        for path in quoted(cells[1]) {
            let inside = path.strip_prefix("…/").or_else(|| path.strip_prefix("edge-userspace/src/"));
            if let Some(room) = inside.or((path == "edge-common").then_some(path)) {
                table.insert(room.to_owned(), Row { at, may_know: may_know.clone() });
            }
        }
    }
    table
}

/// The texts between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The files of each room, below `src`. A room is a folder or one file.
fn rooms() -> BTreeMap<String, Vec<PathBuf>> {
    let mut rooms = BTreeMap::<String, Vec<PathBuf>>::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(source().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if source().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                rooms.entry(modules(&path)[0].clone()).or_default().push(path);
            }
        }
    }
    rooms.retain(|room, _| room != "lib" && room != "bin");
    rooms
}

/// The modules that a file is in, its own the last: `route/table.rs` is `route`, `table`.
fn modules(file: &Path) -> Vec<String> {
    let mut modules: Vec<_> =
        file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    modules.pop_if(|last| last == "mod");
    modules
}

fn is_root(file: &Path) -> bool {
    modules(file).len() == 1
}

/// The lines without their comments. Behind an odd number of quotation marks `//` is in a text.
fn without_comments(text: &str) -> String {
    let code = |line: &str| {
        let end = line
            .match_indices("//")
            .map(|(at, _)| at)
            .find(|at| line[..*at].matches('"').count().is_multiple_of(2));
        format!("{}\n", &line[..end.unwrap_or(line.len())])
    };
    text.lines().map(code).collect()
}

/// The rooms that a file names, each with its line.
fn arrows(text: &str) -> Vec<(usize, String)> {
    let code = without_comments(text);
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    let starts = code.match_indices("crate::").filter(|(at, _)| !code[..*at].ends_with(is_of_name));
    let mut found: Vec<_> = starts
        .flat_map(|(at, start)| first_names(&code, at + start.len()))
        .map(|(at, name)| (at, name.to_owned()))
        .collect();
    found.extend(code.match_indices("edge_common::").map(|(at, _)| (at, "edge-common".to_owned())));
    found.sort();
    found.into_iter().map(|(at, room)| (line(at), room)).collect()
}

/// The name at `at`; where a group is opened there, the first name of each of its members.
fn first_names(code: &str, at: usize) -> Vec<(usize, &str)> {
    let name = |at: usize| {
        let at = at + code[at..].len() - code[at..].trim_start().len();
        let rest = &code[at..];
        (at, &rest[..rest.find(|next| !is_of_name(next)).unwrap_or(rest.len())])
    };
    if !code[at..].starts_with('{') {
        return vec![name(at)];
    }
    let mut depth = 0;
    let mut names = Vec::new();
    for (offset, character) in code[at..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        match (depth, character) {
            (0, _) => break,
            (1, '{' | ',') => names.push(name(at + offset + 1)),
            _ => {}
        }
    }
    names.retain(|(_, name)| !name.is_empty());
    names
}

fn is_of_name(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The lines in which as many `super` follow each other as lead out of the room. Whatever is indented below a `mod` with
/// a body counts as one module deeper.
fn escapes(file: &Path, text: &str) -> impl Iterator<Item = usize> {
    let depth = modules(file).len();
    let mut inline = 0;
    let mut lines = Vec::new();
    for (index, line) in without_comments(text).lines().enumerate() {
        if line.contains("mod ") && line.ends_with('{') {
            inline = 1;
        } else if line == "}" {
            inline = 0;
        }
        if line.contains(&"super::".repeat(depth + inline)) {
            lines.push(index + 1);
        }
    }
    lines.into_iter()
}
