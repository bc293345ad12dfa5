//! Does to the edge what the schedule contains, checks the promise of each event, and records which
//! connections it may cost.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{
    home::{BACKENDS, Home, Order, SITES, TUNNELLED, Wish},
    ledger::{Cause, Ledger, Reach},
    measure::PORTS,
    plant::{Cgroup, Clock, Disk},
    schedule::{Entry, Event, SOURCES},
};
use crate::{
    Edged, EdgedPlan, Lab,
    hello::ClientHello,
    metrics::ADMIN,
    netns,
    stream::{self, End},
    wait::{self, SOON},
};

/// A name of which routes come and go.
const PASSING: &str = "passing.soak.example";
/// Places for connections: fewer than a large wave wants.
const PLACES: u32 = 6000;
/// How far the clock jumps.
const JUMP: i64 = 6 * 3600;
/// Memory that a daemon gets beyond what it has when it is to run out of it.
const LITTLE: u64 = 1 << 20;
/// Clients that take memory meanwhile, from each of [`SOURCES`] addresses.
const HUNGRY: usize = 40;

/// The edge and what can be done to it.
#[derive(Debug)]
pub(super) struct Day<'a> {
    lab: &'a Lab,
    ledger: &'a Ledger,
    home: &'a Home<'a>,
    disk: &'a Disk,
    cgroup: Option<&'a Cgroup>,
    clock: Option<&'a Clock>,
    /// `None` only while it is being replaced.
    edged: Option<Edged>,
    /// How far off the daemon's clock is, seconds.
    off: i64,
}

/// The configuration file of the day, without `[daemon]`.
pub(super) fn body(lab: &Lab) -> String {
    let mut text = format!(
        "[limits]\nconnections = {PLACES}\n[flow]\nports = \"{}-{}\"\n\
         [[pool]]\nname = \"two\"\nhealth = {{ kind = \"tcp\", interval = \"500ms\", timeout = \"1s\", rise = 1, fall = 2 }}\n",
        PORTS.0, PORTS.1
    );
    for site in &SITES {
        let to = match site.backends {
            [one] => Home::address(lab, *one).to_string(),
            several => {
                let backends = several.iter().map(|&backend| Home::address(lab, backend));
                text.extend(backends.map(|to| format!("[[pool.backend]]\nto = \"{to}\"\n")));
                "two".to_owned()
            }
        };
        let (host, datapath) = (site.host, site.datapath);
        text.extend([
            "[[route]]\nhost = \"",
            host,
            "\"\nto = \"",
            &to,
            "\"\ndatapath = \"",
            datapath,
            "\"\n",
        ]);
    }
    text
}

impl<'a> Day<'a> {
    /// A day that begins with a fresh daemon.
    pub(super) fn begin(
        lab: &'a Lab,
        ledger: &'a Ledger,
        home: &'a Home<'a>,
        disk: &'a Disk,
        cgroup: Option<&'a Cgroup>,
        clock: Option<&'a Clock>,
    ) -> Result<Self> {
        let mut day = Self { lab, ledger, home, disk, cgroup, clock, edged: None, off: 0 };
        day.start()?;
        Ok(day)
    }

    /// The daemon.
    pub(super) fn edged(&self) -> Result<&Edged> {
        self.edged.as_ref().context("edged is not up")
    }

    fn start(&mut self) -> Result<()> {
        self.edged = Some(self.plan().start()?);
        Ok(())
    }

