//! The rig: the lab, the service at home, client processes, and the machine's own count of processor time.

use std::{
    cell::Cell,
    env, fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    thread::available_parallelism,
    time::Duration,
};

use crate::{
    job::{Errand, HelloSize, Job, Report},
    opening::{Order, opening},
};
use anyhow::{Context, Result, ensure};
use lab::{Lab, certificates::Authority, netns, process::Process, wait::SOON};

use super::instrument::Instrument;

/// Where the service takes orders.
pub(crate) const ORDERS: u16 = 443;
/// Where the service shakes hands.
pub(crate) const HANDSHAKES: u16 = 8443;
/// The server name that every edge leads to [`ORDERS`].
pub(crate) const WEB: &str = "web.example";
/// The server name that every edge leads to [`HANDSHAKES`].
pub(crate) const TLS: &str = "tls.example";

/// The kernel's caches for a connection: its sockets, their files and inodes, their entries in epolls and in
/// connection tracking. All slabs together would include directories and pages of everything else on the
/// machine.
const CACHES: [&str; 8] =
    ["TCP", "TCPv6", "eventpoll_epi", "eventpoll_pwq", "ep_head", "filp", "nf_conntrack", "sock_inode_cache"];

/// The congestion control of all hosts, whatever the machine's default is: the first of these that a
/// namespace may use. Both react to loss alone; pacing, as in BBR, would measure timers.
const CONGESTION_CONTROL: [&str; 2] = ["cubic", "reno"];

/// The lab with the service at home.
pub(crate) struct Rig {
    pub(crate) lab: Lab,
    pub(crate) authority: PathBuf,
    pin: Option<Pin>,
    instrument: Cell<Instrument>,
    _service: Process,
}

/// Which processors (as `taskset -c` lists them) belong to whom.
#[derive(Clone, Debug)]
struct Pin {
    ends: String,
    edge: String,
}

/// The cost of a job: its report and the processor time of the whole machine meanwhile.
pub(crate) struct Measured {
    pub(crate) report: Report,
    pub(crate) machine_cpu: Duration,
    pub(crate) edge_cpu: Duration,
}

impl Rig {
    pub(crate) fn new(pin: bool) -> Result<Self> {
        let lab = Lab::plan().forwarding().build()?;
        for host in [&lab.client, &lab.edge, &lab.home] {
            host.sysctl(&[("net.ipv4.tcp_congestion_control", congestion_control())])?;
        }
        let authority = Authority::new(&lab)?;
        let certificate = authority.issue(&lab, &[TLS])?;
        let pin = pin.then(Pin::halves).transpose()?;
        let mut command = placed(pin.as_ref().map(|pin| &*pin.ends), release("edge-load")?);
        command.arg("serve").args(["--on", &lab.home.at(ORDERS).to_string()]);
        command.args(["--tls-on", &lab.home.at(HANDSHAKES).to_string()]);
        command.arg("--certificate").arg(&certificate.certificate).arg("--key").arg(&certificate.key);
        let mut service = lab.home.spawn("service", command)?;
        let (orders, handshakes) = (lab.home.at(ORDERS), lab.home.at(HANDSHAKES));
        service.wait_ready(SOON, || lab.home.accepts(orders) && lab.home.accepts(handshakes))?;
        Ok(Self { lab, authority: authority.file, pin, instrument: Cell::default(), _service: service })
    }

    /// Sets the instrument that programs of the edge run under from now on.
    pub(crate) fn put_under(&self, instrument: Instrument) {
        self.instrument.set(instrument);
    }

    /// Whether programs of the edge run under this.
    pub(crate) fn is_under(&self, instrument: Instrument) -> bool {
        self.instrument.get() == instrument
    }

    /// A command for the edge, on the processors that are its own and under the present instrument.
    pub(crate) fn edge_command(&self, program: impl Into<PathBuf>) -> Command {
        let mut words = self.instrument.get().words(self.lab.directory()).into_iter().map(PathBuf::from);
        let (first, program) = match words.next() {
            None => (program.into(), None),
            Some(first) => (first, Some(program.into())),
        };
        let mut command = placed(self.pin.as_ref().map(|pin| &*pin.edge), first);
        command.args(words).args(program);
        command
    }

    /// The count of the present instrument for everything on the edge.
    pub(crate) fn edge_work(&self) -> Result<u64> {
        self.instrument.get().count(self.lab.directory(), self.edge_processes())
    }

    /// Whether a whole connection to the service works: more than that somebody listens.
    pub(crate) fn answers(&self, at: SocketAddr) -> Result<()> {
        let mut stream = self.lab.client.run(|| Ok(TcpStream::connect_timeout(&at, SOON)?))?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(&opening(WEB, HelloSize::Small, Order::Answer(1)))?;
        Ok(stream.read_exact(&mut [0])?)
    }

    /// Does a job and measures what it costs.
    pub(crate) fn measure(&self, to: SocketAddr, job: &Job) -> Result<Measured> {
        let (machine, edge) = (machine_cpu()?, self.edge_cpu());
        let report = self.drive(to, job)?;
        let (machine_cpu, edge_cpu) =
            (machine_cpu()?.saturating_sub(machine), self.edge_cpu().saturating_sub(edge));
        Ok(Measured { report, machine_cpu, edge_cpu })
    }

