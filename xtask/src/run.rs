//! `cargo xtask build` and `cargo xtask run`.

use std::{path::PathBuf, process::Command};

use anyhow::Result;
use clap::Args;

use crate::{
    command::{cargo, run},
    setup,
};

#[derive(Args)]
pub(crate) struct Run {
    /// The configuration file
    #[arg(long, value_name = "PATH", default_value = "examples/minimal.toml")]
    config: PathBuf,
}

impl Run {
    pub(crate) fn run(&self) -> Result<()> {
        build()?;
        run(Command::new(setup::target()?.join("release/edged")).arg("--config").arg(&self.config))
    }
}

pub(crate) fn build() -> Result<()> {
    run(cargo().args(["build", "--release", "--locked", "-p", "edge-userspace", "--bins"]))
}
