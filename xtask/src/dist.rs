//! `cargo xtask dist`: makes the files of a release. For each architecture an archive with static programs, a
//! Debian package, a container image and a list of the crates inside; once `install.sh`, `compose.yaml` and
//! the checksums of all.
//!
//! Builds are reproducible: the same commit and tool-chain give identical files.

mod archive;
mod bill;
pub(crate) mod deb;
mod image;
mod installer;
mod trial;

use std::{
    env,
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
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

#[derive(Args)]
pub(crate) struct Dist {
    /// Only for this target
    #[arg(long, value_name = "TRIPLE")]
    target: Vec<String>,
    /// The URL of the release's files, from which install.sh downloads unless `EDGE_URL` is set
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Then try the package and the image of this machine's architecture, as `cargo xtask test` does
    #[arg(long = "try")]
    is_tried: bool,
}

/// The parts that all files of a release have in common.
struct Release {
    version: String,
    /// The time of the commit, which all files carry: seconds since 1970.
    time: String,
    /// Where the files go.
    directory: PathBuf,
}

/// The programs of one architecture and what comes with them.
struct Parts<'a> {
    target: &'a str,
    /// The folder of the static programs.
    programs: &'a Path,
    /// `man` and `completions`.
    documents: &'a Path,
}

impl Dist {
    /// The task as a run of the tests performs it: only the files for this machine.
    pub(crate) fn own() -> Self {
        let own = TARGETS.iter().filter(|target| is_own(target)).map(|&target| target.to_owned());
        Self { target: own.collect(), url: None, is_tried: true }
    }

    pub(crate) fn run(&self) -> Result<()> {
        let targets: Vec<&str> = match self.target.as_slice() {
            [] => TARGETS.to_vec(),
            wanted => wanted.iter().map(String::as_str).collect(),
        };
        let release = Release::new()?;
        let documents = release.documents()?;
        let mut files = Vec::new();
        for target in targets {
            let programs = build(target, "release")?;
            let parts = Parts { target, programs: &programs, documents: &documents };
            files.push(archive::make(&release, &parts)?);
            files.push(deb::make(&release, &parts, &release.version)?);
            files.push(image::make(&release, &parts)?);
            files.push(bill::make(&release, target)?);
        }
        files.push(installer::make(&release, self.url.as_deref())?);
        files.push(release.copy("compose.yaml")?);
        release.sum_up(&files)?;
        if self.is_tried { trial::run_all() } else { Ok(()) }
    }

    /// The archive for one target.
    pub(crate) fn of(target: &str) -> Result<PathBuf> {
        let release = Release::new()?;
        let documents = release.documents()?;
        let programs = build(target, "release")?;
        archive::make(&release, &Parts { target, programs: &programs, documents: &documents })
    }
}

impl Release {
    fn new() -> Result<Self> {
        let time = output(Command::new("git").args(["log", "-1", "--format=%ct"]))
            .context("the files of a release carry the time of the last commit")?;
        let directory = setup::target()?.join("dist");
        fs::create_dir_all(&directory)?;
        Ok(Self { version: env!("CARGO_PKG_VERSION").to_owned(), time: time.trim().to_owned(), directory })
    }

    /// A new, empty folder to put files together in.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.directory.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// The manual pages and the completions, which an edgectl for this machine writes.
    fn documents(&self) -> Result<PathBuf> {
        let folder = self.folder("documents")?;
        run(cargo().args(["build", "--quiet", "--locked", "-p", "edge-userspace", "--bin", "edgectl"]))?;
        let edgectl = setup::target()?.join("debug/edgectl");
        run(Command::new(&edgectl).arg("man").arg(folder.join("man")))?;
        let completions = folder.join("completions");
        fs::create_dir(&completions)?;
        for program in PROGRAMS {
            for shell in ["bash", "zsh", "fish"] {
                let script = output(Command::new(&edgectl).args(["completions", shell, program]))?;
                fs::write(completions.join(format!("{program}.{shell}")), script)?;
            }
        }
        Ok(folder)
    }

    /// A file of `packaging`, as it is.
    fn copy(&self, name: &str) -> Result<PathBuf> {
        let file = self.directory.join(name);
        fs::copy(setup::root()?.join("packaging").join(name), &file)?;
        Ok(file)
    }

    /// Writes `SHA256SUMS` and names the files.
    fn sum_up(&self, files: &[PathBuf]) -> Result<()> {
        let mut sums = String::new();
        for file in files {
            let name = file.file_name().context("a file has a name")?.to_string_lossy();
            writeln!(sums, "{}  {name}", digest(&fs::read(file)?))?;
            println!("{}", file.display());
        }
        Ok(fs::write(self.directory.join("SHA256SUMS"), sums)?)
    }

    /// Packs a folder's content with this owner into a new tar archive, or appends it to one.
    fn tar(&self, archive: &Path, folder: &Path, owner: u32, content: &[&str]) -> Result<()> {
        run(Command::new("tar")
            .args(["--format=gnu", "--sort=name", "--numeric-owner", "--mode=go=rX,u+rw"])
            .args([format!("--owner={owner}"), format!("--group={owner}"), format!("--mtime=@{}", self.time)])
            .arg("-C")
            .arg(folder)
            .arg("-rf")
            .arg(archive)
            .args(content))
    }
}

/// SHA-256 in hexadecimal.
fn digest(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Compresses a file in its place and returns its new name, `FILE.gz`.
fn gzip(file: &Path) -> Result<PathBuf> {
    run(Command::new("gzip").args(["--no-name", "--best", "--force"]).arg(file))?;
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    Ok(name.into())
}

/// Copies a file, makes the folders that it goes to, and sets its rights.
fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    write(to, &fs::read(from).with_context(|| format!("reading {}", from.display()))?, mode)
}

fn write(to: &Path, content: &[u8], mode: u32) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(to, content).with_context(|| format!("writing {}", to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

/// The files of a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

/// Whether this machine runs the programs of a target.
pub(crate) fn is_own(target: &str) -> bool {
    target.starts_with(env::consts::ARCH)
}

/// The architecture of a target as Debian and container images name it.
fn debian_name(target: &str) -> Result<&'static str> {
    match target.split('-').next() {
        Some("x86_64") => Ok("amd64"),
        Some("aarch64") => Ok("arm64"),
        _ => anyhow::bail!("{target} is none of {}", TARGETS.join(", ")),
    }
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
