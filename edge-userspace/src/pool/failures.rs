//! Counts of failed connections to a backend, by reason.

use std::{
    io::ErrorKind,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::connect::ConnectError;

/// Why a connection to a backend failed: `reason` of `edge_backend_connect_failures_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Its name has no address.
    Unresolved,
    /// Its tunnel device is not there or cannot be used.
    Device,
    /// This machine had no socket or port left.
    Local,
    /// It refused: nothing listens on its port.
    Refused,
    /// No route leads to it, or a router reported it unreachable.
    Unreachable,
    /// It did not answer in time.
    Timeout,
    /// It went down meanwhile, and another was tried.
    WentDown,
    /// Something else.
    Other,
}

impl Failure {
    const ALL: [Self; 8] = [
        Self::Unresolved,
        Self::Device,
        Self::Local,
        Self::Refused,
        Self::Unreachable,
        Self::Timeout,
        Self::WentDown,
        Self::Other,
    ];

    /// The kind of an error; `None` where no backend was tried.
    pub(super) fn of(error: &ConnectError) -> Option<Self> {
        Some(match error {
            ConnectError::Drained | ConnectError::Full(_) => return None,
            ConnectError::Unresolved(_) | ConnectError::NoLabel { .. } => Self::Unresolved,
            ConnectError::Device { .. } => Self::Device,
            ConnectError::Local { .. } => Self::Local,
            ConnectError::TimedOut { .. } => Self::Timeout,
            ConnectError::WentDown(_) => Self::WentDown,
            ConnectError::Refused { error, .. } | ConnectError::Unix { error, .. } => match error.kind() {
                ErrorKind::ConnectionRefused => Self::Refused,
                // A Unix socket that is not there is found nowhere.
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NotFound => {
                    Self::Unreachable
                }
                ErrorKind::TimedOut => Self::Timeout,
                _ => Self::Other,
            },
        })
    }

    /// Its name in the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::Device => "device",
            Self::Local => "local",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::WentDown => "went_down",
            Self::Other => "other",
        }
    }
}

/// The counts of one backend.
#[derive(Debug, Default)]
pub struct Failures([AtomicU64; Failure::ALL.len()]);

impl Failures {
    pub(super) fn count(&self, failure: Failure) {
        self.0[failure as usize].fetch_add(1, Relaxed);
    }

    /// The reasons that have occurred, with their counts.
    pub fn counts(&self) -> impl Iterator<Item = (Failure, u64)> {
        let counts =
            Failure::ALL.into_iter().map(|failure| (failure, self.0[failure as usize].load(Relaxed)));
        counts.filter(|&(_, count)| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_is_counted_by_itself() {
        let failures = Failures::default();
        for failure in Failure::ALL {
            failures.count(failure);
        }
        failures.count(Failure::Refused);
        let counts: Vec<_> = failures.counts().map(|(failure, count)| (failure.as_str(), count)).collect();
        assert_eq!(counts.len(), Failure::ALL.len());
        assert!(counts.contains(&("refused", 2)) && counts.contains(&("other", 1)), "{counts:?}");
    }

    #[test]
    fn the_errors_of_the_kernel_are_told_apart() {
        let of = |errno| {
            let error = io::Error::from_raw_os_error(errno);
            Failure::of(&ConnectError::Refused { address: "192.0.2.1:443".parse().unwrap(), error })
        };
        assert_eq!(of(libc::ECONNREFUSED), Some(Failure::Refused));
        assert_eq!(of(libc::EHOSTUNREACH), Some(Failure::Unreachable));
        assert_eq!(of(libc::ENETUNREACH), Some(Failure::Unreachable));
        assert_eq!(of(libc::ETIMEDOUT), Some(Failure::Timeout));
        assert_eq!(of(libc::EACCES), Some(Failure::Other));
        assert_eq!(Failure::of(&ConnectError::Drained), None);
    }
}
