//! The features of this kernel and the rights of this process, in words. Leaves nothing behind in the kernel.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::{
    maps::MapType,
    programs::{ProgramError, ProgramType, SchedClassifier, TcAttachType},
    sys::{is_map_supported, is_program_supported},
};
use caps::Capability;

use super::{Finding, State, capability, pin};

/// A finding.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Everything looked at, in the order to read it.
    pub findings: Vec<Finding>,
    /// Where the cgroup v2 hierarchy is mounted.
    pub cgroup: Option<PathBuf>,
    /// Whether programs can be attached to `tcx` (6.6); else tc has to do.
    pub tcx: bool,
}

/// The parts that rest on BPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Blocks and limits in XDP.
    Shield,
    /// Redirection between sockets.
    Sockmap,
    /// Established connections handed to tc.
    Flow,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Shield => "shield",
            Self::Sockmap => "sockmap tier",
            Self::Flow => "flow tier",
        }
    }

    const fn programs(self) -> &'static [ProgramType] {
        match self {
            Self::Shield => &[ProgramType::Xdp],
            Self::Sockmap => &[ProgramType::SkSkb, ProgramType::SockOps],
            Self::Flow => &[ProgramType::SchedClassifier, ProgramType::SockOps],
        }
    }

    const fn maps(self) -> &'static [MapType] {
        match self {
            Self::Shield => &[MapType::LpmTrie, MapType::PerCpuArray, MapType::LruHash],
            Self::Sockmap => &[MapType::SockHash, MapType::Hash, MapType::SkStorage, MapType::RingBuf],
            Self::Flow => &[MapType::Hash, MapType::SkStorage, MapType::RingBuf],
        }
    }

    const fn needs_cgroup(self) -> bool {
        matches!(self, Self::Sockmap | Self::Flow)
    }
}

/// Looks at everything.
pub fn probe() -> Probe {
    let cgroup = cgroup();
    let tcx = tcx();
    let mut findings = vec![kernel(), btf(), bpf_filesystem(), cgroup_finding(cgroup.as_deref()), rights()];
    findings.push(match &tcx {
        Ok(true) => Finding::new("tcx", State::Good, "programs attach as links"),
        Ok(false) => {
            Finding::new("tcx", State::Limited, "not in this kernel (it came with 6.6): clsact is used")
        }
        Err(reason) => Finding::new("tcx", State::Unknown, reason.clone()),
    });
    for part in [Part::Shield, Part::Sockmap, Part::Flow] {
        findings.push(match lacks(part, cgroup.is_some()) {
            None => Finding::new(part.name(), State::Good, "the kernel has what it takes"),
            Some(reason) => Finding::new(part.name(), State::Missing, reason),
        });
    }
    Probe { findings, cgroup, tcx: tcx == Ok(true) }
}

/// The feature that the kernel lacks for a part; `None` if it has all.
fn lacks(part: Part, has_cgroup: bool) -> Option<String> {
    for &program in part.programs() {
        match is_program_supported(program) {
            Ok(true) => {}
            Ok(false) => return Some(format!("this kernel has no programs of type {program:?}")),
            Err(error) => return Some(format!("programs of type {program:?}: {}", reason(&error))),
        }
    }
    for &map in part.maps() {
        match is_map_supported(map) {
            Ok(true) => {}
            Ok(false) => return Some(format!("this kernel has no maps of type {map:?}")),
            Err(error) => return Some(format!("maps of type {map:?}: {}", error.io_error)),
        }
    }
    (part.needs_cgroup() && !has_cgroup).then(|| "no cgroup v2 hierarchy is mounted".to_owned())
}

fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(error) => format!("{}: {}", error.call, error.io_error),
        error => error.to_string(),
    }
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let finding = |state, words: &str| Finding::new("kernel", state, format!("Linux {release}{words}"));
    match version {
        (6.., _) | (5, 10..) => finding(State::Good, ""),
        _ => finding(State::Limited, ": older than 5.10, the socket tiers alone are used")
            .remedy("use a kernel of 5.10 or later; 6.6 or later is best"),
    }
}

