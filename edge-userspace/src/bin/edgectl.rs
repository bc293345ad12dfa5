//! `edgectl`, which steers the daemon: wiring only.

use std::process::ExitCode;

use clap::CommandFactory as _;

fn main() -> ExitCode {
    edge::control::cli::main(std::env::args_os(), edge::daemon::Arguments::command())
}
