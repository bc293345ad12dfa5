//! A compressed day on one edge: clients of all kinds, and everything that happens to a machine in a year,
//! driven by a seed. It ends with a balance: resources that the edge holds afterwards and did not hold
//! before, and connections that were lost without an excuse.
//!
//! [`schedule`], [`ledger`] and [`balance`] are pure; [`day`] carries the schedule out.

pub mod balance;
pub mod crowd;
mod day;
mod home;
pub mod ledger;
mod measure;
mod plant;
pub mod report;
pub mod schedule;
mod visitors;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use fastrand::Rng;

use self::{
    balance::Balance,
    crowd::Crowd,
    day::Day,
    home::{FLOW, Home, SITES},
    ledger::{Ledger, Record},
    plant::{Cgroup, Clock, Disk},
    report::Report,
    schedule::{Event, Schedule},
    visitors::Visitors,
};
use crate::{
    Edged, Lab,
    access_log::AccessLog,
    older,
    require::Need,
    wait::{self, SOON},
};

/// Visitors that come and go, at a time.
const COMING: usize = 10;
/// Connections that rest, for each site.
const RESTING: usize = 5;
/// Connections from before the upgrade from an older build, which rest all day.
const OLD: usize = 4;
/// The disk of the daemon: its access log has half a kilobyte for each slow client.
const DISK: u32 = 256;
/// How long the edge may take to settle: closed flows stay for a minute.
const SETTLES: Duration = Duration::from_secs(100);

/// A run to be done.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// Everything that is left to chance comes from here.
    pub seed: u64,
    /// How long the day takes.
    pub day: Duration,
    /// Slow clients in all.
    pub slow_clients: usize,
    /// Ages closed flows at the end, instead of waiting for the minute that the edge keeps them, and leaves
    /// out the upgrade from an older build at the beginning.
    pub hurried: bool,
}

impl Soak {
    /// Runs the day. `say` gets a line for each event.
    ///
    /// # Errors
    ///
    /// Fails if the machine cannot do it, or if the edge could not be restored after an event. Faults of the
    /// edge are in the report.
    pub fn run(&self, say: &(dyn Fn(&str) + Sync)) -> Result<Report> {
        for need in [Need::Namespaces, Need::Tunnel] {
            if let Some(reason) = need.missing() {
                bail!("{reason}");
            }
        }
        let mut skipped = Vec::new();
        let mut plan = Lab::plan().tunnel();
        match Need::Firewall.missing() {
            None => plan = plan.firewalled(),
            Some(reason) => skipped.push(format!("connection tracking: {reason}")),
        }
        let lab = plan.build()?;
        let outcome = self.run_in(&lab, skipped, say);
        if outcome.as_ref().map_or(true, |report| !report.is_good()) {
            lab.show_logs();
        }
        outcome
    }

    fn run_in(&self, lab: &Lab, mut skipped: Vec<String>, say: &(dyn Fn(&str) + Sync)) -> Result<Report> {
        crowd::settle(lab)?;
        let disk = Disk::mount(lab, DISK)?;
        let mut allowed = BTreeSet::from(Event::ALL);
        let name = format!("edge-soak-{}", std::process::id());
        let cgroup = allow(Cgroup::create(&name), &[Event::OutOfMemory], &mut allowed, &mut skipped);
        let clock = Clock::find(&disk);
        let clock = allow(clock, &[Event::ClockForward, Event::ClockBack], &mut allowed, &mut skipped);
        if !Home::can_reset(&lab.home)? {
            allowed.remove(&Event::BackendReset);
            skipped.push(format!("{}: a kernel without CONFIG_INET_DIAG_DESTROY", Event::BackendReset));
        }
        let schedule = Schedule::new(self.seed, self.day, &allowed, self.slow_clients);
        let home = Home::start(lab)?;
        let ledger = Ledger::begin();
        let over = AtomicBool::new(false);
        let visitors = Visitors { lab, ledger: &ledger, over: &over };
        thread::scope(|scope| {
            let ended = Ended(&over);
            let mut random = Rng::with_seed(self.seed);
            let before_upgrade = self.older(lab, &disk)?;
            if before_upgrade.is_some() {
                for _ in 0..OLD {
                    let random = random.fork();
                    scope.spawn(move || visitors.rest(FLOW, random));
                }
            } else {
                let reason = if self.hurried { "no time" } else { "it cannot be had here" };
                skipped.push(format!("an upgrade from an older build: {reason}"));
            }
            upgrade(before_upgrade)?;
            let mut day = Day::begin(lab, &ledger, &home, &disk, cgroup.as_ref(), clock.as_ref())?;
            let free = measure::free_ports(lab, day.edged()?)?;
            let mut before = measure::figures(lab, day.edged()?, &home, cgroup.as_ref())?;
            before.counts.insert(balance::Item::FreePorts, free);
            // Connections from before the upgrade are there only until the day is over.
            before.counts.extend([(balance::Item::Connections, 0), (balance::Item::AtHome, 0)]);
            before.pins.retain(|pin| !pin.starts_with("v2/"));

            for site in &SITES {
                for _ in 0..RESTING {
                    let random = random.fork();
                    scope.spawn(move || visitors.rest(site, random));
                }
            }
            for _ in 0..COMING {
                let random = random.fork();
                scope.spawn(move || visitors.come_and_go(random));
            }
            let begun = ledger.now();
            let crowds = scope.spawn({
                let (ledger, schedule) = (&ledger, &schedule);
                move || crowds(lab, ledger, schedule, begun, say)
            });
            let mut events = BTreeMap::new();
            for entry in &schedule.events {
                thread::sleep((begun + entry.at).saturating_sub(ledger.now()));
                if ledger.now() > begun + self.day && events.len() == allowed.len() {
                    break;
                }
                let at = ledger.now().as_secs_f64();
                match day.perform(entry) {
                    Ok(outcome) => say(&format!("{at:8.3} s  {}{outcome}", entry.event)),
                    Err(error) => {
                        let fault = format!("{at:8.3} s  {}: {error:#}", entry.event);
                        say(&fault);
                        ledger.fault(fault);
                        // Without a daemon nothing more can be found out.
                        let status = day.edged().and_then(|edged| edged.edgectl().json(&["status"]));
                        status.context("edged is gone")?;
                    }
                }
                *events.entry(entry.event).or_insert(0) += 1;
            }
            thread::sleep((begun + self.day).saturating_sub(ledger.now()));
            let crowd = crowds.join().unwrap_or_else(|_| bail!("a panic among slow clients"))?;
            let took = ledger.now().saturating_sub(begun);
            say(&format!("{:8.3} s  the day is over", ledger.now().as_secs_f64()));
            drop(ended);
            measure::settle(lab, day.edged()?, &home, SETTLES, self.hurried);
            let left = measure::leftovers(lab, day.edged()?)?;
            let mut after = measure::figures(lab, day.edged()?, &home, cgroup.as_ref())?;
            after.counts.insert(balance::Item::FreePorts, measure::free_ports(lab, day.edged()?)?);
            let written = ledger.read();
            let records = records(&day.edged()?.access_log, &written.losses)?;
            let lost = ledger::judge(&written.losses, &written.incidents, &records);
            let faults = [written.faults, home.broken()].concat();
            let balance = Balance::of(&before, &after);
            Ok(Report {
                seed: self.seed,
                took,
                events,
                skipped,
                served: written.served,
                crowd,
                lost,
                faults,
                balance,
                left,
            })
        })
    }

