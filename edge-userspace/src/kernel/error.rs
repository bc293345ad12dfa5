//! Failures of kernel calls, each with the name of the call.

use std::{fmt::Write as _, io, path::PathBuf};

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};
use thiserror::Error;

use super::{Finding, State};

/// Why a part of the kernel's side is not to be had.
#[derive(Debug, Error)]
pub enum KernelError {
    /// There is no BPF filesystem and none could be mounted.
    #[error("no BPF filesystem at {path}")]
    NoBpfFilesystem {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it could not be mounted.
        source: io::Error,
    },
    /// A pin whose shape is not the one that its path promises.
    #[error("{path} is not what a daemon of this layout pins")]
    OtherLayout {
        /// The pin.
        path: PathBuf,
    },
    /// A file of the BPF filesystem, or an object file.
    #[error("{call} {path}")]
    File {
        /// The attempted action.
        call: &'static str,
        /// With which file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An object has no such program or map: it is not one of this version.
    #[error("the {object} object has no {part}")]
    Incomplete {
        /// The object.
        object: &'static str,
        /// The program or map.
        part: &'static str,
    },
    /// An object could not be loaded: its maps, mostly.
    #[error("loading the {object} object")]
    Object {
        /// The object.
        object: &'static str,
        /// The cause.
        source: Box<EbpfError>,
    },
    /// A program was refused or could not be attached.
    #[error("{call} the {program} program")]
    Program {
        /// The attempted action.
        call: &'static str,
        /// The program.
        program: &'static str,
        /// The cause.
        source: Box<ProgramError>,
    },
    /// A map was refused, or an access to it.
    #[error("{call} the map {map}")]
    Map {
        /// The attempted action.
        call: &'static str,
        /// The map.
        map: &'static str,
        /// The cause.
        source: Box<MapError>,
    },
    /// A link could not be pinned.
    #[error("pinning {path}")]
    Pin {
        /// The pin.
        path: PathBuf,
        /// The cause.
        source: Box<PinError>,
    },
    /// The keeper refused, or is gone.
    #[error("{words}")]
    Keeper {
        /// In words.
        words: String,
        /// Whether the kernel refused it for want of rights.
        denied: bool,
    },
    /// A plain system call.
    #[error("{call}")]
    Call {
        /// Which.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl KernelError {
    /// The error and its causes in one line. A verifier's log is reduced to its last words: what it says
    /// before is for the authors of the program.
    pub fn words(&self) -> String {
        let mut words = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
                let log = verifier_log.to_string();
                let reason = log.lines().rev().map(str::trim).find(|line| {
                    !(line.is_empty()
                        || line.starts_with("processed ")
                        || line.starts_with("verification time"))
                });
                // Writing to a string cannot fail.
                let _ = write!(words, ": the verifier refused it: {io_error}");
                if let Some(reason) = reason {
                    let _ = write!(words, " ({reason})");
                }
                return words;
            }
            let said = error.to_string();
            if !words.contains(&said) {
                let _ = write!(words, ": {said}");
            }
            cause = error.source();
        }
        words
    }

    /// The system's error code at the bottom, if there is one.
    fn code(&self) -> Option<i32> {
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.raw_os_error();
            }
            cause = error.source();
        }
        None
    }

    /// Whether the kernel refused for want of rights, not of ability.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Keeper { denied: true, .. })
            || matches!(self.code(), Some(libc::EPERM | libc::EACCES))
    }

    /// The error as something to tell the operator; `name` is the part that is missing, `effect` what follows.
    pub fn finding(&self, name: &'static str, effect: &str) -> Finding {
        let finding = Finding::new(name, State::Missing, format!("{effect}: {}", self.words()));
        match self {
            Self::OtherLayout { .. } => {
                finding.remedy("run `edged --uninstall`, which also ends what that version still carries")
            }
            Self::NoBpfFilesystem { .. } => finding.remedy("mount -t bpf bpf /sys/fs/bpf"),
            _ if self.is_denied() => {
                finding.remedy("start edged as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_RESOURCE")
            }
            _ => finding,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_the_call_and_every_cause_once() {
        let error = KernelError::File {
            call: "removing",
            path: "/sys/fs/bpf/x".into(),
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        assert_eq!(error.words(), "removing /sys/fs/bpf/x: Operation not permitted (os error 1)");
        assert!(error.is_denied());
        let finding = error.finding("shield", "blocks have no effect");
        assert_eq!(finding.state, State::Missing);
        assert!(finding.message.starts_with("blocks have no effect: removing"));
        assert!(finding.remedy.unwrap().contains("CAP_BPF"));
    }
}
