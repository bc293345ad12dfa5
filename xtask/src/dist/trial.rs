//! Tries the Debian package and the container image of this machine's architecture: the package in a minimal
//! Debian 12 without a running systemd, the image's root as the user that it names.
//!
//! Checks that need a running systemd belong to `cargo xtask vm --system`.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use lab::wait;
use rustix::process::{Pid, Signal};
use serde_json::Value;

use super::{Parts, Release, TARGETS, deb, debian_name, is_own};
use crate::{
    command::{output, run},
    setup::{
        self,
        apt::{KEYRING, archive},
    },
};

const SUITE: &str = "bookworm";
/// Packages that every VPS has: then apt needs no network for edge.
const BASE: &str = "systemd";
/// The configuration of an operator.
const ROUTE: &str = "[[route]]\nhost = \"*.example.com\"\nto = \"100.64.0.2\"\n";
const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/edged.service";

/// Tries what [`Dist::own`](super::Dist::own) has made.
pub(super) fn run_all() -> Result<()> {
    let target =
        TARGETS.iter().find(|target| is_own(target)).context("edge has no programs for this machine")?;
    let release = Release::new()?;
    let programs = setup::target()?.join(target).join("release");
    let documents = release.directory.join("documents");
    let parts = Parts { target, programs: &programs, documents: &documents };
    package(&release, &parts)?;
    image(&release, &parts)
}

fn package(release: &Release, parts: &Parts) -> Result<()> {
    let debian = Debian::unpack(release)?;
    let next = format!("{}+next", release.version);
    let made = deb::make(release, parts, &next)?;
    let [older, newer] = [&release.version, &next].map(|version| debian.bring(release, parts, version));
    let (older, newer) = (older?, newer?);
    fs::remove_file(made)?;

    let before = debian.files()?;
    // Without a route nothing is enabled, and the operator hears of the next step.
    let said = debian.install(&older)?;
    ensure!(said.contains("write a route to /etc/edge/edge.toml"), "{said}");
    debian.within(&format!("test ! -e {ENABLED}; getent passwd edge; edged --check; dpkg --verify edge"))?;
    debian.within("for f in /usr/share/bash-completion/completions/edge*; do bash -n $f; done")?;
    debian.within(
        "sed -n 's/^Exec[A-Za-z]*=[+!]*\\(\\/[^ ]*\\).*/\\1/p' /usr/lib/systemd/system/edged.service | \
         while read program; do test -x $program; done",
    )?;
    for page in ["man8/edged.8", "man1/edgectl.1", "man1/edgectl-routes-add.1"] {
        debian.within(&format!("gzip -t /usr/share/man/{page}.gz"))?;
    }

    // An upgrade and the way back ask nothing and leave the operator's file and the state alone.
    debian.write("etc/edge/edge.toml", ROUTE)?;
    debian.write("var/lib/edge/state.toml", "# kept\n")?;
    debian.write("var/log/edge/access.log", "{}\n")?;
    for package in [&newer, &older] {
        debian.install(package)?;
        debian.within("grep -q example.com /etc/edge/edge.toml; grep -q kept /var/lib/edge/state.toml")?;
        debian.within(&format!("test ! -e {ENABLED}"))?;
    }

    // A removal keeps both, a purge neither.
    debian.within("apt-get remove --yes edge; test ! -e /usr/bin/edged; test ! -e /usr/bin/edgectl")?;
    debian.within("grep -q example.com /etc/edge/edge.toml; grep -q kept /var/lib/edge/state.toml")?;
    debian.install(&older)?;
    debian.within("grep -q example.com /etc/edge/edge.toml; apt-get purge --yes edge")?;
    let left: Vec<_> = debian.files()?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "a purge leaves {}", left.join(" "));

    // A file that is there already is the operator's, and the service is enabled until the operator disables it.
    debian.write("etc/edge/edge.toml", ROUTE)?;
    debian.install(&older)?;
    debian.within(&format!("grep -q example.com /etc/edge/edge.toml; test -e {ENABLED}"))?;
    debian.within("systemctl disable edged")?;
    debian.install(&newer)?;
    debian.within(&format!("test ! -e {ENABLED}; apt-get purge --yes edge"))?;
    println!("package: installed, upgraded, rolled back, removed and purged on Debian 12");
    Ok(())
}

/// A minimal Debian in a folder, which is removed at the end.
struct Debian {
    root: PathBuf,
}

