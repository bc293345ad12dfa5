//! Giving up rights once everything is loaded.
//!
//! Capabilities belong to threads: call [`keep_only`] before any thread is started, and all that are started
//! later have no more than this one.

use std::collections::HashSet;

pub use caps::Capability;
use caps::{CapSet, errors::CapsError};
use rustix::thread::set_no_new_privs;
use thiserror::Error;

/// Tasks of the daemon or its keeper that need a right after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Duty {
    /// Binding ports below 1024 at a reload.
    LowPorts,
    /// Attaching programs and changing maps.
    Bpf,
    /// Reading and changing maps on kernels that want a right for it (before 5.19).
    Maps,
    /// `TCP_REPAIR`, buffers beyond `net.core.*mem_max`, settings of tunnels.
    Network,
    /// More and larger pipes than `fs.pipe-user-pages-soft` gives.
    Pipes,
}

impl Duty {
    const fn capabilities(self) -> &'static [Capability] {
        match self {
            Self::LowPorts => &[Capability::CAP_NET_BIND_SERVICE],
            // CAP_PERFMON: without it the verifier also walks what a processor might speculate (`bypass_spec_v1`), which
            // is too much for larger programs.
            Self::Bpf => &[Capability::CAP_BPF, Capability::CAP_PERFMON, Capability::CAP_NET_ADMIN],
            Self::Maps => &[Capability::CAP_BPF],
            Self::Network => &[Capability::CAP_NET_ADMIN],
            Self::Pipes => &[Capability::CAP_SYS_RESOURCE],
        }
    }
}

/// Why rights could not be given up.
#[derive(Debug, Error)]
pub enum CapabilityError {
    /// The kernel refused to change a set.
    #[error("dropping capabilities: {0}")]
    Set(#[from] CapsError),
    /// `no_new_privs` could not be set.
    #[error("setting no_new_privs: {0}")]
    NoNewPrivileges(#[from] rustix::io::Errno),
}

/// The capabilities that this thread can use.
pub fn effective() -> Result<HashSet<Capability>, CapabilityError> {
    Ok(caps::read(None, CapSet::Effective)?)
}

/// Drops every capability of this thread but those that the duties take, for good: also from the bounding and
/// the ambient set, and no program that it may start can gain any back.
///
/// Returns what is left, which is less than asked for where the thread had less.
pub fn keep_only(duties: &[Duty]) -> Result<HashSet<Capability>, CapabilityError> {
    let keep: HashSet<_> = duties.iter().flat_map(|duty| duty.capabilities()).copied().collect();
    set_no_new_privs(true)?;
    let permitted = caps::read(None, CapSet::Permitted)?;
    // After a change of user the capabilities are permitted, but none is effective.
    caps::set(None, CapSet::Effective, &permitted)?;
    // The bounding set can be changed only while CAP_SETPCAP is still there. A thread without it has a bounding
    // set that is of no use to it either: with no_new_privs nothing is gained through it.
    if permitted.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::runtime::thread_all_supported() {
            if !keep.contains(&capability) && caps::has_cap(None, CapSet::Bounding, capability)? {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    let left = permitted.intersection(&keep).copied().collect::<HashSet<_>>();
    caps::set(None, CapSet::Effective, &left)?;
    caps::set(None, CapSet::Permitted, &left)?;
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_gone_in_this_thread_and_its_children_alone() {
        let before = effective().unwrap();
        // Test threads share a process: what is dropped must be dropped in a thread of its own.
        let inside = std::thread::spawn(move || {
            let left = keep_only(&[Duty::LowPorts]).unwrap();
            let child = std::thread::spawn(|| effective().unwrap()).join().unwrap();
            assert_eq!(child, left);
            assert!(caps::set(None, CapSet::Permitted, &caps::all()).is_err());
            effective().unwrap()
        });
        let mut expected = before.clone();
        expected.retain(|capability| *capability == Capability::CAP_NET_BIND_SERVICE);
        assert_eq!(inside.join().unwrap(), expected);
        assert_eq!(effective().unwrap(), before);
    }
}
