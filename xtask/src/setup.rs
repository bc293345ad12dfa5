//! Installs the packages that the tasks need, if they are missing. Quick when everything is installed.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::command::{output, run};

pub(crate) mod apt;
pub(crate) mod beside;
mod newer;
pub(crate) mod wheel;

/// Debian packages with the peers that the lab and the demo talk to.
const PACKAGES: &[&str] = &[
    "apache2-bin",
    "bpftool",
    "ca-certificates",
    "caddy",
    "chromium",
    "curl",
    "gnutls-bin",
    "haproxy",
    "iproute2",
    "lego",
    "libfaketime",
    "libnss3-tools",
    "iptables",
    "mariadb-server-core",
    "nftables",
    "ufw",
    "nginx",
    "openssh-client",
    "openssh-server",
    "openssl",
    "postgresql",
    "prometheus",
    "python3",
    "shellcheck",
    "strace",
    "systemd",
    "tcpdump",
    "util-linux",
    "wireguard-go",
    "wireguard-tools",
];

/// The mail server that the lab talks to.
const MAIL: &str = "postfix";

/// Whom the daemon becomes when it was started as root.
const USER: &str = "edge";

/// Tells Debian's packages not to start the services they bring: the lab starts its own.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// The workspace.
pub(crate) fn root() -> Result<PathBuf> {
    Ok(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?.to_owned())
}

/// Where cargo builds.
pub(crate) fn target() -> Result<PathBuf> {
    Ok(env::var_os("CARGO_TARGET_DIR").map_or(root()?.join("target"), PathBuf::from))
}

/// Everything that the lab needs; fails with what is missing where it cannot be installed.
pub(crate) fn lab() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("network namespaces and packages need root: run this as root, for example with sudo");
    }
    packages(PACKAGES)?;
    // A machine has one mail server: where it is another, the cases with Postfix are skipped.
    if beside::fits(&[MAIL])? {
        packages(&[MAIL])?;
    }
    user(USER)?;
    newer::programs()?;
    components(&["clippy", "rustfmt"])
}

/// A system user without a home, where it is missing.
fn user(name: &str) -> Result<()> {
    if output(Command::new("getent").args(["passwd", name])).is_ok() {
        return Ok(());
    }
    let mut useradd = Command::new("useradd");
    useradd.args(["--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", name]);
    run(&mut useradd).with_context(|| format!("making the user {name}, whom the daemon becomes"))
}

/// Debian's packages, those of them that are missing.
pub(crate) fn packages(wanted: &[&str]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().copied().filter(|package| !is_installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    if output(Command::new("apt-get").arg("--version")).is_err() {
        bail!("this machine has no apt-get; install what these Debian packages have: {}", missing.join(" "));
    }
    let policy = Policy::set()?;
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-y", "-q"]);
        command
    };
    run(apt().arg("update")).context("apt-get update (is there a network?)")?;
    // Installed packages belong to the machine and stay, even if a wanted one conflicts with them.
    run(apt().args(["install", "--no-install-recommends", "--no-remove"]).args(&missing))
        .with_context(|| format!("installing {}", missing.join(" ")))?;
    drop(policy);
    Ok(())
}

fn is_installed(package: &str) -> bool {
    let status = output(Command::new("dpkg-query").args(["-W", "-f=${Status}", package]));
    status.is_ok_and(|status| status == "install ok installed")
}

/// Components of the tool-chain in use.
pub(crate) fn components(wanted: &[&str]) -> Result<()> {
    let Ok(installed) = output(Command::new("rustup").args(["component", "list", "--installed"])) else {
        // Not by rustup: then the components are packages, and cargo says which one is missing.
        return Ok(());
    };
    for component in wanted.iter().filter(|component| !installed.contains(**component)) {
        run(Command::new("rustup").args(["component", "add", component]))?;
    }
    Ok(())
}

/// The standard library for another target.
pub(crate) fn target_library(target: &str) -> Result<()> {
    let Ok(installed) = output(Command::new("rustup").args(["target", "list", "--installed"])) else {
        return Ok(());
    };
    if installed.lines().any(|line| line == target) {
        return Ok(());
    }
    run(Command::new("rustup").args(["target", "add", target]))
}

/// [`POLICY`], for as long as it lives; one that is there already stays as it is.
struct Policy(bool);

impl Policy {
    fn set() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(Self(false));
        }
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("writing {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(Self(true))
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.0 {
            let _ = fs::remove_file(POLICY);
        }
    }
}
