//! Interprets the tests of pure code with Miri, which detects undefined behaviour in them and in the
//! libraries they call.

use std::process::Command;

use anyhow::Result;

use crate::command::{output, run};

/// Miri comes with nightly compilers only.
const TOOLCHAIN: &str = "nightly";
/// The package, and the tests of it by their modules; none means all.
const TESTS: &[(&str, &[&str])] = &[("edge-common", &[])];

/// Fails with Miri's findings. Without a nightly tool-chain it prints that and passes: the compiler that
/// builds the programs has no Miri.
pub(crate) fn check() -> Result<()> {
    if let Err(reason) = install() {
        println!("skipped: {reason:#}");
        return Ok(());
    }
    for (package, modules) in TESTS {
        let mut miri = Command::new("rustup");
        miri.args(["run", TOOLCHAIN, "cargo", "miri", "test", "--locked", "--lib", "-p", package, "--"]);
        run(miri.args(*modules))?;
    }
    Ok(())
}

fn install() -> Result<()> {
    output(Command::new("rustup").args(["run", TOOLCHAIN, "rustc", "--version"]))?;
    let has_miri = || output(Command::new("rustup").args(["run", TOOLCHAIN, "cargo", "miri", "--version"]));
    if has_miri().is_err() {
        output(Command::new("rustup").args([
            "component",
            "add",
            "miri",
            "rust-src",
            "--toolchain",
            TOOLCHAIN,
        ]))?;
    }
    has_miri().map(drop)
}
