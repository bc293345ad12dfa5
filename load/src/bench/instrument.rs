//! The instruments that count the edge's work instead of its time: counts are the same on a busy machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// Hides the daemon's user from the program behind it alone: valgrind's pipes for queries belong to root, and
/// another user gets no answers.
const WITHOUT_USER: &str =
    r#"grep -v ^edge: /etc/passwd > "$1" && mount --bind "$1" /etc/passwd && shift && exec "$@""#;

/// The name of edged's privileged process.
const KEEPER: &str = "edged-keeper";

/// A program around the edge's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Instrument {
    /// None: the edge as it is.
    #[default]
    None,
    /// Valgrind, which counts instructions in user space.
    Callgrind,
    /// strace, which writes a line for each system call.
    Calls,
    /// strace for nothing: each system call costs two more switches of context.
    Slow,
}

impl Instrument {
    /// The program that it takes, and Debian's package of it.
    pub(crate) fn program(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::None => None,
            Self::Callgrind => Some(("valgrind", "valgrind")),
            Self::Calls | Self::Slow => Some(("strace", "strace")),
        }
    }

    /// The command line in front of the edge's; what is counted goes into `directory`.
    pub(crate) fn words(self, directory: &Path) -> Vec<String> {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        match self {
            Self::None => Vec::new(),
            Self::Callgrind => {
                let file = format!("--callgrind-out-file={}/callgrind.%p", directory.display());
                let passwd = directory.join("passwd");
                let mut all: Vec<String> = words(&["unshare", "--mount", "sh", "-c", WITHOUT_USER, "sh"]);
                all.push(passwd.to_string_lossy().into_owned());
                all.extend(words(&["valgrind", "-q", "--tool=callgrind", &file]));
                all
            }
            Self::Calls => words(&["strace", "-f", "-qqq", "-o", &calls(directory).to_string_lossy()]),
            Self::Slow => words(&["strace", "-f", "-qqq", "-o", "/dev/null"]),
        }
    }

    /// The work of these processes since their start or, if valgrind counts, since the last query.
    pub(crate) fn count(self, directory: &Path, processes: impl Iterator<Item = i32>) -> Result<u64> {
        match self {
            Self::None | Self::Slow => Ok(0),
            Self::Callgrind => {
                // The keeper is forked, and valgrind makes no pipe for it; it takes no part in connections.
                let is_keeper = |pid: &i32| {
                    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == KEEPER)
                };
                processes.filter(|pid| !is_keeper(pid)).map(|pid| instructions(directory, pid)).sum()
            }
            Self::Calls => {
                let trace =
                    fs::read_to_string(calls(directory)).context("reading the trace of system calls")?;
                Ok(trace.lines().filter(|line| begins_a_call(line)).count() as u64)
            }
        }
    }
}

fn calls(directory: &Path) -> PathBuf {
    directory.join("calls.trace")
}

/// Whether a line of strace, `PID what`, is the beginning of a call, and not a signal, an exit, or the rest
/// of a call that another thread interrupted.
fn begins_a_call(line: &str) -> bool {
    let what = line.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ' ');
    what.starts_with(|letter: char| letter.is_ascii_lowercase())
}

/// Has valgrind write down what it counted and begin again.
fn instructions(directory: &Path, pid: i32) -> Result<u64> {
    let dumps = || -> Result<Vec<PathBuf>> {
        let prefix = format!("callgrind.{pid}.");
        let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
        let paths = entries.collect::<Result<Vec<_>>>()?;
        let of_process =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        Ok(paths.into_iter().filter(of_process).collect())
    };
    for old in dumps()? {
        fs::remove_file(old)?;
    }
    let asked =
        Command::new("vgdb").arg(format!("--pid={pid}")).arg("dump").output().context("running vgdb")?;
    ensure!(asked.status.success(), "vgdb: {}", String::from_utf8_lossy(&asked.stderr).trim());
    let dump = dumps()?.pop().context("valgrind wrote nothing down")?;
    total(&fs::read_to_string(dump)?).context("a dump without a total")
}

/// The count of all instructions in a dump of callgrind.
fn total(dump: &str) -> Option<u64> {
    let line = dump
        .lines()
        .find_map(|line| line.strip_prefix("summary:").or_else(|| line.strip_prefix("totals:")))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_counted_once() {
        let trace = "71 accept4(9, ...) = 12\n72 epoll_wait(3,  <unfinished ...>\n71 --- SIGTERM {} ---\n\
                     72 <... epoll_wait resumed>[], 1024, 5) = 0\n72 +++ exited with 0 +++\n";
        assert_eq!(trace.lines().filter(|line| begins_a_call(line)).count(), 2);
    }

    #[test]
    fn the_total_of_a_dump_is_found() {
        assert_eq!(total("version: 1\nevents: Ir\nsummary: 4711\n\nfn=(1)\n"), Some(4711));
        assert_eq!(total("version: 1\n"), None);
    }
}
