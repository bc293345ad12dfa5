//! Programs on a host of the lab. Their output goes to files; a failing case shows the last lines of these.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How much of a log is shown when a case fails.
const LOG_TAIL: usize = 4096;

/// A program that keeps running; killed when the value goes.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    detached: bool,
}

impl Process {
    /// Starts `command` with both outputs appended to `log`.
    pub fn spawn(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::options().create(true).append(true).open(&log).context("opening a log")?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log, detached: false })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait::until(&what, deadline, || self.child.try_wait().ok().flatten())
            .with_context(|| format!("its log:\n{}", self.log()))
    }

    /// Asks `ready` until it says yes; an error when the program ends before, or `deadline` passes.
    pub fn wait_ready(&mut self, deadline: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let what = format!("{} to be ready", self.name);
        let ended = wait::until(&what, deadline, || match self.child.try_wait() {
            Ok(Some(status)) => Some(Some(status)),
            _ => ready().then_some(None),
        });
        match ended {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                Err(anyhow::anyhow!("{} ended early ({status}); its log:\n{}", self.name, self.log()))
            }
            Err(error) => Err(error.context(format!("its log:\n{}", self.log()))),
        }
    }

    /// Where its outputs go.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// The end of what it wrote so far.
    pub fn log(&self) -> String {
        tail(&self.log)
    }

    /// All that it wrote so far.
    pub fn whole_log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    /// Resident memory in bytes (`VmRSS`).
    pub fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kibibytes * 1024)
    }

    /// How many file descriptors it has open.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// Processor time used so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        let fields = stat.rsplit_once(')').context("no comm in stat")?.1;
        let mut times = fields.split_whitespace().skip(11);
        let mut ticks = || -> Result<u64> { Ok(times.next().context("stat is short")?.parse()?) };
        let total = ticks()? + ticks()?;
        Ok(Duration::from_secs(total) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }

    /// Lets the program outlive this value.
    pub fn detach(&mut self) {
        self.detached = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn tail(path: &Path) -> String {
    let whole = fs::read(path).unwrap_or_default();
    let start = whole.len().saturating_sub(LOG_TAIL);
    String::from_utf8_lossy(&whole[start..]).into_owned()
}

/// Runs `command` to its end with `input` on its standard input; kills it after `deadline`.
pub fn run(mut command: Command, input: &[u8], deadline: Duration) -> Result<Output> {
    let deadline = wait::patient(deadline);
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
    let stdin = child.stdin.take();
    let pid = Pid::from_child(&child);
    let (ended, has_ended) = channel::<()>();
    let output = thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut stdin) = stdin {
                // A program that ends without reading all of it is judged by its output.
                let _ = stdin.write_all(input);
            }
            if has_ended.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        let output = child.wait_with_output();
        drop(ended);
        output
    })?;
    ensure!(
        output.status.signal() != Some(Signal::KILL.as_raw()),
        "{program} did not end within {deadline:?}; it complained:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}
