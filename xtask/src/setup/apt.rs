//! Packages of a Debian suite that may be another than this machine's, unpacked into a folder. The machine stays as
//! it is.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::command::{output, run};

/// What Debian signs its suites with, newer ones included.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt with lists of its own, which knows nothing but one suite.
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Reads the lists of `suite` into `folder`, which is made anew.
    pub(crate) fn of(suite: &str, folder: &Path) -> Result<Self> {
        let _ = fs::remove_dir_all(folder);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("status"), "")?;
        let archive = archive(suite)?;
        fs::write(folder.join("sources"), format!("deb [signed-by={KEYRING}] {archive} {suite} main\n"))?;
        let apt = Self { folder: folder.to_owned() };
        run(apt.command("apt-get").arg("-q").arg("update"))
            .with_context(|| format!("reading the packages of Debian {suite}"))?;
        Ok(apt)
    }

    /// The packages that `package` depends on.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = output(self.command("apt-cache").args(["depends", package]))?;
        Ok(text.lines().filter_map(|line| Some(line.trim().strip_prefix("Depends: ")?.to_owned())).collect())
    }

    /// Unpacks packages and gives the folder they are in, until [`keep`](Self::keep) gives it its place.
    pub(crate) fn unpack(&self, packages: &[&str]) -> Result<PathBuf> {
        run(self.command("apt-get").arg("-q").arg("download").args(packages))?;
        let unpacked = self.unpacked();
        for entry in fs::read_dir(&self.folder)? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&unpacked))?;
            }
        }
        Ok(unpacked)
    }

    /// Moves what was unpacked to `folder`, in place of what is there, and removes everything else.
    pub(crate) fn keep(self, folder: &Path) -> Result<()> {
        let _ = fs::remove_dir_all(folder);
        fs::rename(self.unpacked(), folder)?;
        Ok(fs::remove_dir_all(&self.folder)?)
    }

    fn unpacked(&self) -> PathBuf {
        self.folder.join("unpacked")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        for (key, part) in [
            ("Dir::Etc::sourcelist", "sources"),
            ("Dir::Etc::sourceparts", "none"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{key}={}", self.folder.join(part).display()));
        }
        // Names and versions are enough, and apt's own user may not write here.
        for option in [
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "APT::Sandbox::User=root",
        ] {
            command.args(["-o", option]);
        }
        command
    }
}

/// The archive that this machine takes Debian's packages from.
pub(crate) fn archive(suite: &str) -> Result<String> {
    let known = || {
        output(Command::new("apt-get").args([
            "indextargets",
            "--format",
            "$(REPO_URI)",
            "Created-By: Packages",
            "Origin: Debian",
            "Label: Debian",
            "Component: main",
        ]))
    };
    let mut archives = known()?;
    if archives.trim().is_empty() {
        // The origin stands in lists that were never read.
        run(Command::new("apt-get").args(["-q", "update"]))?;
        archives = known()?;
    }
    match archives.lines().next() {
        Some(archive) => Ok(archive.to_owned()),
        None => bail!("no source of this machine's apt is Debian, whose suite {suite} is needed"),
    }
}
