//! The process as the client libraries of Prometheus show it: `process_*`.

use procfs::{CurrentSI as _, KernelStats, process::Process as Proc};

/// What the process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Processor time in user and kernel mode, in seconds. What the kernel does for flows is not in it.
    pub cpu_seconds: f64,
    /// When it started, in seconds since the epoch.
    pub start_time_seconds: f64,
    /// Resident memory in bytes.
    pub resident_memory_bytes: u64,
    /// Virtual memory in bytes.
    pub virtual_memory_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// How many may be open.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
}

impl Process {
    /// This process, now.
    ///
    /// # Errors
    ///
    /// `/proc` cannot be read.
    #[expect(clippy::cast_precision_loss, reason = "ticks of processor time are far from 2^52")]
    pub fn now() -> procfs::ProcResult<Self> {
        let process = Proc::myself()?;
        let stat = process.stat()?;
        let ticks = procfs::ticks_per_second() as f64;
        let max_fds = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        Ok(Self {
            cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
            start_time_seconds: KernelStats::current()?.btime as f64 + stat.starttime as f64 / ticks,
            resident_memory_bytes: stat.rss * procfs::page_size(),
            virtual_memory_bytes: stat.vsize,
            open_fds: process.fd_count()? as u64,
            max_fds: max_fds.unwrap_or(u64::MAX),
            threads: u64::try_from(stat.num_threads).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn this_process_is_seen_as_it_is() {
        let before = Process::now().unwrap();
        let held: Vec<_> = (0..16).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let process = Process::now().unwrap();
        assert!(process.open_fds >= before.open_fds + held.len() as u64, "{process:?}");
        assert!(process.open_fds < process.max_fds, "{process:?}");
        assert!(process.resident_memory_bytes > 1 << 20, "{process:?}");
        assert!(process.virtual_memory_bytes > process.resident_memory_bytes, "{process:?}");
        assert!(process.threads >= 1, "{process:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - 86_400.0..now + 1.0).contains(&process.start_time_seconds), "{now} {process:?}");
    }
}
