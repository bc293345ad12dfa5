//! `cargo xtask dist`: makes the archives that users install, one per architecture, with static binaries.
//!
//! The archives of a commit are identical wherever the same tool-chain made them.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use sha2::{Digest as _, Sha256};

use crate::{
    command::{cargo, output, run},
    setup,
};

/// Static by musl, so that they run on any distribution.
pub(crate) const TARGETS: &[&str] = &["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];
/// The programs.
pub(crate) const PROGRAMS: &[&str] = &["edged", "edgectl"];
/// Files beside the programs.
const FILES: &[&str] =
    &["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE", "docs", "examples", "packaging"];

#[derive(Args)]
pub(crate) struct Dist {
    /// Only for this target
    #[arg(long, value_name = "TRIPLE")]
    target: Vec<String>,
}

impl Dist {
    /// The task as a run of the tests performs it: only the archive for this machine.
    pub(crate) fn own() -> Self {
        Self {
            target: TARGETS.iter().filter(|target| is_own(target)).map(|&target| target.to_owned()).collect(),
        }
    }

    pub(crate) fn run(&self) -> Result<()> {
        let targets: Vec<&str> = match self.target.as_slice() {
            [] => TARGETS.to_vec(),
            wanted => wanted.iter().map(String::as_str).collect(),
        };
        let mut sums = String::new();
        for target in targets {
            let archive = Self::of(target)?;
            let name = archive.file_name().context("an archive has a name")?.to_string_lossy();
            writeln!(sums, "{:x}  {name}", Sha256::digest(fs::read(&archive)?))?;
            println!("{}", archive.display());
        }
        fs::write(directory()?.join("SHA256SUMS"), sums)?;
        Ok(())
    }

    /// The archive for one target.
    pub(crate) fn of(target: &str) -> Result<PathBuf> {
        let time = output(Command::new("git").args(["log", "-1", "--format=%ct"]))
            .context("the archives carry the time of the last commit")?;
        let directory = directory()?;
        fs::create_dir_all(&directory)?;
        archive(&directory, target, time.trim())
    }
}

/// Whether this machine runs the programs of a target.
pub(crate) fn is_own(target: &str) -> bool {
    target.starts_with(env::consts::ARCH)
}

fn directory() -> Result<PathBuf> {
    Ok(setup::target()?.join("dist"))
}

fn archive(directory: &Path, target: &str, time: &str) -> Result<PathBuf> {
    let built = build(target, "release")?;
    let root = setup::root()?;
    let name = format!("edge-{}-{target}", env!("CARGO_PKG_VERSION"));
    let content = directory.join(&name);
    if content.exists() {
        fs::remove_dir_all(&content)?;
    }
    fs::create_dir_all(&content)?;
    for program in PROGRAMS {
        fs::copy(built.join(program), content.join(program))?;
    }
    for file in FILES {
        run(Command::new("cp").arg("-r").arg(root.join(file)).arg(&content))?;
    }
    let archive = directory.join(format!("{name}.tar.gz"));
    run(Command::new("tar")
        .args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mode=go=rX,u+rw"])
        .arg(format!("--mtime=@{time}"))
        .args(["--use-compress-program", "gzip -n9", "-C"])
        .arg(directory)
        .arg("-cf")
        .arg(&archive)
        .arg(&name))?;
    Ok(archive)
}

/// Builds the programs for a target with a profile of `Cargo.toml`, and returns their directory.
pub(crate) fn build(target: &str, profile: &str) -> Result<PathBuf> {
    setup::target_library(target)?;
    // The tool-chain's own linker and start files can link musl for any architecture: no cross compiler is
    // needed.
    let variable = target.replace('-', "_").to_uppercase();
    run(cargo()
        .args(["build", "--profile", profile, "--locked", "-p", "edge-userspace", "--bins"])
        .args(["--target", target])
        .env(format!("CARGO_TARGET_{variable}_LINKER"), "rust-lld")
        .env(
            format!("CARGO_TARGET_{variable}_RUSTFLAGS"),
            "-Clink-self-contained=yes -Ctarget-feature=+crt-static",
        ))?;
    let directory = setup::target()?.join(target).join(profile);
    for program in PROGRAMS {
        let built = directory.join(program);
        let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
        ensure!(is_static(&bytes)?, "{} wants a dynamic loader", built.display());
    }
    Ok(directory)
}

/// Whether an ELF file names no loader (`PT_INTERP`).
fn is_static(elf: &[u8]) -> Result<bool> {
    use object::{
        Endianness,
        elf::{FileHeader64, PT_INTERP},
        read::elf::{FileHeader as _, ProgramHeader as _},
    };
    let header = FileHeader64::<Endianness>::parse(elf)?;
    let endian = header.endian()?;
    Ok(header.program_headers(endian, elf)?.iter().all(|segment| segment.p_type(endian) != PT_INTERP))
}
