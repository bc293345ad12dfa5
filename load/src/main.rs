//! `edge-load serve` at home, `edge-load drive JOB` in front of the edge.

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use load::{Service, drive, job::Errand, serve};

/// The load of `cargo xtask bench`.
#[derive(Parser)]
#[command(name = "edge-load")]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Serve until killed
    Serve(Service),
    /// Do one job and print its report as JSON
    Drive {
        /// The job, as JSON
        errand: String,
    },
}

fn main() -> Result<()> {
    match Cli::parse().role {
        Role::Serve(service) => serve(&service),
        Role::Drive { errand } => {
            let errand: Errand = serde_json::from_str(&errand).context("reading the job")?;
            let report = drive(&errand)?;
            Ok(writeln!(stdout(), "{}", serde_json::to_string(&report)?)?)
        }
    }
}
