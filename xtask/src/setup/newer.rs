//! Programs that this machine's Debian lacks or has in too old a version. They come from packages of the
//! testing suite, unpacked into a folder beside the builds. The machine stays as it is.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{apt::Apt, target};

/// The packages; each has one program of its name that needs nothing beside libc.
const PACKAGES: &[&str] = &[
    "caddy",  // 2.11: its PROXY protocol listener
    "pebble", // a certificate authority for tests
];
/// Where the packages come from.
const SUITE: &str = "testing";

/// Unpacks what is not there yet.
pub(super) fn programs() -> Result<()> {
    let folder = target()?.join("peers");
    if PACKAGES.iter().all(|package| program(&folder, package).is_file()) {
        return Ok(());
    }
    eprintln!("unpacking {} of Debian {SUITE}", PACKAGES.join(" "));
    let apt = Apt::of(SUITE, &target()?.join("peers-apt"))?;
    let unpacked = apt.unpack(PACKAGES)?;
    for package in PACKAGES {
        let program = program(&unpacked, package);
        ensure!(program.is_file(), "the package {package} of Debian {SUITE} has no {}", program.display());
    }
    apt.keep(&folder)
}

fn program(folder: &Path, package: &str) -> PathBuf {
    folder.join("usr/bin").join(package)
}
