//! Dropped rights: both processes have no more rights than docs/security.md says, and the daemon survives the
//! end of its keeper.

use std::{collections::BTreeMap, fs, net::SocketAddr, os::fd::OwnedFd, path::Path, process::Command};

use lab::{
    Context, Edged, Lab, Pid, Result, Signal, ensure,
    firewall::{nft, tracked, until_untracked},
    require::{self, Need},
    service,
    wait::{self, SOON},
};
use rustix::{
    net::{RecvFlags, SendFlags, SocketType, recv, send, sockopt},
    process::{PidfdFlags, PidfdGetfdFlags, kill_process, pidfd_getfd, pidfd_open},
};
use serde_json::{Value, json};

use crate::{behind_firewall, case, greeting};

/// `linux/capability.h`.
const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const SYS_RESOURCE: u64 = 1 << 24;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;
/// The mode of seccomp with a filter.
const FILTERED: &str = "2";
/// Checks of doctor that this module reads.
const CHECKS: [&str; 6] =
    ["user", "system calls", "files", "netlink", "configuration file", "privileged process"];

fn body(lab: &Lab) -> String {
    format!("[[route]]\nhost = \"a.example\"\nto = \"{}\"\n", lab.home_address())
}

/// The fields of a `status` file of proc(5).
struct Status(BTreeMap<String, String>);

impl Status {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Ok(Self(fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()))
    }

    fn of(pid: u32) -> Result<Self> {
        Self::read(Path::new(&format!("/proc/{pid}/status")))
    }

    fn get(&self, name: &str) -> Result<&str> {
        self.0.get(name).map(String::as_str).with_context(|| format!("no {name}"))
    }

    fn capabilities(&self, set: &str) -> Result<u64> {
        Ok(u64::from_str_radix(self.get(set)?, 16)?)
    }

    /// The process can obtain no capabilities but these, now or later. Further ones in the bounding set could
    /// only be gained by running a program, which `no_new_privs` makes useless.
    fn has_no_more_than(&self, allowed: u64, bounding: u64) -> Result<()> {
        for (set, allowed) in
            [("CapInh", 0), ("CapPrm", allowed), ("CapEff", allowed), ("CapBnd", bounding), ("CapAmb", 0)]
        {
            let have = self.capabilities(set)?;
            ensure!(have & !allowed == 0, "{set} is {have:#x}, allowed is {allowed:#x}");
        }
        ensure!(self.get("NoNewPrivs")? == "1" && self.get("Seccomp")? == FILTERED);
        Ok(())
    }
}

/// The process that keeps the rights of this one.
pub(crate) fn keeper_of(daemon: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children"))?;
    let children: Vec<u32> = children.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(children.len() == 1, "{children:?} are the children");
    Ok(children[0])
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Doctor's findings for these checks, by name.
fn doctor(edged: &Edged) -> Result<BTreeMap<String, (String, String)>> {
    let output = edged.edgectl().run(&["doctor", "--json"])?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).context("doctor's report")?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let checks = report["checks"].as_array().context("no checks")?;
    Ok(checks
        .iter()
        .map(|check| (text(&check["name"]), (text(&check["status"]), text(&check["message"]))))
        .collect())
}

#[test]
fn the_daemon_runs_as_edge_and_keeps_three_capabilities() -> Result<()> {
    if !require::all(&[Need::User("edge")]) {
        return Ok(());
    }
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "one")?;
        let mut edged = Edged::plan(lab, &body(lab)).daemon("datapath = \"flow\"").start()?;
        ensure!(greeting(lab, "a.example")? == "one");
        let daemon = edged.process().pid();
        let root = Status::of(std::process::id())?.get("Uid")?.to_owned();
        let (mut threads, mut admins) = (0, 0);
        for thread in fs::read_dir(format!("/proc/{daemon}/task"))? {
            let status = Status::read(&thread?.path().join("status"))?;
            for ids in ["Uid", "Gid"] {
                let ids = status.get(ids)?;
                ensure!(ids != root && ids.split_whitespace().all(|id| ids.starts_with(id)), "{ids}");
            }
            ensure!(status.get("Groups")?.is_empty(), "groups: {}", status.get("Groups")?);
            let name = status.get("Name")?;
            let allowed = NET_BIND_SERVICE | SYS_RESOURCE;
            // These cannot use netlink.
            let is_admin = name == "net-admin" || name.starts_with("worker-");
            let allowed = if is_admin { allowed | NET_ADMIN } else { allowed };
            status
                .has_no_more_than(allowed, allowed | NET_ADMIN)
                .with_context(|| format!("thread {name}"))?;
            ensure!(is_admin || status.capabilities("CapEff")? & NET_ADMIN == 0);
            admins += u32::from(is_admin);
            threads += 1;
        }
        ensure!(threads > admins && admins >= 2, "{admins} of {threads} threads have CAP_NET_ADMIN");

        let keeper = Status::of(keeper_of(daemon)?)?;
        ensure!(keeper.get("Name")? == "edged-keeper" && keeper.get("Threads")? == "1");
        let kept = NET_ADMIN | PERFMON | BPF;
        keeper.has_no_more_than(kept, kept)?;
        // It listens nowhere, and holds no sockets but the one to the daemon and two of netlink (conntrack, IPsec).
        let sockets = fs::read_dir(format!("/proc/{}/fd", keeper.get("Pid")?))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with("socket:"))
            .count();
        ensure!(sockets == 3, "the keeper has {sockets} sockets");

        let said = doctor(&edged)?;
        for check in CHECKS {
            let (status, message) = said.get(check).with_context(|| format!("no {check:?} in {said:?}"))?;
            ensure!(status == "ok", "{check}: {status}: {message}");
        }
        Ok(())
    })
}

