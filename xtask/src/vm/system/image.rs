//! A Debian release as people rent it: systemd, OpenSSH, ufw, WireGuard. It is built from Debian's packages
//! and kept beside the builds; each run uses a copy of its disk.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{agent, architecture::Architecture, network};
use crate::{
    command::run,
    setup::apt::{KEYRING, archive},
};

/// Packages besides the base system.
const PACKAGES: &[&str] = &[
    "conntrack",
    "dbus",
    "ethtool",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "nftables",
    "openssh-server",
    "procps",
    "python3-minimal",
    "libpython3-stdlib", // asyncio
    "systemd",
    "systemd-sysv",
    "udev",
    "ufw",
    "wireguard-tools",
];
/// Size of the disk.
const DISK: &str = "3G";
/// Raised with any change of what is in the image.
const EDITION: &str = "1";

/// A release by its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Debian {
    pub(crate) number: &'static str,
    suite: &'static str,
}

pub(crate) const RELEASES: &[Debian] =
    &[Debian { number: "12", suite: "bookworm" }, Debian { number: "13", suite: "trixie" }];

/// The disk image and kernel that a machine boots.
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) disk: PathBuf,
    pub(super) architecture: Architecture,
}

impl Image {
    /// Makes the image below `folder`, unless it is there already.
    pub(super) fn provide(debian: Debian, architecture: Architecture, folder: &Path) -> Result<Self> {
        let folder = folder.join(format!("image-{EDITION}"));
        let file = |name| folder.join(name);
        let image =
            Self { kernel: file("vmlinuz"), initramfs: file("initrd.img"), disk: file("disk"), architecture };
        if image.disk.is_file() {
            return Ok(image);
        }
        println!("installing Debian {} ({}, {})", debian.number, debian.suite, architecture.debian());
        architecture.let_programs_run()?;
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let root = file("root");
        let source = format!("deb [signed-by={KEYRING}] {} {} main", archive(debian.suite)?, debian.suite);
        run(Command::new("mmdebstrap")
            .args(["--quiet", "--mode=root", "--variant=minbase", "--aptopt=Acquire::Languages none"])
            .arg(format!("--architectures={}", architecture.debian()))
            .arg(format!("--include={},linux-image-cloud-{}", PACKAGES.join(","), architecture.debian()))
            .arg(debian.suite)
            .arg(&root)
            .arg(source))
        .with_context(|| format!("installing Debian {} into {}", debian.number, root.display()))?;
        for (from, to) in [("vmlinuz", &image.kernel), ("initrd.img", &image.initramfs)] {
            // Links at the top of the tree to what is in /boot.
            let link = fs::read_link(root.join(from)).with_context(|| format!("the image has no /{from}"))?;
            fs::copy(root.join(link), to)?;
        }
        configure(&root)?;
        let disk = file("disk.new");
        run(Command::new("truncate").args(["--size", DISK]).arg(&disk))?;
        run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&disk))?;
        fs::remove_dir_all(&root)?;
        fs::rename(disk, &image.disk)?;
        Ok(image)
    }
}

/// Adds what a hosting company sets: name, disk, address, and here the agent that takes orders.
fn configure(root: &Path) -> Result<()> {
    let write = |path: &str, text: &str, mode| -> Result<()> {
        let path = root.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
    };
    write("etc/hostname", "vps\n", 0o644)?;
    // Without one systemd treats the boot as the first of a template, and may prompt for missing settings.
    write("etc/machine-id", "65646765656467656564676565646765\n", 0o444)?;
    write("etc/fstab", "/dev/vda / ext4 defaults 0 1\n", 0o644)?;
    write("etc/systemd/network/10-eth0.network", &network::guest(), 0o644)?;
    write(agent::PROGRAM, agent::SCRIPT, 0o755)?;
    write("etc/systemd/system/lab-agent.service", &agent::unit(), 0o644)?;
    let mut enable = Command::new("systemctl");
    enable.arg("--root").arg(root).args(["enable", "--quiet"]);
    run(enable.args(["systemd-networkd.service", "ssh.service", "lab-agent.service"]))
}
