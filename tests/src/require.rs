//! The features that a case needs of the machine, probed before it starts. A skip is always printed with its
//! reason.

use std::{env, fs, io::Write, path::PathBuf, process::Command};

/// Set to make a missing requirement a failure instead of a skip: `kernel` for all of them, any other value
/// for those that can be installed.
pub const STRICT: &str = "EDGE_LAB_STRICT";

/// Something that a case cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Namespaces, veth devices and addresses may be made.
    Namespaces,
    /// A program in `PATH`, and the Debian package it comes from.
    Program(&'static str, &'static str),
    /// A user of the machine.
    User(&'static str),
    /// A program of a newer Debian, see [`newer`].
    Newer(&'static str),
    /// A TUN device or the kernel's WireGuard.
    Tunnel,
    /// The kernel's own WireGuard.
    KernelTunnel,
    /// Connection tracking and NAT by nftables, in this kernel and as a program.
    Firewall,
    /// Devices of this kind, in the words of `ip link add … type`.
    Device(&'static str),
    /// The kernel's emulator of lines with delay and loss (`sch_netem`).
    Netem,
}

impl Need {
    /// `None` when the machine has it; otherwise the reason, with what to do.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Namespaces if !rustix::process::geteuid().is_root() => {
                Some("network namespaces need root".to_owned())
            }
            Self::Namespaces => can_make_namespace().err(),
            Self::Program(program, package) => {
                find(program).is_none().then(|| format!("{program} is missing: apt-get install {package}"))
            }
            Self::User(name) => {
                let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
                let known = users.lines().any(|line| line.split(':').next() == Some(name));
                (!known).then(|| format!("there is no user {name}: useradd --system {name}"))
            }
            Self::Newer(program) => newer(program)
                .is_none()
                .then(|| format!("{program} of a newer Debian is missing: `cargo xtask test` unpacks it")),
            Self::Tunnel => {
                let kernel = fs::exists("/sys/module/wireguard").unwrap_or(false);
                let tun = fs::exists("/dev/net/tun").unwrap_or(false);
                (!kernel && !tun).then(|| {
                    "neither the WireGuard module nor /dev/net/tun: modprobe wireguard, or modprobe tun"
                        .to_owned()
                })
            }
            Self::KernelTunnel => {
                let device = "ip link add probe0 type wireguard";
                in_namespace(device).err().map(|error| format!("no WireGuard in this kernel: {error}"))
            }
            Self::Firewall => can_translate().err().map(|error| {
                format!("no NAT by nftables ({error}): apt-get install nftables, modprobe nft_masq")
            }),
            Self::Device(kind) => {
                let of_its_own = format!("ip link add probe0 type {kind}");
                let upon_another = format!(
                    "ip link add below type veth peer name far; ip link add link below name probe0 type {kind}{}",
                    if kind == "vlan" { " id 10" } else { "" }
                );
                let commands = if matches!(kind, "vlan" | "macvlan") { upon_another } else { of_its_own };
                in_namespace(&commands).err().map(|error| format!("no {kind} in this kernel: {error}"))
            }
            Self::Netem => {
                let qdisc = "tc qdisc add dev lo root netem delay 1ms";
                in_namespace(qdisc).err().map(|error| format!("no sch_netem in this kernel: {error}"))
            }
        }
    }

    /// Whether no package brings it.
    fn is_of_the_kernel(self) -> bool {
        matches!(self, Self::KernelTunnel | Self::Netem | Self::Firewall | Self::Device(_))
    }
}

/// Whether all of `needs` are available. If not, prints the reason, and the case must end; with [`STRICT`]
/// set, that is a failure.
///
/// # Panics
///
/// With [`STRICT`] set, if something is missing.
pub fn all(needs: &[Need]) -> bool {
    let strict = env::var(STRICT).ok();
    let missing: Vec<(Need, String)> =
        needs.iter().filter_map(|&need| Some((need, need.missing()?))).collect();
    if missing.is_empty() {
        return true;
    }
    let case = std::thread::current().name().unwrap_or("case").to_owned();
    let may_skip = |need: Need| match strict.as_deref() {
        None => true,
        Some("kernel") => false,
        Some(_) => need.is_of_the_kernel(),
    };
    let may_all = missing.iter().all(|(need, _)| may_skip(*need));
    let reasons = missing.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>().join("; ");
    assert!(may_all, "{case}: {reasons}");
    // Not by `println!`, whose output the test runner hides when a case ends well.
    let _ = writeln!(std::io::stderr(), "skipped {case}: {reasons}");
    false
}

/// Where a program is: in `PATH`, or where Debian has programs for root.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// A program that `cargo xtask test` has unpacked beside the builds, because this machine's Debian has none
/// or too old a version.
pub fn newer(program: &str) -> Option<PathBuf> {
    let own = env::current_exe().ok()?;
    own.ancestors()
        .map(|directory| directory.join("peers/usr/bin").join(program))
        .find(|candidate| candidate.is_file())
}

fn can_make_namespace() -> Result<(), String> {
    in_namespace("ip link add probe0 type veth peer name probe1")
        .map_err(|error| format!("{error} (a container without CAP_SYS_ADMIN?)"))
}

/// Checks with nft, without changing anything, whether the kernel accepts rules that track and translate.
fn can_translate() -> Result<(), String> {
    let rules = "add table ip edge_probe; add chain ip edge_probe c { type nat hook postrouting priority 100; }; \
                 add rule ip edge_probe c ct state new masquerade";
    let output = Command::new("nft").args(["--check", rules]).output().map_err(|error| error.to_string())?;
    let complaint = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
    if output.status.success() { Ok(()) } else { Err(complaint) }
}

/// Runs commands of `ip` or `tc`, separated by `;`, in a temporary namespace.
fn in_namespace(commands: &str) -> Result<(), String> {
    let name = format!("edge-probe-{}-{:?}", std::process::id(), std::thread::current().id());
    let name = name.replace(['(', ')'], "");
    iproute2("ip", &["netns", "add", &name])?;
    let outcome = commands.split("; ").try_for_each(|command| {
        let (program, rest) = command.split_once(' ').unwrap_or((command, ""));
        let arguments: Vec<_> = ["-n", &name].into_iter().chain(rest.split(' ')).collect();
        iproute2(program, &arguments)
    });
    iproute2("ip", &["netns", "del", &name])?;
    outcome
}

fn iproute2(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program} does not run ({error}): apt-get install iproute2"))?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", arguments.join(" "), complaint.trim()))
}
