//! `edgectl`, which steers the daemon: wiring only.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge::control::cli::main(std::env::args_os())
}
