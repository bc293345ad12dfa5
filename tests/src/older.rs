//! The programs of an earlier commit, for upgrades from it: built once per commit, and kept below the target
//! directory.

use std::{
    env, fs,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::{process, require};

/// The last commit whose daemon pins maps in layout 2.
pub const LAYOUT_2: &str = "efc4d87d9bacbec43072094fcf6d3101fa7ef79e";

/// A build of everything on a busy machine with two processors.
const BUILD: Duration = Duration::from_mins(40);

/// The directory that holds `edged` of this commit. `None`, with a message, if the repository does not have
/// the commit: a shallow clone, or no repository at all.
pub fn programs(commit: &str) -> Result<Option<PathBuf>> {
    let short = &commit[..7];
    let target = target()?;
    let older = target.join("older");
    let kept = older.join(short);
    fs::create_dir_all(&kept)?;
    // Cases run side by side, and one build is enough.
    let lock = File::create(kept.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    if kept.join("edged").is_file() {
        return Ok(Some(kept));
    }
    if env::var(require::STRICT).is_ok_and(|strict| strict == "kernel") {
        // Not by `println!`, whose output the test runner hides when a case ends well.
        let reason = "nobody has built it, and an emulated machine is too slow: run this case outside first";
        let _ = writeln!(std::io::stderr(), "skipped: edged of {short}: {reason}");
        return Ok(None);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the lab is in no workspace")?;
    let mut git = Command::new("git");
    git.arg("-C").arg(root).args(["cat-file", "-e", &format!("{commit}^{{commit}}")]);
    if !git.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: commit {short} is not in this clone; `git fetch --unshallow` brings it"
        );
        return Ok(None);
    }
    let source = kept.join("source");
    fs::create_dir_all(&source)?;
    let mut archive = Command::new("git");
    archive.arg("-C").arg(root).args(["archive", "--format=tar", commit]);
    let archive = process::run(archive, b"", BUILD)?;
    ensure!(archive.status.success(), "git archive {short}: {}", String::from_utf8_lossy(&archive.stderr));
    let mut unpack = Command::new("tar");
    unpack.arg("-x").arg("-C").arg(&source);
    ensure!(process::run(unpack, &archive.stdout, BUILD)?.status.success(), "unpacking {short}");
    let build = older.join("build");
    borrow_dependencies(&target, &build)?;
    let _ = writeln!(std::io::stderr(), "building edged of {short}, once, for upgrades from there");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--locked", "--package", "edge-userspace", "--bin", "edged"]).current_dir(&source);
    cargo.env("CARGO_TARGET_DIR", &build).env_remove("CARGO_MANIFEST_DIR");
    let outcome = process::run(cargo, b"", BUILD)?;
    ensure!(outcome.status.success(), "building {short}: {}", String::from_utf8_lossy(&outcome.stderr));
    // In one step: what is there is whole.
    fs::copy(build.join("debug/edged"), kept.join("edged.new"))?;
    fs::rename(kept.join("edged.new"), kept.join("edged"))?;
    fs::remove_dir_all(&source)?;
    Ok(Some(kept))
}

/// Copies this workspace's builds of dependencies: most are the same, and cargo detects which.
fn borrow_dependencies(target: &Path, build: &Path) -> Result<()> {
    let own = build.join("debug");
    if own.exists() || !target.join("debug/deps").is_dir() {
        return Ok(());
    }
    fs::create_dir_all(&own)?;
    for part in [".fingerprint", "build", "deps"] {
        let mut copy = Command::new("cp");
        copy.args(["--archive", "--reflink=auto"]).arg(target.join("debug").join(part)).arg(&own);
        // Whatever is missing is built.
        let _ = process::run(copy, b"", BUILD);
    }
    Ok(())
}

/// The workspace's target directory, which this program is in.
fn target() -> Result<PathBuf> {
    let own = env::current_exe()?;
    let found = own
        .ancestors()
        .find(|directory| directory.join("debug").is_dir() || directory.join("release").is_dir());
    Ok(found.with_context(|| format!("{} is in no target directory", own.display()))?.to_owned())
}