#[test]
fn the_daemon_goes_on_without_its_keeper_and_says_so() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "one")?;
        let mut edged = Edged::start(lab, &body(lab))?;
        let keeper = keeper_of(edged.process().pid())?;
        // A signal to the whole service does not stop the keeper.
        kill(keeper, Signal::TERM)?;
        kill(keeper, Signal::HUP)?;
        ensure!(doctor(&edged)?["privileged process"].0 == "ok");
        kill(keeper, Signal::KILL)?;
        wait::until_ok("doctor to say so", SOON, || {
            let (status, message) = doctor(&edged)?["privileged process"].clone();
            ensure!(status == "fail" && message.contains("ended"), "{status}: {message}");
            Ok(())
        })?;
        ensure!(greeting(lab, "a.example")? == "one", "it must go on serving");
        edged.edgectl().text(&["reload"])?;
        ensure!(edged.terminate()? == Some(0));
        Ok(())
    })
}

#[test]
fn the_keeper_ends_with_the_daemon_however_that_ends() -> Result<()> {
    case(|lab| {
        let _service = service::named(&lab.home, lab.home_at(443), "one")?;
        for killed in [true, false] {
            let mut edged = Edged::start(lab, &body(lab))?;
            let keeper = keeper_of(edged.process().pid())?;
            if killed {
                edged.kill()?;
            } else {
                ensure!(edged.terminate()? == Some(0));
            }
            wait::until_true("the keeper to end", SOON, || !is_there(keeper))?;
        }
        Ok(())
    })
}

#[test]
fn files_that_a_daemon_of_root_left_are_taken_over() -> Result<()> {
    if !require::all(&[Need::User("edge")]) {
        return Ok(());
    }
    case(|lab| {
        use std::os::unix::fs::MetadataExt as _;
        let _added = service::named(&lab.home, lab.home_at(1001), "added")?;
        let edged = Edged::start(lab, &body(lab))?;
        let (state, log) = (edged.state().to_owned(), edged.access_log.path().clone());
        edged.edgectl().text(&["routes", "add", "b.example", &lab.home_at(1001).to_string()])?;
        edged.kill()?;
        let files: Vec<_> = fs::read_dir(&state)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        for path in files.iter().chain([&state, &log]) {
            std::os::unix::fs::chown(path, Some(0), Some(0))?;
        }
        let edged = Edged::start(lab, &body(lab))?;
        ensure!(greeting(lab, "b.example")? == "added");
        edged.access_log.wait_for_host("b.example")?;
        edged.edgectl().text(&["routes", "remove", "b.example"])?;
        for path in files.iter().chain([&state, &log]).filter(|path| path.exists()) {
            ensure!(fs::metadata(path)?.uid() != 0, "{} is still root's", path.display());
        }
        Ok(())
    })
}

#[test]
fn a_configuration_that_only_root_can_read_is_named() -> Result<()> {
    if !require::all(&[Need::User("edge")]) {
        return Ok(());
    }
    case(|lab| {
        use std::os::unix::fs::PermissionsExt as _;
        let _service = service::named(&lab.home, lab.home_at(443), "one")?;
        let edged = Edged::start(lab, &body(lab))?;
        let config = edged.config().to_owned();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600))?;
        let complaint = edged.edgectl().refused(1, &["reload"])?;
        ensure!(complaint.contains("ermission denied"), "{complaint}");
        ensure!(greeting(lab, "a.example")? == "one", "what runs goes on");
        fs::set_permissions(&config, fs::Permissions::from_mode(0o644))?;
        edged.edgectl().text(&["reload"])?;
        Ok(())
    })
}

#[test]
fn the_unit_scores_below_two() -> Result<()> {
    if !require::all(&[Need::Program("systemd-analyze", "systemd")]) {
        return Ok(());
    }
    case(|lab| {
        let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/edged.service");
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--offline=true", "--no-pager", unit]);
        let text = lab.edge.text_of(analyze)?;
        let line = text.lines().find(|line| line.contains("Overall exposure level")).context("no level")?;
        let level = line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).context("no number")?;
        ensure!(level < 2.0, "{line}");
        Ok(())
    })
}

