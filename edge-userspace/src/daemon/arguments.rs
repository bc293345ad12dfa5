//! The command line of `edged`.

use std::path::PathBuf;

use clap::Parser;

use crate::kernel;

/// The SNI edge in front of home: reads the server name, picks a route, forwards the encrypted stream.
#[derive(Debug, Parser)]
#[command(name = "edged", version)]
pub struct Arguments {
    /// The configuration file
    #[arg(long, value_name = "PATH", default_value = "/etc/edge/edge.toml")]
    pub config: PathBuf,
    /// Validate the configuration file and exit
    #[arg(long)]
    pub check: bool,
    /// Load BPF objects from this file or directory instead of the embedded ones
    #[arg(long, value_name = "PATH")]
    pub bpf_object: Option<PathBuf>,
    /// Load BPF programs that report what they do with packets: to the log, and to `edgectl trace`. They are slower
    #[arg(long)]
    pub trace_ebpf: bool,
    /// The directory of everything pinned in the kernel; each daemon of a machine needs one of its own
    #[arg(long, value_name = "PATH", default_value = kernel::DEFAULT_PINS)]
    pub pins: PathBuf,
    /// Detach and unpin everything from the kernel; the state on disk is kept
    #[arg(long, conflicts_with = "check")]
    pub uninstall: bool,
}
