//! Packages for which apt would have to remove installed ones. They are unpacked into a folder beside the
//! builds, with their dependencies. If there is no conflict, they are installed like all others.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{apt::Apt, is_installed, packages, target};
use crate::command::{output, run};

/// In an unpacked tree: the names of the packages it was made for.
const WANTED: &str = "wanted";

/// Where the files of some packages are.
pub(crate) struct Tree {
    /// `/` where they are installed.
    root: PathBuf,
    /// Folders with shared libraries, for the dynamic loader; empty if it finds them by itself.
    libraries: OsString,
}

impl Tree {
    /// Installs packages, or unpacks them below `tools/NAME` of the builds. Quick if they are present.
    pub(crate) fn provide(name: &str, wanted: &[&str]) -> Result<Self> {
        let root = target()?.join("tools").join(name);
        let names = wanted.join(" ");
        if fs::read_to_string(root.join(WANTED)).is_ok_and(|made_for| made_for == names) {
            return Self::unpacked(root);
        }
        if !wanted.iter().all(|package| is_installed(package)) {
            let obstacles = removals(wanted)?;
            if !obstacles.is_empty() {
                eprintln!("unpacking {names}, which apt installs only in place of {}", obstacles.join(", "));
                let apt = Apt::without(&obstacles, &root.with_extension("apt"))?;
                let unpacked = apt.unpack_with_dependencies(wanted)?;
                fs::write(unpacked.join(WANTED), &names)?;
                apt.keep(&root)?;
                return Self::unpacked(root);
            }
        }
        packages(wanted)?;
        Ok(Self { root: PathBuf::from("/"), libraries: OsString::new() })
    }

    fn unpacked(root: PathBuf) -> Result<Self> {
        let mut find = Command::new("find");
        find.args(["usr/lib", "lib", "-name", "*.so*", "-printf", "%h\\n"]).current_dir(&root);
        // Either folder may be missing, of which find complains.
        let found = String::from_utf8_lossy(&find.output()?.stdout).into_owned();
        let mut folders: Vec<_> = found.lines().map(|folder| root.join(folder)).collect();
        folders.sort();
        folders.dedup();
        Ok(Self { libraries: env::join_paths(folders)?, root })
    }

    /// Where a file or folder of the packages is; `path` is relative to the root.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Lets a command, and what it starts, run programs of the packages.
    pub(crate) fn prepare(&self, command: &mut Command) {
        if !self.libraries.is_empty() {
            command.env("LD_LIBRARY_PATH", &self.libraries);
        }
    }
}

/// Whether packages are installed, or can be without removing others.
pub(super) fn fits(wanted: &[&str]) -> Result<bool> {
    Ok(wanted.iter().all(|package| is_installed(package)) || removals(wanted)?.is_empty())
}

/// The packages that apt would remove to install these. Empty if apt cannot tell; the installation then
/// reports the error better.
fn removals(wanted: &[&str]) -> Result<Vec<String>> {
    if !Path::new("/usr/bin/apt-get").exists() {
        return Ok(Vec::new());
    }
    run(Command::new("apt-get").args(["-q", "update"]))?;
    let mut apt = Command::new("apt-get");
    apt.env("LC_ALL", "C").args(["install", "--simulate", "--no-install-recommends"]);
    let simulated = output(apt.args(wanted)).unwrap_or_default();
    Ok(removed(&simulated).map(str::to_owned).collect())
}

/// The packages that a simulation removes: `Remv NAME [VERSION]`.
fn removed(simulated: &str) -> impl Iterator<Item = &str> {
    simulated.lines().filter_map(|line| line.strip_prefix("Remv ")?.split([' ', ':']).next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulation_names_what_it_removes() {
        let simulated = "Reading package lists...\nRemv qemu-utils [1:10.0.2]\nRemv libx:amd64 [2]\nInst qemu-system-x86 (1:7.2 Debian)\n";
        assert_eq!(removed(simulated).collect::<Vec<_>>(), ["qemu-utils", "libx"]);
    }
}