    /// Does a job.
    pub(crate) fn drive(&self, to: SocketAddr, job: &Job) -> Result<Report> {
        let text = self.lab.client.run(|| {
            let output = lab::process::run(self.client(to, job)?, b"", 2 * SOON)?;
            let complaint = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "the clients failed: {}", complaint.trim());
            Ok(output.stdout)
        })?;
        serde_json::from_slice(&text).context("reading the clients' report")
    }

    /// Starts a job that goes on until the value is dropped, or by itself.
    pub(crate) fn start(&self, name: &str, to: SocketAddr, job: &Job) -> Result<Process> {
        self.lab.client.spawn(name, self.client(to, job)?)
    }

    fn client(&self, to: SocketAddr, job: &Job) -> Result<Command> {
        let name = if matches!(job, Job::Handshake { .. }) { TLS } else { WEB };
        let errand = Errand { to, name: name.to_owned(), job: job.clone() };
        let mut command = placed(self.pin.as_ref().map(|pin| &*pin.ends), release("edge-load")?);
        // Failures go into the page: the reason, not a trace of our own calls.
        command.env("RUST_BACKTRACE", "0");
        command.arg("drive").arg(serde_json::to_string(&errand)?);
        Ok(command)
    }

    /// Resident memory of all that runs on the edge, in bytes.
    pub(crate) fn edge_resident(&self) -> u64 {
        self.edge_processes().filter_map(|pid| status_field(pid, "VmRSS:")).sum::<u64>() * 1024
    }

    /// Processor time of all processes on the edge so far; in kernel ticks, usually 10 ms.
    fn edge_cpu(&self) -> Duration {
        self.edge_processes().filter_map(process_cpu).sum()
    }

    fn edge_processes(&self) -> impl Iterator<Item = i32> {
        netns::processes(self.lab.edge.namespace().name()).into_iter().map(rustix::process::Pid::as_raw_pid)
    }
}

impl Pin {
    /// The first half of the processors for both ends, the second for the edge.
    fn halves() -> Result<Self> {
        let all = available_parallelism()?.get();
        ensure!(all >= 2, "--pin needs two processors");
        let (ends, edge) = (all / 2 - 1, all - 1);
        Ok(Self { ends: format!("0-{ends}"), edge: format!("{}-{edge}", all / 2) })
    }
}

fn placed(processors: Option<&str>, program: PathBuf) -> Command {
    match processors {
        None => Command::new(program),
        Some(list) => {
            let mut command = Command::new("taskset");
            command.args(["-c", list]).arg(program);
            command
        }
    }
}

/// The congestion control of all hosts.
pub(super) fn congestion_control() -> &'static str {
    let allowed = fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").unwrap_or_default();
    let is_allowed = |name: &&&str| allowed.split_whitespace().any(|other| other == **name);
    CONGESTION_CONTROL.iter().find(is_allowed).unwrap_or(&"reno")
}

/// A release build of the workspace.
pub(crate) fn release(program: &str) -> Result<PathBuf> {
    let own = env::current_exe()?;
    let target = own.ancestors().nth(2).context("xtask runs outside a target directory")?;
    // `cargo test` puts its programs one directory deeper.
    let target = if target.join("release").is_dir() { target } else { target.parent().unwrap_or(target) };
    let path = target.join("release").join(program);
    ensure!(path.is_file(), "{} is not built", path.display());
    Ok(path)
}

/// Time that the machine's processors were busy since it started.
fn machine_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let times: Vec<u64> = line.split_whitespace().skip(1).filter_map(|time| time.parse().ok()).collect();
    // user nice system idle iowait irq softirq (proc_stat(5))
    let [user, nice, system, _, _, irq, softirq, ..] = times[..] else {
        anyhow::bail!("/proc/stat has too few columns")
    };
    Ok(ticks(user + nice + system + irq + softirq))
}

fn process_cpu(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut times = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || times.next()?.parse::<u64>().ok();
    Some(ticks(next()? + next()?))
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / rustix::param::clock_ticks_per_second().max(1))
}

fn status_field(pid: i32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
}

/// Kernel memory of the whole machine, in bytes, in the slabs of [`CACHES`].
pub(crate) fn slab() -> Result<u64> {
    let text = fs::read_to_string("/proc/slabinfo").context("reading /proc/slabinfo")?;
    Ok(text.lines().filter_map(slab_of).sum())
}

/// The bytes in use in a relevant cache: name, objects in use, objects, bytes per object (slabinfo(5)).
fn slab_of(line: &str) -> Option<u64> {
    let [name, used, _, size, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
    CACHES.contains(&name).then_some(used.parse::<u64>().ok()? * size.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_count_and_directories_do_not() {
        assert_eq!(slab_of("TCP      65     91   2496   13    8 : tunables    0    0    0"), Some(65 * 2496));
        assert_eq!(slab_of("dentry   65     91    192   13    8 : tunables    0    0    0"), None);
        assert_eq!(slab_of("slabinfo - version: 2.1"), None);
    }
}
