//! The machine that a run was made on.

use std::{fs, process::Command};

use serde::{Deserialize, Serialize};

/// The properties that determine absolute figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) memory_gib: u64,
    pub(crate) congestion_control: String,
    /// The project's commit, and whether the tree had changes.
    pub(crate) commit: String,
    /// Runnable processes besides the bench when it began, from the one-minute load average.
    pub(crate) load_before: f64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let memory =
            field("/proc/meminfo", "MemTotal:").and_then(|text| text.split(' ').next()?.parse().ok());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            processor: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory.unwrap_or(0_u64).div_ceil(1 << 20),
            congestion_control: super::rig::congestion_control().to_owned(),
            commit: said(Command::new("git").args(["describe", "--always", "--dirty", "--abbrev=12"])),
            load_before: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
        }
    }

    /// In a line.
    pub(crate) fn describe(&self) -> String {
        let Self { kernel, processor, processors, memory_gib, .. } = self;
        format!("Linux {kernel}, {processors} × {processor}, {memory_gib} GiB")
    }
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// The output of a command, in one line.
pub(super) fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).trim().to_owned()
}
