//! `cargo xtask vm --system`: an emulated VPS as people rent it. The archive of `cargo xtask dist` is
//! installed by the README, and the machine goes through the events of its life.

mod agent;
mod architecture;
mod checks;
mod earlier;
mod home;
mod image;
mod machine;
mod network;
mod readme;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, ensure};

pub(super) use self::{architecture::Architecture, image::Debian};
use self::{
    checks::{CHECKS, Check, Visit},
    image::{Image, RELEASES},
    machine::Machine,
};
use super::emulator::Emulator;
use crate::{
    command::run,
    dist::{self, Dist},
    setup,
};

/// The options of a run.
pub(super) struct Plan<'a> {
    /// Releases; none means all.
    pub(super) releases: &'a [Debian],
    pub(super) architecture: Architecture,
    /// Only checks whose name contains one of these; none means all.
    pub(super) parts: &'a [String],
    /// An archive to install; none means that one is made.
    pub(super) archive: Option<&'a Path>,
    /// An archive of an earlier version; none means the one that the lab's upgrades start from.
    pub(super) before: Option<&'a Path>,
}

/// How a check ended.
enum Verdict {
    /// With what it found.
    Held(String),
    Failed(String),
    NotTried(String),
}

pub(super) fn known(number: &str) -> Result<Debian, String> {
    let found = RELEASES.iter().find(|debian| debian.number == number).copied();
    let all = || RELEASES.iter().map(|debian| debian.number).collect::<Vec<_>>().join(" or ");
    found.ok_or_else(|| format!("{} can be had", all()))
}

impl Plan<'_> {
    pub(super) fn run(&self) -> Result<()> {
        setup::lab()?;
        setup::packages(self.architecture.packages())?;
        let archive = match self.archive {
            Some(archive) => archive.to_owned(),
            None => Dist::of(&self.architecture.target())?,
        };
        let releases = if self.releases.is_empty() { RELEASES } else { self.releases };
        let mut rows = Vec::new();
        for &debian in releases {
            let started = Instant::now();
            println!("\n== Debian {}", debian.number);
            match self.visit(debian, &archive) {
                Ok(verdicts) => {
                    rows.extend(verdicts.into_iter().map(|(name, verdict)| (debian, name, verdict)));
                }
                Err(error) => rows.push((debian, "boot", Verdict::Failed(format!("{error:#}")))),
            }
            println!("Debian {}: {} s", debian.number, started.elapsed().as_secs());
        }
        println!();
        let (mut passed, mut failed) = (0, 0);
        for (debian, name, verdict) in &rows {
            let (word, text) = match verdict {
                Verdict::Held(text) => {
                    passed += 1;
                    ("ok       ", text)
                }
                Verdict::Failed(text) => {
                    failed += 1;
                    ("FAILED   ", text)
                }
                Verdict::NotTried(text) => ("not tried", text),
            };
            println!("Debian {:<3} {word} {name}: {text}", debian.number);
        }
        println!("{passed} passed, {failed} failed");
        ensure!(failed == 0, "{failed} checks failed");
        Ok(())
    }

    fn visit(&self, debian: Debian, archive: &Path) -> Result<Vec<(&'static str, Verdict)>> {
        let folder = setup::target()?.join("vm/system").join(format!(
            "{}-{}",
            debian.number,
            self.architecture.name()
        ));
        fs::create_dir_all(&folder)?;
        let emulator = Emulator::provide(self.architecture)?;
        let image = Image::provide(debian, self.architecture, &folder)?;
        let before = match self.before {
            Some(archive) => Some(archive.to_owned()),
            None if dist::is_own(&self.architecture.target()) => earlier::archive(&folder)?,
            None => None,
        };
        let parcel = parcel(&folder, archive, before.as_deref(), &self.architecture.target())?;
        let started = Instant::now();
        println!("booting (console: {})", folder.join("console.log").display());
        let machine = Machine::boot(emulator, image, &parcel, &folder)?;
        println!("booted after {} s", started.elapsed().as_secs());
        let mut visit = Visit::new(machine, before.is_some())?;
        let mut verdicts = Vec::new();
        for check in CHECKS {
            if !self.wants(check) {
                continue;
            }
            let started = Instant::now();
            let verdict = match (check.run)(&mut visit) {
                Ok(found) if found.is_empty() => Verdict::NotTried("no earlier version: --before".to_owned()),
                Ok(found) => Verdict::Held(found),
                Err(error) => Verdict::Failed(format!("{error:#}{}", visit.journal())),
            };
            let word = match &verdict {
                Verdict::Held(_) => "ok",
                Verdict::Failed(error) => error,
                Verdict::NotTried(reason) => reason,
            };
            println!("{:>5} s  {}: {word}", started.elapsed().as_secs(), check.name);
            verdicts.push((check.name, verdict));
        }
        Ok(verdicts)
    }

    fn wants(&self, check: &Check) -> bool {
        let is_chosen = self.parts.is_empty() || self.parts.iter().any(|part| check.name.contains(part));
        check.is_needed || is_chosen
    }
}

/// A tar archive with the archives and packages in it, as a disk that the machine reads.
fn parcel(folder: &Path, archive: &Path, before: Option<&Path>, target: &str) -> Result<PathBuf> {
    let content = folder.join("parcel");
    let _ = fs::remove_dir_all(&content);
    fs::create_dir_all(&content)?;
    fs::copy(archive, content.join("new.tar.gz"))
        .with_context(|| format!("copying {}", archive.display()))?;
    if let Some(before) = before {
        fs::copy(before, content.join("old.tar.gz"))
            .with_context(|| format!("copying {}", before.display()))?;
    }
    dist::deb::from_archive(archive, target, &content)?;
    let parcel = folder.join("parcel.tar");
    // Blocks of tar are sectors of a disk.
    run(Command::new("tar").arg("-C").arg(&content).arg("-cf").arg(&parcel).arg("."))?;
    Ok(parcel)
}
