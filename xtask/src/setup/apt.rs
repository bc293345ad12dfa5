//! Packages that are unpacked into a folder instead of being installed: those of another Debian suite, and
//! those that conflict with installed ones. The machine stays as it is.

use std::{
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::command::{output, run};

/// The keys that Debian signs its suites with, newer ones included.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// dpkg's list of installed packages.
const STATUS: &str = "/var/lib/dpkg/status";

/// An apt with files of its own in place of the machine's.
pub(crate) struct Apt {
    folder: PathBuf,
    options: Vec<String>,
}

impl Apt {
    /// An apt that knows one suite and no installed packages. Reads the suite's lists into `folder`, which is
    /// recreated.
    pub(crate) fn of(suite: &str, folder: &Path) -> Result<Self> {
        let mut apt = Self::with_status(folder, "")?;
        let archive = archive(suite)?;
        fs::write(folder.join("sources"), format!("deb [signed-by={KEYRING}] {archive} {suite} main\n"))?;
        apt.set("Dir::Etc::sourcelist", folder.join("sources").display());
        apt.set("Dir::Etc::sourceparts", folder.join("none").display());
        apt.set("Dir::State::lists", folder.join("lists").display());
        run(apt.command("apt-get").arg("-q").arg("update"))
            .with_context(|| format!("reading the packages of Debian {suite}"))?;
        Ok(apt)
    }

    /// An apt with this machine's suites. It considers all their packages installed, except those with these
    /// names.
    pub(crate) fn without(packages: &[String], folder: &Path) -> Result<Self> {
        let installed = fs::read_to_string(STATUS).with_context(|| format!("reading {STATUS}"))?;
        let stays = |paragraph: &&str| {
            let name = paragraph.lines().find_map(|line| line.strip_prefix("Package: "));
            !packages.iter().any(|package| Some(package.as_str()) == name)
        };
        let rest: Vec<_> = installed.split("\n\n").filter(stays).collect();
        Self::with_status(folder, &rest.join("\n\n"))
    }

    fn with_status(folder: &Path, status: &str) -> Result<Self> {
        let _ = fs::remove_dir_all(folder);
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part))?;
        }
        fs::write(folder.join("status"), status)?;
        let mut apt = Self { folder: folder.to_owned(), options: Vec::new() };
        apt.set("Dir::State::status", folder.join("status").display());
        apt.set("Dir::Cache", folder.join("cache").display());
        // Names and versions are enough, and apt's own user may not write here.
        apt.set("Acquire::Languages", "none");
        apt.set("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", "false");
        apt.set("APT::Sandbox::User", "root");
        Ok(apt)
    }

    fn set(&mut self, option: &str, value: impl Display) {
        self.options.extend(["-o".to_owned(), format!("{option}={value}")]);
    }

    /// The packages that `package` depends on.
    pub(crate) fn dependencies(&self, package: &str) -> Result<Vec<String>> {
        let text = output(self.command("apt-cache").args(["depends", package]))?;
        Ok(text.lines().filter_map(|line| Some(line.trim().strip_prefix("Depends: ")?.to_owned())).collect())
    }

    /// Unpacks packages and returns their folder, until [`keep`](Self::keep) moves it into place.
    pub(crate) fn unpack(&self, packages: &[&str]) -> Result<PathBuf> {
        run(self.command("apt-get").arg("-q").arg("download").args(packages))?;
        self.unpack_all(&self.folder)
    }

    /// Unpacks packages with all their dependencies that are not installed, as [`unpack`](Self::unpack) does.
    pub(crate) fn unpack_with_dependencies(&self, packages: &[&str]) -> Result<PathBuf> {
        let mut download = self.command("apt-get");
        download.args(["-q", "-y", "--no-install-recommends", "--no-remove", "--download-only", "install"]);
        run(download.args(packages))?;
        self.unpack_all(&self.folder.join("cache/archives"))
    }

    fn unpack_all(&self, folder: &Path) -> Result<PathBuf> {
        let unpacked = self.unpacked();
        for entry in fs::read_dir(folder)? {
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
        command.current_dir(&self.folder).args(&self.options);
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
