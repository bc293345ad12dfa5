//! The archive: static programs with everything that the README's steps install.

use std::{fs, path::PathBuf, process::Command};

use anyhow::Result;

use super::{PROGRAMS, Parts, Release, gzip};
use crate::{command::run, setup};

/// Files and folders beside the programs.
const FILES: &[&str] =
    &["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "docs", "examples", "packaging"];

pub(super) fn make(release: &Release, parts: &Parts) -> Result<PathBuf> {
    let root = setup::root()?;
    let name = format!("edge-{}-{}", release.version, parts.target);
    let content = release.folder(&name)?;
    for program in PROGRAMS {
        fs::copy(parts.programs.join(program), content.join(program))?;
    }
    for file in FILES {
        run(Command::new("cp").arg("-r").arg(root.join(file)).arg(&content))?;
    }
    for folder in ["man", "completions"] {
        run(Command::new("cp").arg("-r").arg(parts.documents.join(folder)).arg(&content))?;
    }
    let archive = release.directory.join(format!("{name}.tar"));
    let _ = fs::remove_file(&archive);
    release.tar(&archive, &release.directory, 0, &[&name])?;
    gzip(&archive)
}
