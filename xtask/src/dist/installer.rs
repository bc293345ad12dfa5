//! `install.sh`, which downloads a release, checks it and installs it.

use std::{fs, path::PathBuf};

use anyhow::{Result, ensure};

use super::{Release, write};
use crate::setup;

/// Where `packaging/install.sh` has the address of the release.
const URL: &str = "@URL@";

/// The script of this release, which is found at `url`.
pub(super) fn make(release: &Release, url: Option<&str>) -> Result<PathBuf> {
    let mut script = fs::read_to_string(setup::root()?.join("packaging/install.sh"))?;
    ensure!(script.matches(URL).count() == 1, "packaging/install.sh has {URL} in one place");
    if let Some(url) = url {
        script = script.replace(URL, url.trim_end_matches('/'));
    }
    let file = release.directory.join("install.sh");
    write(&file, script.as_bytes(), 0o755)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
