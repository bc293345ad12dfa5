//! Captures the packets on a device with tcpdump: one line per packet.

use std::{
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use anyhow::Result;

use crate::{
    Host,
    process::Process,
    wait::{self, SOON},
};

/// A tcpdump that runs.
#[derive(Debug)]
pub struct Capture {
    process: Process,
}

impl Capture {
    /// Watches a device of a host for what this filter (pcap-filter(7)) takes.
    pub fn start(host: &Host, device: &str, filter: &str) -> Result<Self> {
        // Other hosts have devices of the same name, and one device may be watched twice.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let mut tcpdump = Command::new("tcpdump");
        tcpdump.args(["-l", "-n", "--immediate-mode", "-i", device, filter]);
        let number = NEXT.fetch_add(1, Relaxed);
        let mut process = host.spawn(&format!("tcpdump-{device}-{number}"), tcpdump)?;
        let log = process.log_file().to_owned();
        process.wait_ready(SOON, || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains("listening on"))
        })?;
        Ok(Self { process })
    }

    /// The packets so far.
    pub fn packets(&self) -> Result<Vec<String>> {
        let text = self.process.whole_log()?;
        // A last line without its end is not there yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        // A line of a packet begins with the time of day.
        let of_packet = |line: &&str| line.as_bytes().get(2) == Some(&b':') && line.contains(" IP");
        Ok(whole.lines().filter(of_packet).map(str::to_owned).collect())
    }

    /// Waits for a packet whose line contains this.
    pub fn wait_for(&self, part: &str) -> Result<String> {
        self.wait_for_another(0, part)
    }

    /// The same after this many packets. Ports are reused, so earlier packets may look the same.
    pub fn wait_for_another(&self, seen: usize, part: &str) -> Result<String> {
        wait::until(&format!("a packet with {part:?}"), SOON, || {
            self.packets().ok()?.into_iter().skip(seen).find(|line| line.contains(part))
        })
    }
}