impl Debian {
    fn unpack(release: &Release) -> Result<Self> {
        setup::packages(&["debian-archive-keyring", "mmdebstrap"])?;
        let kept = setup::target()?.join("tools").join(format!("{SUITE}-minimal.tar"));
        if !kept.is_file() {
            fs::create_dir_all(kept.parent().context("no folder for tools")?)?;
            let source = format!("deb [signed-by={KEYRING}] {} {SUITE} main", archive(SUITE)?);
            let new = kept.with_extension("new.tar");
            run(Command::new("mmdebstrap")
                .args(["--quiet", "--mode=root", "--variant=minbase", "--aptopt=Acquire::Languages none"])
                .args([&format!("--include={BASE}"), SUITE])
                .arg(&new)
                .arg(source))?;
            fs::rename(new, kept.as_path())?;
        }
        let debian = Self { root: release.folder("debian")? };
        run(Command::new("tar").arg("-xf").arg(&kept).arg("-C").arg(&debian.root))?;
        Ok(debian)
    }

    /// Copies a package into the root and returns its path there.
    fn bring(&self, release: &Release, parts: &Parts, version: &str) -> Result<String> {
        let name = format!("edge_{version}-1_{}.deb", debian_name(parts.target)?);
        let folder = self.root.join("parcel");
        fs::create_dir_all(&folder)?;
        fs::copy(release.directory.join(&name), folder.join(&name))?;
        Ok(format!("/parcel/{name}"))
    }

    fn install(&self, package: &str) -> Result<String> {
        // As an operator does who only presses return.
        self.within(&format!(
            "DEBIAN_FRONTEND=noninteractive apt-get install --yes --allow-downgrades \
             -o Dpkg::Options::=--force-confold {package} 2>&1"
        ))
    }

    /// Everything with edge in its name.
    fn files(&self) -> Result<BTreeSet<String>> {
        let found =
            self.within("find / -xdev -path /parcel -prune -o -path /proc -prune -o -name '*edge*' -print")?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        super::write(&self.root.join(path), text.as_bytes(), 0o644)
    }

    /// Runs a script in it, where each command has to succeed, and returns what it printed. Namespaces keep it
    /// from the machine's network and processes.
    fn within(&self, script: &str) -> Result<String> {
        output(
            Command::new("unshare")
                .args([
                    "--mount",
                    "--net",
                    "--pid",
                    "--ipc",
                    "--uts",
                    "--fork",
                    "--kill-child",
                    "--mount-proc",
                ])
                .arg("--root")
                .arg(&self.root)
                .args(["/bin/sh", "-ec", script])
                .stdin(Stdio::null()),
        )
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// Runs edged from the image's root, as the image's user, in a network namespace of its own, and ends it.
fn image(release: &Release, parts: &Parts) -> Result<()> {
    let name = format!("edge-{}-{}.oci.tar", release.version, debian_name(parts.target)?);
    let layout = release.folder("image")?;
    run(Command::new("tar").arg("-xf").arg(release.directory.join(&name)).arg("-C").arg(&layout))?;
    let blob = |descriptor: &Value| {
        layout.join("blobs").join(descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
    };
    let read = |path: PathBuf| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(&path).with_context(|| format!("reading {}", path.display()))?)?)
    };
    let index = read(layout.join("index.json"))?;
    let manifest = read(blob(&index["manifests"][0]))?;
    let config = read(blob(&manifest["config"]))?;
    ensure!(config["config"]["User"] == "edge", "the image's user is {}", config["config"]["User"]);
    let root = layout.join("root");
    fs::create_dir(&root)?;
    run(Command::new("tar").arg("-xpf").arg(blob(&manifest["layers"][0])).arg("-C").arg(&root))?;

    // As a container engine starts it: ports below 1024 belong to everybody in the container's network.
    let mut edged = Command::new("unshare")
        .args(["--net", "--", "sh", "-ec"])
        .arg("sysctl -qw net.ipv4.ip_unprivileged_port_start=0; ip link set lo up; exec chroot --userspec=edge:edge \"$0\" /usr/bin/edged")
        .arg(&root)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let edgectl = |words: &[&str]| {
        output(
            Command::new("chroot")
                .args(["--userspec=edge:edge"])
                .arg(&root)
                .arg("/usr/bin/edgectl")
                .args(words),
        )
    };
    let lives = wait::until_ok("edged in the image's root", wait::SOON, || edgectl(&["status"]));
    let ended = lives.and_then(|status| {
        ensure!(status.contains("443"), "{status}");
        edgectl(&["routes", "add", "cloud.example.com", "100.64.0.2"])
    });
    rustix::process::kill_process(Pid::from_child(&edged), Signal::TERM)?;
    let end = edged.wait()?;
    ended?;
    ensure!(end.success(), "edged ended with {end}");
    fs::remove_dir_all(&layout)?;
    println!("image: serves as the user edge, without capabilities");
    Ok(())
}
