//! The version from which a machine is upgraded by default: the last one whose pinned maps have another
//! layout.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;
use lab::older;

use crate::{command::run, setup};

/// Packs that version's daemon, as the lab builds it for this machine, and its unit. `None`, with a message,
/// if the repository does not have the commit.
pub(super) fn archive(folder: &Path) -> Result<Option<PathBuf>> {
    let commit = older::LAYOUT_2;
    let Some(programs) = older::programs(commit)? else { return Ok(None) };
    let content = folder.join("earlier");
    let _ = fs::remove_dir_all(&content);
    let tree = content.join("edge");
    fs::create_dir_all(&tree)?;
    let packaging = content.join("packaging.tar");
    let mut git = Command::new("git");
    git.arg("-C").arg(setup::root()?).args(["archive", "--format=tar", "-o"]).arg(&packaging);
    run(git.args([commit, "packaging"]))?;
    run(Command::new("tar").arg("-xf").arg(&packaging).arg("-C").arg(&tree))?;
    fs::copy(programs.join("edged"), tree.join("edged"))?;
    let archive = folder.join("earlier.tar.gz");
    run(Command::new("tar").arg("-C").arg(&content).arg("-czf").arg(&archive).arg("edge"))?;
    Ok(Some(archive))
}