fn btf() -> Finding {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Finding::new("BTF", State::Good, "the kernel describes its types");
    }
    // The programs use stable contexts and helpers alone.
    Finding::new("BTF", State::Limited, "the kernel does not describe its types; nothing here depends on it")
}

fn bpf_filesystem() -> Finding {
    if pin::is_on_bpf_filesystem(Path::new(pin::DEFAULT_PINS)) {
        return Finding::new("BPF filesystem", State::Good, "mounted at /sys/fs/bpf");
    }
    Finding::new("BPF filesystem", State::Limited, "not mounted; edged mounts it when it starts as root")
        .remedy("mount -t bpf bpf /sys/fs/bpf")
}

/// The first mount of type cgroup2.
pub(super) fn cgroup() -> Option<PathBuf> {
    cgroup_of(&fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// `proc_pid_mountinfo(5)`: the mount point is the fifth field, the type the first behind ` - `.
fn cgroup_of(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        (filesystem.split(' ').next() == Some("cgroup2"))
            .then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn cgroup_finding(path: Option<&Path>) -> Finding {
    match path {
        Some(path) => Finding::new("cgroup v2", State::Good, format!("mounted at {}", path.display())),
        None => Finding::new("cgroup v2", State::Missing, "not mounted")
            .remedy("mount -t cgroup2 none /sys/fs/cgroup/unified"),
    }
}

fn rights() -> Finding {
    let name = "capabilities";
    let wanted = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_NET_BIND_SERVICE];
    match capability::effective() {
        Ok(have) => {
            let lacking: Vec<_> =
                wanted.iter().filter(|c| !have.contains(c)).map(ToString::to_string).collect();
            if lacking.is_empty() {
                return Finding::new(name, State::Good, "all that the fast tiers take");
            }
            Finding::new(name, State::Limited, format!("without {}", lacking.join(", ")))
                .remedy("start edged as root, or with these as ambient capabilities")
        }
        Err(error) => Finding::new(name, State::Unknown, error.to_string()),
    }
}

/// Asks for the programs at a hook, which only a kernel that has the hook answers.
/// Whether this kernel has tc links.
pub(super) fn tcx() -> Result<bool, String> {
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EINVAL) => {
            Ok(false)
        }
        Err(error) => Err(reason(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_found_among_the_mounts() {
        let mounts = "24 1 0:22 / /sys rw - sysfs sysfs rw\n\
            30 24 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 master:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup_of(mounts), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(cgroup_of("30 24 0:26 / /sys/fs/cgroup ro - cgroup cgroup ro,cpu\n"), None);
    }

    #[test]
    fn everything_is_looked_at_and_what_is_missing_has_a_reason() {
        let probe = probe();
        let names: Vec<_> = probe.findings.iter().map(|finding| finding.name).collect();
        for name in
            ["kernel", "BTF", "BPF filesystem", "cgroup v2", "capabilities", "tcx", "shield", "flow tier"]
        {
            assert!(names.contains(&name), "{name} is not among {names:?}");
        }
        for finding in &probe.findings {
            assert!(!finding.message.is_empty(), "{finding:?}");
        }
    }

    #[test]
    fn without_rights_the_probe_says_so() {
        // Threads have capabilities of their own.
        let probe = std::thread::spawn(|| {
            capability::keep_only(&[]).unwrap();
            probe()
        });
        let probe = probe.join().unwrap();
        let shield = probe.findings.iter().find(|finding| finding.name == "shield").unwrap();
        assert_eq!(shield.state, State::Missing, "{shield:?}");
        let rights = probe.findings.iter().find(|finding| finding.name == "capabilities").unwrap();
        assert!(rights.message.contains("CAP_BPF"), "{rights:?}");
    }
}
