//! `cargo xtask fuzz`: runs every fuzz target for some time, from its seeds and the corpus of earlier runs.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    command::{cargo, output, run},
    setup,
};

/// Compiles libFuzzer's coverage in, as cargo-fuzz does. All of these are options of the stable compiler.
/// Only sanitizers need another one, and they would find nothing in parsers without `unsafe` code.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "--cfg=fuzzing",
];
/// Seconds after which one input counts as a hang.
const HANG: u32 = 5;
/// Megabytes that a target may have resident.
const MEMORY: u32 = 1024;
/// How many targets run at the same time.
const AT_ONCE: usize = 2;

/// Runs fuzz targets, each for some time.
#[derive(Args)]
pub(crate) struct Fuzz {
    /// Only these targets
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
}

impl Fuzz {
    /// The task as a run of the tests performs it: every target for a few seconds.
    pub(crate) fn briefly() -> Self {
        Self { targets: Vec::new(), seconds: 5 }
    }

    pub(crate) fn run(&self) -> Result<()> {
        let known = targets()?;
        for target in &self.targets {
            ensure!(known.contains(target), "no fuzz target {target}; there are {}", known.join(", "));
        }
        let chosen: Vec<&String> =
            known.iter().filter(|name| self.targets.is_empty() || self.targets.contains(name)).collect();
        build(&chosen)?;
        let mut faults = Vec::new();
        for group in chosen.chunks(AT_ONCE) {
            let running = group.iter().map(|target| Running::start(target, self.seconds));
            // All of them start before any is waited for.
            for running in running.collect::<Vec<_>>() {
                if let Err(fault) = running.and_then(Running::finish) {
                    eprintln!("{fault:#}");
                    faults.push(fault.to_string());
                }
            }
        }
        ensure!(faults.is_empty(), "{} of {} fuzz targets failed", faults.len(), chosen.len());
        println!("{} fuzz targets held for {} s each", chosen.len(), self.seconds);
        Ok(())
    }
}

/// This machine's target. The build names it, so that build scripts and macros are compiled without
/// [`FLAGS`].
fn triple() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

fn folder() -> Result<PathBuf> {
    Ok(setup::root()?.join("fuzz"))
}

/// The targets, by the binaries of `fuzz/Cargo.toml`.
fn targets() -> Result<Vec<String>> {
    let manifest = folder()?.join("Cargo.toml");
    let mut metadata = cargo();
    metadata
        .args(["metadata", "--no-deps", "--locked", "--format-version", "1", "--manifest-path"])
        .arg(manifest);
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut metadata)?)?;
    let targets = metadata["packages"][0]["targets"].as_array().context("fuzz has no targets")?;
    let binaries = targets.iter().filter(|target| target["kind"][0] == "bin");
    Ok(binaries.filter_map(|target| target["name"].as_str().map(str::to_owned)).collect())
}

fn build(targets: &[&String]) -> Result<()> {
    let folder = folder()?;
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--target", &triple(), "--manifest-path"]);
    command.arg(folder.join("Cargo.toml")).arg("--target-dir").arg(folder.join("target"));
    for target in targets {
        command.args(["--bin", target]);
    }
    run(command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")))
}

/// A target that runs.
struct Running<'a> {
    target: &'a str,
    process: Child,
    log: PathBuf,
    findings: PathBuf,
}

impl<'a> Running<'a> {
    fn start(target: &'a str, seconds: u64) -> Result<Self> {
        let folder = folder()?;
        let (corpus, findings) = (folder.join("corpus").join(target), folder.join("artifacts").join(target));
        let log = folder.join("target").join(target).with_extension("log");
        for made in [&corpus, &findings] {
            fs::create_dir_all(made).with_context(|| format!("making {}", made.display()))?;
        }
        let mut command = Command::new(folder.join("target").join(triple()).join("release").join(target));
        command.arg(&corpus).args(seeds(&folder, target));
        command.arg(format!("-max_total_time={seconds}")).arg(format!("-timeout={HANG}"));
        command.arg(format!("-rss_limit_mb={MEMORY}")).arg("-print_final_stats=1");
        command.arg(format!("-artifact_prefix={}/", findings.display()));
        let said = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let process = command.spawn().with_context(|| format!("starting the fuzz target {target}"))?;
        Ok(Self { target, process, log, findings })
    }

    fn finish(mut self) -> Result<()> {
        let status = self.process.wait()?;
        let said = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        if !status.success() {
            let last: Vec<_> = said.lines().rev().take(40).collect();
            for line in last.iter().rev() {
                eprintln!("  {line}");
            }
            bail!("{}: {status}; the input is in {}", self.target, self.findings.display());
        }
        let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
        let runs: u64 = runs.and_then(|count| count.trim().parse().ok()).unwrap_or(0);
        ensure!(runs > 0, "{}: it read no input at all", self.target);
        println!("{:<20} {runs} inputs", self.target);
        Ok(())
    }
}

/// Committed inputs of a target: its seeds, and for the ClientHello reader what real clients sent.
fn seeds(folder: &Path, target: &str) -> Vec<PathBuf> {
    let captures = Path::new("../edge-userspace/tests/captures");
    let seeds = [Path::new("seeds").join(target), captures.to_owned()];
    let wanted = if target == "tls_client_hello" { &seeds[..] } else { &seeds[..1] };
    wanted.iter().map(|seeds| folder.join(seeds)).filter(|seeds| seeds.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_listed_and_has_seeds() {
        let targets = targets().unwrap();
        let folder = folder().unwrap();
        let readme = fs::read_to_string(folder.join("README.md")).unwrap();
        for target in &targets {
            assert!(readme.contains(&format!("| `{target}` |")), "fuzz/README.md does not list {target}");
            assert!(!seeds(&folder, target).is_empty(), "{target} has no seeds");
        }
        let sources = fs::read_dir(folder.join("fuzz_targets")).unwrap().count();
        assert_eq!(targets.len(), sources, "a file in fuzz_targets is no target of Cargo.toml");
    }
}
