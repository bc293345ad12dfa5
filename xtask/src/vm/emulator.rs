//! qemu and virtiofsd, which shares files: installed, or unpacked if they conflict with the machine's
//! packages.

use std::{path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::system::Architecture;
use crate::setup::beside::Tree;

/// Where Debian's packages have qemu's files for a guest: its own, firmware, and code of network devices.
const DATA: &[&str] = &["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
/// It shares the files of the host; Debian has had it in several places.
const VIRTIOFSD: &[&str] = &["usr/lib/qemu/virtiofsd", "usr/libexec/virtiofsd"];

/// An emulator for one kind of processor.
pub(super) struct Emulator {
    architecture: Architecture,
    tree: Tree,
}

impl Emulator {
    pub(super) fn provide(architecture: Architecture) -> Result<Self> {
        let package = match architecture {
            Architecture::X86_64 => "qemu-system-x86",
            Architecture::Aarch64 => "qemu-system-arm",
        };
        let name = format!("qemu-{}", architecture.name());
        Ok(Self { architecture, tree: Tree::provide(&name, &[package])? })
    }

    /// The emulator with its processor model, as a process of this niceness that ends when this one does, for
    /// whatever reason.
    pub(super) fn command(&self, niceness: u8) -> Command {
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "nice", "-n", &niceness.to_string()]);
        qemu.arg(self.tree.path(&format!("usr/bin/qemu-system-{}", self.architecture.name())));
        self.tree.prepare(&mut qemu);
        for folder in DATA {
            qemu.arg("-L").arg(self.tree.path(folder));
        }
        match self.architecture {
            // Other processor models stop 6.12 before it says a word.
            Architecture::X86_64 => qemu.args(["-machine", "q35", "-cpu", "Haswell-noTSX"]),
            Architecture::Aarch64 => qemu.args(["-machine", "virt", "-cpu", "cortex-a72"]),
        };
        qemu.args(["-accel", "tcg,thread=multi,tb-size=512", "-smp", "2"]);
        qemu.args(["-nodefaults", "-no-reboot", "-display", "none", "-monitor", "none"]);
        qemu
    }

    /// The program that shares files with a machine; it too ends with this process.
    pub(super) fn virtiofsd(&self) -> Result<Command> {
        let mut found = VIRTIOFSD.iter().map(|path| self.tree.path(path)).filter(|path| path.is_file());
        let program: PathBuf =
            found.next().with_context(|| format!("no virtiofsd: none of {}", VIRTIOFSD.join(", ")))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(program);
        self.tree.prepare(&mut command);
        Ok(command)
    }
}
