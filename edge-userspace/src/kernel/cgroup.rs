//! The cgroup that programs which watch this daemon's sockets are attached to.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
};

use super::{KernelError, probe};

/// This process's cgroup, opened.
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
    Ok(if directory.is_dir() { directory } else { mount })
}
