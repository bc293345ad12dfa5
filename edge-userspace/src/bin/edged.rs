//! The daemon on the VPS. Wiring only: arguments, log, runtime.

use std::{error::Error, path::Path, process::ExitCode};

use clap::Parser as _;
use edge::{
    config::Settings,
    daemon::{self, Arguments, Options},
    kernel,
    observe::log,
};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = log::start() {
        log::give_up(&error);
        return ExitCode::FAILURE;
    }
    let outcome = if arguments.check {
        check(&arguments.config)
    } else if arguments.uninstall {
        uninstall(&arguments.pins)
    } else {
        serve(&Options {
            config: arguments.config,
            bpf_object: arguments.bpf_object,
            trace_ebpf: arguments.trace_ebpf,
            pins: arguments.pins,
        })
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::give_up(&error);
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