    /// A daemon of an earlier layout, where one can be had.
    fn older(&self, lab: &Lab, disk: &Disk) -> Result<Option<Edged>> {
        // Its flows would stay for the minute that a rehearsal has not.
        let programs = if self.hurried { None } else { older::programs(older::LAYOUT_2)? };
        let Some(programs) = programs else { return Ok(None) };
        let body = format!(
            "[[route]]\nhost = \"{}\"\nto = \"{}\"\n",
            FLOW.host,
            Home::address(lab, FLOW.backends[0])
        );
        let plan = Edged::plan(lab, &body).on_disk(disk.path()).daemon("datapath = \"flow\"");
        plan.programs(&programs).start().map(Some)
    }
}

/// Ends the visits when the day ends, also by an error.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until the older daemon has handed its connections over, and ends it.
fn upgrade(older: Option<Edged>) -> Result<()> {
    let Some(mut older) = older else { return Ok(()) };
    wait::until_ok("the older daemon's flows", SOON, || {
        let list = older.edgectl().list("connections")?;
        let flows = list.iter().filter(|entry| entry["datapath"] == "flow").count();
        anyhow::ensure!(flows == OLD, "{flows} flows");
        Ok(())
    })?;
    older.terminate().map(drop)
}

fn crowds(
    lab: &Lab,
    ledger: &Ledger,
    schedule: &Schedule,
    begun: Duration,
    say: &(dyn Fn(&str) + Sync),
) -> Result<Crowd> {
    let mut all = Crowd::default();
    for wave in &schedule.waves {
        thread::sleep((begun + wave.at).saturating_sub(ledger.now()));
        let came = crowd::wave(lab, wave)?;
        all.add(came);
        say(&format!(
            "{:8.3} s  {} slow clients from {} addresses went ({:?}), {} of them cut off",
            ledger.now().as_secs_f64(),
            wave.clients,
            wave.sources,
            wave.leave,
            came.cut
        ));
    }
    Ok(all)
}

/// Takes what the machine has, or notes what cannot happen without it.
fn allow<T>(
    found: Result<T>,
    events: &[Event],
    allowed: &mut BTreeSet<Event>,
    skipped: &mut Vec<String>,
) -> Option<T> {
    found
        .inspect_err(|error| {
            for event in events {
                allowed.remove(event);
                skipped.push(format!("{event}: {error:#}"));
            }
        })
        .ok()
}

/// The access-log lines of clients that lost their connections.
fn records(log: &AccessLog, losses: &[ledger::Loss]) -> Result<BTreeMap<SocketAddr, Record>> {
    let wanted: BTreeSet<SocketAddr> = losses.iter().filter_map(|loss| loss.client).collect();
    let mut found = BTreeMap::new();
    for record in
        log.records_of(|line| wanted.iter().any(|client| line.contains(&format!("\"{client}\""))))?
    {
        let text = |key: &str| record[key].as_str().unwrap_or("–").to_owned();
        if let Some(client) = record["client"].as_str().and_then(|client| client.parse().ok()) {
            found.insert(client, Record { datapath: text("datapath"), close: text("close") });
        }
    }
    Ok(found)
}
