//! The cgroup that programs which watch this daemon's sockets are attached to.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::{KernelError, probe};

/// The systemd slice of the unit.
///
/// The kernel gives an accepted socket the cgroup of its listener (`sk_clone_lock`, `cgroup_sk_clone`).
/// Listeners stay open over a restart, while systemd gives the service a new cgroup. Sockets that they accept
/// still belong to the old cgroup, and a program in the new one never sees them. The slice contains both, and
/// stays.
const SLICE: &str = "edge.slice";

/// The cgroup that has this process and every socket that its listeners accept, opened.
pub(super) fn open_own_cgroup() -> Result<File, KernelError> {
    let path = own_cgroup()?;
    File::open(&path).map_err(|source| KernelError::File { call: "opening", path, source })
}

/// The directory of this process's cgroup.
fn own_cgroup() -> Result<PathBuf, KernelError> {
    let error = |source| KernelError::Call { call: "looking for a cgroup v2 hierarchy", source };
    let mount = probe::cgroup().ok_or_else(|| error(io::Error::other("none is mounted")))?;
    let groups = fs::read_to_string("/proc/self/cgroup").map_err(error)?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let directory = mount.join(own);
    // Out of sight in a container that shows another part of the hierarchy.
    Ok(if directory.is_dir() { lasting(&directory).to_owned() } else { mount })
}

/// The cgroup that outlives a restart of the service: its slice, where that is edged's alone.
fn lasting(own: &Path) -> &Path {
    own.parent().filter(|parent| parent.ends_with(SLICE)).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slice_of_the_unit_is_watched_and_no_other() {
        let watched = |own: &str| lasting(Path::new(own)).to_owned();
        assert_eq!(watched("/cg/edge.slice/edged.service"), Path::new("/cg/edge.slice"));
        assert_eq!(watched("/cg/system.slice/edged.service"), Path::new("/cg/system.slice/edged.service"));
        assert_eq!(watched("/cg/edge.slice"), Path::new("/cg/edge.slice"));
    }
}
