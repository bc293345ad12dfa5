//! The checks of a machine, in the order of its life. Each ends with the same questions: is edged active,
//! does a new connection succeed, does SSH answer?

mod package;

use std::{net::TcpStream, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use lab::wait;

use super::{home, machine::Machine, network::echoes, readme};
use crate::setup;

/// Connections that live through what happens to the machine.
const LIVING: usize = 20;
/// Connections of the check on conntrack, and the limit there.
const MANY: usize = 5000;
const CONNTRACK_MAX: usize = 1024;
/// How many clients open them at the same time.
const AT_ONCE: usize = 8;
/// Time limit for a step that takes a second on real hardware: the machine is emulated, perhaps on a busy host.
const SOON: Duration = Duration::from_mins(6);
/// `systemd-analyze security` rates the unit below this, from 0 (confined) to 10 (not at all).
const MAX_EXPOSURE: f32 = 2.0;

/// Something that has to hold.
pub(super) struct Check {
    pub(super) name: &'static str,
    /// Whether the checks after it need what it does.
    pub(super) is_needed: bool,
    /// The finding; empty if the check was not tried.
    pub(super) run: fn(&mut Visit) -> Result<String>,
}

pub(super) const CHECKS: &[Check] = &[
    Check { name: "systemd is the first process", is_needed: false, run: systemd },
    Check { name: "queues and offloads", is_needed: false, run: offloads },
    Check { name: "firewall and tunnel", is_needed: true, run: firewall_and_tunnel },
    Check { name: "the README, word by word", is_needed: true, run: by_the_readme },
    Check { name: "every tier carries", is_needed: false, run: tiers },
    Check { name: "a broken file is refused", is_needed: false, run: broken_file },
    Check { name: "kill -9", is_needed: false, run: kill },
    Check { name: "the tunnel comes after edged", is_needed: false, run: late_tunnel },
    Check { name: "5,000 connections beside a conntrack of 1,024", is_needed: false, run: many },
    Check { name: "reboot", is_needed: false, run: reboot },
    Check { name: "upgrade from the version before", is_needed: false, run: upgrade },
    Check { name: "the Debian package", is_needed: false, run: package::check },
];

/// A machine and those who look at it.
pub(super) struct Visit {
    machine: Machine,
    has_earlier: bool,
}

impl Visit {
    pub(super) fn new(mut machine: Machine, has_earlier: bool) -> Result<Self> {
        machine.agent.run("mkdir -p /root/new /root/old /root/parcel\ntar -xf /dev/vdb -C /root/parcel")?;
        machine.agent.run("tar -xf /root/parcel/new.tar.gz -C /root/new --strip-components=1")?;
        if has_earlier {
            machine.agent.run("tar -xf /root/parcel/old.tar.gz -C /root/old --strip-components=1")?;
        }
        Ok(Self { machine, has_earlier })
    }

    /// The last lines of edged's journal, for a failed check.
    pub(super) fn journal(&mut self) -> String {
        let said = self.machine.agent.run(
            "journalctl -u edged -n 9000 --no-pager -o cat | grep -v '\"close\":\"finished\"' | tail -n 12",
        );
        said.map_or_else(
            |_| String::new(),
            |said| format!("\n    edged: {}", said.trim().replace('\n', "\n    edged: ")),
        )
    }

    fn run(&mut self, script: &str) -> Result<String> {
        Ok(self.machine.agent.run(script)?.trim().to_owned())
    }

    /// Puts the README's configuration in force, with these lines in its `[daemon]`.
    fn configure(&mut self, daemon: &str) -> Result<()> {
        self.write_configuration(daemon)?;
        self.run("systemctl restart edged")?;
        self.lives()
    }

    fn write_configuration(&mut self, daemon: &str) -> Result<()> {
        let of = "/root/readme.toml";
        let script = format!("{{ echo '[daemon]'; echo '{daemon}'; cat {of}; }} >/etc/edge/edge.toml");
        self.run(&script).map(drop)
    }

    /// Waits until a script succeeds.
    fn until(&mut self, what: &str, script: &str) -> Result<()> {
        let agent = &mut self.machine.agent;
        wait::until_true(what, SOON, || agent.attempt(script).is_ok_and(|(code, _)| code == 0))
    }

    /// The conditions that must hold after every check.
    fn lives(&mut self) -> Result<()> {
        self.until("edged to be active", "systemctl is-active edged")?;
        let clients = &self.machine.clients;
        // The service at home and the tunnel may take a moment longer than edged.
        let through = wait::until_true("a new connection", SOON, || clients.through_the_edge(0).is_ok());
        through.and_then(|()| clients.ssh_answers())
    }

    /// Connections that have been used and are flows by now, where the machine lets them.
    fn living(&mut self) -> Result<Vec<TcpStream>> {
        (0..LIVING).map(|number| self.machine.clients.through_the_edge(number)).collect()
    }

    /// Waits until as many connections are flows.
    fn until_flows(&mut self) -> Result<()> {
        wait::until_ok("flows", SOON, || {
            let by = self.tiers()?;
            ensure!(by.contains(&format!("'flow': {LIVING}")), "carried by {by}");
            Ok(())
        })
    }

    /// How the kernel carries them.
    fn tiers(&mut self) -> Result<String> {
        self.run(
            "edgectl connections list --json | python3 -c 'import json,sys,collections
rows = json.load(sys.stdin)
rows = rows if isinstance(rows, list) else rows.get(\"connections\", [])
print(dict(collections.Counter(row.get(\"datapath\") for row in rows)))'",
        )
    }
}

/// All of them still echo.
fn all_live(streams: &mut [TcpStream]) -> Result<()> {
    let all = streams.len();
    for (number, stream) in streams.iter_mut().enumerate() {
        echoes(stream, format!("still here: {number}").as_bytes())
            .with_context(|| format!("connection {number} of {all}"))?;
    }
    Ok(())
}

fn systemd(visit: &mut Visit) -> Result<String> {
    let version =
        visit.run("test \"$(cat /proc/1/comm)\" = systemd\nsystemctl --version | head -n1; uname -r")?;
    let failed = visit.run("systemctl list-units --failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "failed units: {failed}");
    Ok(version.replace('\n', ", "))
}

fn offloads(visit: &mut Visit) -> Result<String> {
    let features = visit.run("ethtool -k eth0")?;
    for wanted in ["tx-checksumming", "tcp-segmentation-offload", "generic-receive-offload", "scatter-gather"]
    {
        ensure!(features.contains(&format!("{wanted}: on")), "{wanted} is off");
    }
    let queues = visit.run("ls -d /sys/class/net/eth0/queues/rx-* | wc -l")?;
    ensure!(queues.parse::<u32>().is_ok_and(|queues| queues > 1), "{queues} queue");
    let mtu = visit.run("cat /sys/class/net/eth0/mtu")?;
    ensure!(mtu == "9000", "an MTU of {mtu}");
    Ok(format!("{queues} queues, MTU {mtu}, checksums, TSO and GRO on"))
}

fn firewall_and_tunnel(visit: &mut Visit) -> Result<String> {
    visit.run("ufw allow 22/tcp\nufw allow 80/tcp\nufw allow 443/tcp\nufw --force enable")?;
    let module = visit.run(home::INSTALL)?;
    visit.until(
        "home",
        "ip netns exec home python3 -c 'import socket; socket.create_connection((\"100.64.0.2\", 443))'",
    )?;
    visit.machine.clients.ssh_answers()?;
    let module = module.lines().last().unwrap_or_default().to_owned();
    Ok(format!("ufw is active, WireGuard is {module}"))
}

fn by_the_readme(visit: &mut Visit) -> Result<String> {
    let readme = std::fs::read_to_string(setup::root()?.join("README.md"))?;
    let script = readme::script(&readme)?;
    visit.run(&format!("cd /root/new\n{script}"))?;
    visit.run("cp /etc/edge/edge.toml /root/readme.toml")?;
    visit.lives()?;
    visit.run("test \"$(systemctl show -P NRestarts edged)\" = 0")?;
    // Nothing of what the README promises is missing below the unit's sandbox.
    visit.run("! journalctl -u edged -o cat --no-pager | grep WARN")?;
    visit.run("! edgectl doctor | grep -i 'cannot be reached'")?;
    let line = visit.run("systemd-analyze security edged --no-pager | tail -n1")?;
    let exposure = exposure(&line).with_context(|| format!("no exposure in {line:?}"))?;
    ensure!(exposure < MAX_EXPOSURE, "systemd-analyze security rates the unit {exposure}");
    Ok(format!("systemd-analyze security: {exposure}"))
}

/// The rating in the last line of `systemd-analyze security UNIT`: "→ Overall exposure level for edged.service:
/// 1.1 OK 🙂".
fn exposure(line: &str) -> Option<f32> {
    let (_, rating) = line.split_once(": ")?;
    rating.split_whitespace().next()?.parse().ok()
}

fn tiers(visit: &mut Visit) -> Result<String> {
    let mut carried = Vec::new();
    for tier in ["copy", "splice", "sockmap", "flow"] {
        visit.configure(&format!("datapath = \"{tier}\""))?;
        let mut stream = visit.machine.clients.through_the_edge(1)?;
        for size in [1, 1_000, 100_000] {
            echoes(&mut stream, &vec![b'x'; size]).with_context(|| format!("{size} bytes by {tier}"))?;
        }
        // The list is a snapshot, and a connection changes its tier while it is in use.
        let by = wait::until_ok("the tier", SOON, || {
            echoes(&mut stream, &vec![b'y'; 10_000])?;
            let by = visit.tiers()?;
            // Splice is the most that is allowed then: a stream that is dearer to splice is copied.
            let is_it = by.contains(tier) || tier == "splice" && by.contains("copy");
            ensure!(is_it, "{tier} was wanted, and it is carried by {by}");
            Ok(by)
        });
        by?;
        carried.push(tier);
    }
    visit.configure("")?;
    Ok(carried.join(", "))
}

fn broken_file(visit: &mut Visit) -> Result<String> {
    let mut living = visit.living()?;
    visit.run("cp /etc/edge/edge.toml /root/good.toml\necho 'nonsense = [' >>/etc/edge/edge.toml")?;
    let (code, said) = visit.machine.agent.attempt("systemctl reload edged")?;
    let journal = visit.run("journalctl -u edged -n 30 --no-pager -o cat")?;
    visit.run("cp /root/good.toml /etc/edge/edge.toml")?;
    ensure!(code != 0, "systemctl reload of a broken file succeeds: {said}");
    ensure!(journal.contains("edge.toml:"), "the journal does not say where the file is broken: {journal}");
    all_live(&mut living)?;
    visit.lives()?;
    visit.run("systemctl reload edged")?;
    all_live(&mut living)?;
    visit.lives()?;
    Ok(format!("systemctl reload ended with {code}, connections untouched"))
}

fn kill(visit: &mut Visit) -> Result<String> {
    visit.configure("datapath = \"flow\"")?;
    let mut living = visit.living()?;
    // At once, so nearly: a hand-over waits until what the sockets sent is acknowledged.
    visit.until_flows()?;
    all_live(&mut living)?;
    let tiers = visit.tiers()?;
    for _ in 0..7 {
        // More often than the start limit of systemd's default allows in ten seconds.
        let killed = visit.run("pid=$(systemctl show -P MainPID edged)\nkill -9 $pid\necho $pid")?;
        visit.until(
            "a new edged",
            &format!("systemctl is-active edged && test \"$(systemctl show -P MainPID edged)\" != {killed}"),
        )?;
    }
    all_live(&mut living)?;
    visit.lives()?;
    visit.configure("")?;
    Ok(format!("seven times, {LIVING} connections live on, carried by {tiers}"))
}

fn late_tunnel(visit: &mut Visit) -> Result<String> {
    visit.run("systemctl stop edged wg-quick@wg0")?;
    visit.write_configuration("admin = \"100.64.0.1:9099\"")?;
    visit.run("systemctl start edged")?;
    let outcome = (|| {
        visit.until("edged to be active", "systemctl is-active edged")?;
        visit.machine.clients.ssh_answers()?;
        visit.run("systemctl start wg-quick@wg0")?;
        visit.lives()?;
        visit.until(
            "the admin address",
            "python3 -c 'import urllib.request as r; r.urlopen(\"http://100.64.0.1:9099/healthz\", timeout=5)'",
        )
    })();
    visit.run("systemctl start wg-quick@wg0")?;
    visit.configure("")?;
    outcome.map(|()| "edged started without it and took it up, its admin address too".to_owned())
}

fn many(visit: &mut Visit) -> Result<String> {
    raise_descriptor_limit();
    visit.run(&format!(
        "sysctl -q -w net.netfilter.nf_conntrack_max={CONNTRACK_MAX}\nconntrack -F 2>/dev/null"
    ))?;
    visit.configure("datapath = \"flow\"")?;
    let clients = &visit.machine.clients;
    let opened: Vec<Result<Vec<TcpStream>>> = thread::scope(|scope| {
        let open = |first| {
            move || (first..MANY).step_by(AT_ONCE).map(|number| clients.through_the_edge(number)).collect()
        };
        let threads: Vec<_> = (0..AT_ONCE).map(|first| scope.spawn(open(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Ok(Vec::new()))).collect()
    });
    let most = visit.run("cat /proc/sys/net/netfilter/nf_conntrack_count")?;
    let by = visit.tiers()?;
    let mut living: Vec<TcpStream> = Vec::new();
    for opened in opened {
        living.extend(opened.with_context(|| format!("conntrack holds {most} of {CONNTRACK_MAX}, {by}"))?);
    }
    ensure!(living.len() == MANY, "{} of {MANY} were opened", living.len());
    all_live(&mut living)?;
    visit.lives()?;
    drop(living);
    visit.lives()?;
    visit.configure("")?;
    Ok(format!("all live, carried by {by}; conntrack held {most} with {MANY} open"))
}

fn reboot(visit: &mut Visit) -> Result<String> {
    visit.machine.reboot()?;
    visit.lives()?;
    let failed = visit.run("systemctl list-units --failed --no-legend --plain")?;
    ensure!(failed.is_empty(), "failed units: {failed}");
    visit.run("test \"$(systemctl show -P NRestarts edged)\" = 0")?;
    Ok("everything is back without a hand".to_owned())
}

fn upgrade(visit: &mut Visit) -> Result<String> {
    if !visit.has_earlier {
        return Ok(String::new());
    }
    let install = |version: &str| {
        format!(
            "cd /root/{version}\n\
             for program in edged edgectl; do test ! -f $program || install -m 755 $program /usr/local/bin/; done\n\
             install -m 644 packaging/edged.service /etc/systemd/system/\nsystemctl daemon-reload\nsystemctl restart edged"
        )
    };
    visit.run("systemctl stop edged\nedged --uninstall\ncp /root/readme.toml /etc/edge/edge.toml")?;
    visit.run(&install("old"))?;
    visit.lives()?;
    let old = visit.run("edged --version")?;
    let mut living = visit.living()?;
    all_live(&mut living)?;
    // A connection that is not a flow ends with the daemon that carries it.
    visit.until_flows()?;
    let tiers = visit.tiers()?;
    visit.run(&install("new"))?;
    all_live(&mut living)?;
    visit.lives()?;
    all_live(&mut living)?;
    let listed = visit.tiers()?;
    Ok(format!("{LIVING} connections of {old} live on (before: {tiers}, listed after: {listed})"))
}

/// The clients are all in this process.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exposure_is_the_number_after_the_unit() {
        assert_eq!(exposure("→ Overall exposure level for edged.service: 1.1 OK 🙂"), Some(1.1));
        assert_eq!(exposure("-> Overall exposure level for edged.service: 9.6 UNSAFE"), Some(9.6));
        assert_eq!(exposure("Failed to connect to bus: No such file or directory"), None);
    }
}