fn kill(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid.cast_signed()).context("no such process")?;
    Ok(kill_process(pid, signal)?)
}

/// The daemon's end of the socket pair to its keeper, as an attacker who controls the daemon has it.
fn channel_of(daemon: u32) -> Result<OwnedFd> {
    let pid = Pid::from_raw(daemon.try_into()?).context("no process")?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    for entry in fs::read_dir(format!("/proc/{daemon}/fd"))? {
        let number = entry?.file_name().to_string_lossy().parse()?;
        // The socket pair is the only one of its kind.
        if let Ok(descriptor) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())
            && sockopt::socket_type(&descriptor) == Ok(SocketType::SEQPACKET)
        {
            return Ok(descriptor);
        }
    }
    lab::bail!("the daemon has no socket pair")
}

/// The row of docs/security.md about connection tracking: what can be asked for is about single connections, and lasts.
#[test]
fn who_owns_the_daemon_can_ask_for_single_entries_of_connection_tracking() -> Result<()> {
    /// In one request.
    const MOST: usize = 64;
    behind_firewall(|| {
        case(|lab| {
            nft(&lab.edge, "insert rule inet filter input tcp dport 9999 drop")?;
            let mut edged = Edged::start(lab, &body(lab))?;
            let daemon = edged.process().pid();
            let channel = channel_of(daemon)?;
            // The daemon's own requests would come in between.
            kill(daemon, Signal::STOP)?;
            let ask = |request: &Value| -> Result<Value> {
                send(&channel, &serde_json::to_vec(request)?, SendFlags::empty())?;
                let mut answer = vec![0; 1 << 16];
                let (_, length) = recv(&channel, &mut answer, RecvFlags::empty())?;
                Ok(serde_json::from_slice(&answer[..length])?)
            };
            let done = json!({ "Ok": "Done" });
            let live = lab.client.connect(lab.edge.at(443))?;
            let is_live = format!("sport={} dport=443 ", live.local_addr()?.port());
            let is_there =
                || tracked(&lab.edge).is_ok_and(|all| all.iter().any(|entry| entry.contains(&is_live)));
            ensure!(is_there(), "the connection is not tracked");

            let connection = |local: &str, peer: &str| json!({ "local": local, "peer": peer });
            let forget = |connections: Vec<Value>| json!({ "ForgetTracks": { "connections": connections } });
            // No wildcard: all of these name one connection each, and none that is there.
            for (local, peer) in [
                ("0.0.0.0:0", "0.0.0.0:0"),
                ("198.18.1.1:443", "0.0.0.0:0"),
                ("198.18.1.1:443", "198.18.1.2:0"),
                ("[::]:0", "[::]:0"),
                ("[::ffff:198.18.1.1]:443", "[::ffff:198.18.1.2]:0"),
            ] {
                for request in ["ForgetTracks", "LoosenTracks"] {
                    let request = json!({ request: { "connections": [connection(local, peer)] } });
                    ensure!(ask(&request)? == done, "{request}");
                }
                ensure!(is_there(), "{local} and {peer} were too many");
            }
            let many = vec![connection("198.18.1.1:443", "198.18.1.2:1"); MOST + 1];
            for request in [
                forget(many.clone()),
                json!({ "LoosenTracks": { "connections": many } }),
                json!({ "AdmitTrack": { "connections": [] } }),
                json!({ "AdmitTrack": { "connection": connection("198.18.1.1:443", "198.18.1.2:1"), "timeout": 99 } }),
                json!({ "FlushTracks": {} }),
                json!("ForgetTracks"),
            ] {
                let answer = ask(&request)?;
                ensure!(
                    answer["Err"]["words"].as_str().is_some_and(|words| words.contains("request")),
                    "{answer}"
                );
            }
            ensure!(is_there(), "it was forgotten");

            // The daemon can obtain this much: an entry for some seconds, which rules about ports do not
            // accept.
            let (local, peer) = (SocketAddr::from((lab.edge.v4, 9999)), SocketAddr::from((lab.client.v4, 9)));
            let admitted = connection(&local.to_string(), &peer.to_string());
            ensure!(ask(&json!({ "AdmitTrack": { "connection": admitted } }))? == done);
            let entry = tracked(&lab.edge)?.into_iter().find(|entry| entry.contains("sport=9999 "));
            let entry = entry.context("no entry")?;
            let seconds: u64 = entry.split_whitespace().nth(4).context("no time")?.parse()?;
            ensure!(seconds <= 10 && entry.contains("ESTABLISHED"), "{entry}");
            let _listener = service::echo(&lab.edge, local)?;
            ensure!(!lab.client.accepts(local), "a rule about ports does not hold");
            until_untracked(&lab.edge, |entry| entry.contains("sport=9999 "))?;

            // And the end of a single one.
            let own = connection(&lab.edge.at(443).to_string(), &live.local_addr()?.to_string());
            ensure!(ask(&forget(vec![own]))? == done && !is_there(), "it is still there");
            kill(daemon, Signal::CONT)
        })
    })
}
