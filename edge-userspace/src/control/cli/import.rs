//! `edgectl import`: another program's configuration read here; asks no daemon.

use std::{
    fs,
    io::{self, Write as _},
};

use serde::Serialize;

use super::{
    Failure, Output,
    arguments::Import,
    style::{self, printable},
};
use crate::import::{Disk, Format, Source, Untranslated, import, read_text};

/// The output with `--json`.
#[derive(Serialize)]
struct Translated<'i> {
    format: Format,
    config: &'i str,
    untranslated: &'i [Untranslated],
}

pub(super) fn run(arguments: &Import, output: Output) -> Result<(), Failure> {
    let mut sources = Vec::new();
    for path in &arguments.files {
        let name = path.display().to_string();
        let text =
            read_text(path).map_err(|error| Failure::File(format!("{name}: cannot be read: {error}")))?;
        sources.push(Source { name, text });
    }
    let files = Disk::beside(arguments.files.first().map_or("".as_ref(), |path| path));
    let imported = import(&sources, arguments.format.map(Into::into), &files)
        .map_err(|failure| Failure::File(failure.to_string()))?;
    match &arguments.output {
        Some(path) => {
            let name = path.display();
            let new = fs::File::options().write(true).create_new(true).open(path);
            new.and_then(|mut file| file.write_all(imported.text.as_bytes())).map_err(|error| {
                let hint =
                    if error.kind() == io::ErrorKind::AlreadyExists { "; remove it first" } else { "" };
                Failure::File(format!("{name}: cannot be written: {error}{hint}"))
            })?;
        }
        None if !output.json => style::write(imported.text.as_bytes())?,
        None => {}
    }
    if output.json {
        let translated = Translated {
            format: imported.format,
            config: &imported.text,
            untranslated: &imported.untranslated,
        };
        style::write_lines([serde_json::to_string(&translated).map_err(io::Error::other)?])?;
    } else {
        let mut stderr = io::stderr().lock();
        for lost in &imported.untranslated {
            writeln!(stderr, "{}", printable(&lost.to_string()))?;
        }
    }
    if imported.serves {
        Ok(())
    } else {
        Err(Failure::File("nothing in it leads a client anywhere that edge can".to_owned()))
    }
}
