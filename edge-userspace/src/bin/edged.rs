//! The daemon on the VPS. Wiring only: arguments, log, runtime.

use std::{
    error::Error,
    ffi::OsStr,
    io::{IsTerminal, stderr},
    path::Path,
    process::ExitCode,
};

use clap::Parser as _;
use edge::{
    config::Settings,
    daemon::{self, Arguments, Options},
    kernel,
    observe::log_filter,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let setting = std::env::var_os(log_filter::VARIABLE);
    let filter = match log_filter::filter(setting.as_deref().map(OsStr::to_string_lossy).as_deref()) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("edged: {error}");
            return ExitCode::FAILURE;
        }
    };
    tracing_subscriber::fmt()
        // A line that cannot be written (a full disk) is lost. To say so on the same stream would panic.
        .log_internal_errors(false)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .with_env_filter(filter)
        .init();
    let outcome = if arguments.check {
        check(&arguments.config)
    } else if arguments.uninstall {
        uninstall(&arguments.pins)
    } else {
        serve(&Options { config: arguments.config, bpf_object: arguments.bpf_object, pins: arguments.pins })
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edged: {error}");
            ExitCode::FAILURE
        }
    }
}

fn check(config: &Path) -> Result<(), Box<dyn Error>> {
    for warning in Settings::load(config)?.warnings(&[]) {
        eprintln!("{}: warning: {warning}", config.display());
    }
    eprintln!("{}: valid", config.display());
    Ok(())
}

fn uninstall(pins: &Path) -> Result<(), Box<dyn Error>> {
    let found = kernel::uninstall(pins)? | kernel::remove_filters()?;
    eprintln!("{}", if found { "detached and unpinned" } else { "there was nothing in the kernel" });
    Ok(())
}

fn serve(options: &Options) -> Result<(), Box<dyn Error>> {
    // Before the runtime: this splits the process and gives rights up for all threads to come.
    let prepared = daemon::prepare(options)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(daemon::run(prepared))?)
}
