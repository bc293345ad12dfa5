//! The processors that machines may have, and what is particular to each.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};

use crate::command::run;

/// A processor's kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Architecture {
    /// The architecture of most VPSes.
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// Ampere, Graviton, Raspberry Pi.
    #[value(name = "aarch64")]
    Aarch64,
}

/// Where the kernel takes interpreters of foreign programs from.
const BINFMT: &str = "/proc/sys/fs/binfmt_misc";
/// ELF, 64 bits, little endian, `EM_AARCH64`: run by qemu's user mode. The kernel opens its file now (F), so
/// that it also works after a chroot.
const AARCH64: &str = r":qemu-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:/usr/bin/qemu-aarch64-static:OCF";

impl Architecture {
    pub(in crate::vm) const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Debian names it.
    pub(super) const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The target of `cargo xtask dist`.
    pub(super) fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.name())
    }

    /// Debian's packages that make such a machine.
    pub(super) const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["e2fsprogs", "mmdebstrap"],
            Self::Aarch64 => &["arch-test", "e2fsprogs", "mmdebstrap", "qemu-user-static"],
        }
    }

    /// The console's name on the kernel's command line.
    pub(super) const fn console(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// Makes the kernel run programs of this architecture, so that packages can be installed into a foreign
    /// root.
    pub(super) fn let_programs_run(self) -> Result<()> {
        if self.name() == std::env::consts::ARCH || self == Self::X86_64 {
            return Ok(());
        }
        let binfmt = Path::new(BINFMT);
        if !binfmt.join("register").exists() {
            run(Command::new("mount").args(["-t", "binfmt_misc", "binfmt_misc", BINFMT]))?;
        }
        if binfmt.join("qemu-aarch64").exists() {
            return Ok(());
        }
        fs::write(binfmt.join("register"), AARCH64).context("registering qemu-aarch64-static with the kernel")
    }
}
