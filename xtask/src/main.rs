//! Every task of a contributor, each in a module of its own: `cargo xtask TASK`.
#![expect(clippy::print_stdout, reason = "tasks talk to the one who runs them")]

mod bench;
mod book;
mod build_ebpf;
mod checks;
mod command;
mod demo;
mod dist;
mod fuzz;
mod run;
mod setup;
mod soak;
mod test;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Every task of a contributor.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure edged beside the kernel and its rivals, in a lab of three hosts.
    Bench(bench::Bench),
    /// Build the documents as a book.
    Book,
    /// Build the BPF objects that edged embeds, with a tool-chain that it installs where missing.
    BuildEbpf(build_ebpf::BuildEbpf),
    /// Build edged and edgectl as they are shipped.
    Build,
    /// Show the main job end to end, in a lab of network namespaces.
    Demo(demo::Demo),
    /// Make archives with static binaries, one for each architecture.
    Dist(dist::Dist),
    /// Run the fuzz targets: readers of bytes from the network and from the kernel.
    Fuzz(fuzz::Fuzz),
    /// Build edged and run it with a configuration file.
    Run(run::Run),
    /// Live a compressed day on one edge, and see that nothing leaks and nothing is lost without a cause.
    Soak(soak::Soak),
    /// Run everything that has to hold before a change lands.
    Test(test::Test),
    /// Run the tests of the data path on the kernels of Debian's releases, in virtual machines.
    Vm(vm::Vm),
}

impl Task {
    fn run(self) -> Result<()> {
        match self {
            Self::Bench(task) => task.run(),
            Self::Book => book::build(),
            Self::BuildEbpf(task) => task.run(),
            Self::Build => run::build(),
            Self::Demo(task) => task.run(),
            Self::Dist(task) => task.run(),
            Self::Fuzz(task) => task.run(),
            Self::Run(task) => task.run(),
            Self::Soak(task) => task.run(),
            Self::Test(task) => task.run(),
            Self::Vm(task) => task.run(),
        }
    }
}

fn main() -> Result<()> {
    Cli::parse().task.run()
}