    fn plan(&self) -> EdgedPlan<'a> {
        let mut plan = Edged::plan(self.lab, &body(self.lab))
            .on_disk(self.disk.path())
            .daemon(ADMIN)
            // The highest tier for routes that set none; only the route that names sockmap uses it.
            .daemon("datapath = \"auto\"")
            .daemon("drain_timeout = \"2s\"");
        if let Some(cgroup) = self.cgroup {
            plan = plan.by(&cgroup.runner().each_ref().map(String::as_str));
        }
        for (name, value) in self.clock.iter().flat_map(|clock| clock.environment()) {
            plan = plan.environment(name, &value);
        }
        plan
    }

    /// Performs the event, and checks that the edge is healthy afterwards. Returns the result if it is not
    /// fixed.
    pub(super) fn perform(&mut self, entry: &Entry) -> Result<&'static str> {
        let backend = usize::try_from(entry.choice % BACKENDS as u64)?;
        let pause = || thread::sleep(entry.lasts);
        let (ledger, home) = (self.ledger, self.home);
        let mut outcome = "";
        match entry.event {
            Event::Reload => self.reload(entry.choice)?,
            Event::BrokenReload => self.broken_reload()?,
            Event::Routes => self.routes()?,
            Event::BackendReset => {
                ledger.incident(Cause::BackendReset, Reach::All([backend].into()), || {
                    home.close(backend);
                    home.reset(backend)?;
                    pause();
                    home.reopen(backend)
                })?;
            }
            Event::BackendSilent => {
                ledger.incident(Cause::BackendAway, Reach::New([backend].into()), || {
                    home.silence(backend, pause)
                })?;
            }
            Event::BackendGone => {
                ledger.incident(Cause::BackendAway, Reach::New([backend].into()), || {
                    home.close(backend);
                    pause();
                    home.reopen(backend)
                })?;
            }
            Event::TunnelDown => self.tunnel_down(pause)?,
            Event::TunnelAnew => self.tunnel_anew(pause)?,
            Event::Restart => self.restart(pause)?,
            Event::Kill => self.kill(entry.choice.is_multiple_of(2), pause)?,
            Event::ClockForward => self.clock(JUMP)?,
            Event::ClockBack => self.clock(-JUMP)?,
            Event::DiskFull => self.disk_full(entry.lasts)?,
            Event::OutOfMemory => outcome = self.out_of_memory()?,
        }
        self.edged()?.edgectl().json(&["status"])?;
        Ok(outcome)
    }

    /// Clients whose connections are flows now.
    fn flows(&self) -> Result<BTreeSet<SocketAddr>> {
        let list = self.edged()?.edgectl().list("connections")?;
        let flows = list.iter().filter(|entry| entry["datapath"] == "flow");
        Ok(flows.filter_map(|entry| entry["client"].as_str()?.parse().ok()).collect())
    }

    fn reload(&self, choice: u64) -> Result<()> {
        let edged = self.edged()?;
        let to = Home::address(self.lab, usize::try_from(choice % BACKENDS as u64)?);
        edged.rewrite(&format!("{}[[route]]\nhost = \"{PASSING}\"\nto = \"{to}\"\n", body(self.lab)))?;
        edged.edgectl().text(&["reload"])?;
        self.passing()?.context("the new route does not lead anywhere")?;
        edged.rewrite(&body(self.lab))?;
        edged.edgectl().text(&["reload"])?;
        ensure!(self.passing()?.is_none(), "the route is still there after the reload");
        Ok(())
    }

    fn broken_reload(&self) -> Result<()> {
        let edged = self.edged()?;
        edged.rewrite(&format!("{}[[route]]\nhost = 7\n", body(self.lab)))?;
        let complaint = edged.edgectl().refused(1, &["reload"])?;
        ensure!(complaint.contains("host"), "a complaint that names nothing: {complaint}");
        edged.rewrite(&body(self.lab))?;
        edged.edgectl().text(&["reload"]).map(drop)
    }

    fn routes(&self) -> Result<()> {
        let edgectl = self.edged()?.edgectl();
        let to = Home::address(self.lab, 1).to_string();
        edgectl.text(&["routes", "add", PASSING, &to])?;
        let mut going_on = self.passing()?.context("the added route does not lead anywhere")?;
        edgectl.text(&["routes", "remove", PASSING])?;
        ensure!(self.passing()?.is_none(), "the removed route still leads somewhere");
        going_on.write_all(b"x").and_then(|()| going_on.read_exact(&mut [0])).context("a live connection")?;
        edgectl.text(&["routes", "add", PASSING, &to])?;
        let mut closed =
            self.passing()?.context("the route does not lead anywhere when it is added again")?;
        edgectl.text(&["routes", "remove", PASSING, "--close"])?;
        let (_, end) = stream::read_to_end(&mut closed)?;
        ensure!(end == End::Reset, "{end:?} for a connection of a removed route");
        Ok(())
    }

    /// A connection for the passing name; `None` when the edge answers with an alert.
    fn passing(&self) -> Result<Option<TcpStream>> {
        let mut stream = self.lab.client.connect(self.lab.edge.at(443))?;
        let order = Order { wish: Wish::Echo, seed: 0, length: 0 };
        stream.write_all(&[ClientHello::new(PASSING).records(), order.bytes()].concat())?;
        let mut answer = [0];
        stream.read_exact(&mut answer).context("no answer for the passing route")?;
        Ok((answer[0] != 21).then_some(stream))
    }

    fn tunnel_down(&self, pause: impl FnOnce()) -> Result<()> {
        let tunnel = self.lab.tunnel.as_ref().context("no tunnel")?;
        let set = |state| self.lab.edge.ip(&["link", "set", tunnel.edge_device(), state]);
        self.ledger.incident(Cause::TunnelDown, Reach::New(TUNNELLED.into()), || {
            set("down")?;
            pause();
            set("up")?;
            tunnel.wait(&self.lab.edge)
        })
    }

    fn tunnel_anew(&self, pause: impl FnOnce()) -> Result<()> {
        let tunnel = self.lab.tunnel.as_ref().context("no tunnel")?;
        self.ledger.incident(Cause::TunnelGone, Reach::All(TUNNELLED.into()), || {
            tunnel.edge().kill(&self.lab.edge)?;
            pause();
            tunnel.edge().bring_up(&self.lab.edge)?;
            tunnel.wait(&self.lab.edge)
        })
    }

    fn restart(&mut self, pause: impl FnOnce()) -> Result<()> {
        let reach = Reach::AllButFlows(self.flows()?);
        let mut old = self.edged.take().context("edged is not up")?;
        let ledger = self.ledger;
        ledger.incident(Cause::Restarted, reach, || {
            let code = old.terminate()?;
            ensure!(code == Some(0), "edged ended with {code:?}");
            pause();
            self.start()
        })
    }

    fn kill(&mut self, with_keeper: bool, pause: impl FnOnce()) -> Result<()> {
        let reach = Reach::AllButFlows(self.flows()?);
        let old = self.edged.take().context("edged is not up")?;
        let ledger = self.ledger;
        ledger.incident(Cause::Killed, reach, || {
            if with_keeper {
                // As systemd does with all of a unit.
                let own = old.as_process().pid();
                for pid in netns::processes(self.lab.edge.namespace().name()) {
                    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                    if name.starts_with("edged") && pid.as_raw_nonzero().get().unsigned_abs() != own {
                        rustix::process::kill_process(pid, Signal::KILL)?;
                    }
                }
            }
            old.kill()?;
            pause();
            self.start()
        })
    }

    fn clock(&mut self, by: i64) -> Result<()> {
        const BLOCKED: &str = "203.0.113.9";
        // Day and hour; the kernel's count makes the rest differ by milliseconds.
        const HOUR: usize = "2026-11-28T01".len();
        let clock = self.clock.context("the daemon has the machine's clock")?;
        let edgectl = self.edged()?.edgectl();
        edgectl.text(&["block", "add", BLOCKED, "--for", "1h"])?;
        let until = || -> Result<String> {
            let blocks = edgectl.list("block")?;
            let cidr = format!("{BLOCKED}/32");
            let block = blocks.iter().find(|block| block["cidr"] == cidr).context("the block has gone")?;
            let until = block["until"].as_str().context("the block has no end")?;
            Ok(until.get(..HOUR).unwrap_or(until).to_owned())
        };
        let before = until()?;
        clock.set(self.off + by)?;
        // Its end is as far away as before, so that its time of day is another one.
        wait::until_ok("the block to follow the clock", SOON, || {
            let now = until()?;
            ensure!(now != before, "it still ends at {now}");
            Ok(())
        })?;
        edgectl.text(&["block", "remove", BLOCKED])?;
        self.off += by;
        Ok(())
    }

    fn disk_full(&self, lasts: Duration) -> Result<()> {
        let edged = self.edged()?;
        let to = Home::address(self.lab, 1).to_string();
        let add = ["routes", "add", PASSING, &to];
        self.disk.full(|| {
            let complaint = edged.edgectl().refused(1, &add).context("a route was added on a full disk")?;
            ensure!(complaint.contains("full"), "a complaint that does not name the reason: {complaint}");
            thread::sleep(lasts);
            Ok(())
        })?;
        edged.edgectl().text(&add).context("after the disk has room again")?;
        edged.edgectl().text(&["routes", "remove", PASSING])?;
        let length = || std::fs::metadata(edged.access_log.path()).map(|file| file.len()).unwrap_or_default();
        let before = length();
        wait::until_true("lines in the access log after the disk was full", SOON, || length() > before)
    }

    fn out_of_memory(&mut self) -> Result<&'static str> {
        let cgroup = self.cgroup.context("no cgroup")?;
        let reach = Reach::AllButFlows(self.flows()?);
        let (ledger, lab) = (self.ledger, self.lab);
        ledger.incident(Cause::OutOfMemory, reach, || {
            cgroup.limit(Some(LITTLE))?;
            let hungry = hungry(lab);
            let mut edged = self.edged.take().context("edged is not up")?;
            let died = wait::until_true("the kernel to kill edged", Duration::from_secs(5), || {
                edged.process().ended().is_ok_and(|ended| ended.is_some())
            });
            cgroup.limit(None)?;
            drop(hungry?);
            let keeper = netns::processes(lab.edge.namespace().name()).into_iter().any(|pid| {
                let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                name.starts_with("edged-keeper")
            });
            if died.is_err() && keeper {
                // The edge survived. Losses during the disturbance are excused all the same.
                self.edged = Some(edged);
                return Ok(": edged bore it");
            }
            drop(edged);
            self.start()?;
            Ok(if died.is_ok() { ": edged was killed" } else { ": its keeper was killed" })
        })
    }
}

/// Clients with as much of a hello as the edge will keep for them.
fn hungry(lab: &Lab) -> Result<Vec<TcpStream>> {
    let hello = ClientHello::new("hungry.soak.example").padding(12_000).records();
    let mut streams = Vec::new();
    for number in 0..HUNGRY * SOURCES {
        let from = [198, 18, 1, 100 + u8::try_from(number % SOURCES)?];
        let stream = lab.client.run(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((from, 0)).into())?;
            Ok(socket.connect_timeout(&lab.edge.at(443).into(), Duration::from_secs(1)).map(|()| socket))
        })?;
        // The daemon may be gone at any moment.
        let Ok(socket) = stream else { break };
        let mut stream = TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        let _ = stream.write(&hello[..hello.len() - 1]);
        streams.push(stream);
    }
    Ok(streams)
}
