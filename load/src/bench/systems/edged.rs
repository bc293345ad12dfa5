//! This project's daemon, with each datapath.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::job::{Direction, Job};
use anyhow::{Context, Result};
use lab::wait::SOON;
use serde_json::Value;

use super::{Running, System, absent, debian, home, version_of};
use crate::bench::{
    instrument::Instrument,
    rig::{Rig, TLS, WEB, release},
};

/// Routes of the daemon that has many.
const MANY: usize = 100_000;
/// How long the look for a forced tier carries bulk: long enough for any tier to be taken up.
const LOOK: u32 = 500;

/// The daemon.
pub(super) struct Edged {
    name: String,
    /// `None` for the one that was just built.
    program: Option<PathBuf>,
    datapath: &'static str,
    routes: usize,
    slowed: bool,
}

impl Edged {
    pub(super) fn tier(datapath: &'static str) -> Self {
        Self { name: format!("edged-{datapath}"), program: None, datapath, routes: 0, slowed: false }
    }

    /// Another build of it.
    pub(super) fn binary(path: &Path) -> Self {
        Self {
            name: format!("path:{}", path.display()),
            program: Some(path.to_owned()),
            ..Self::tier("auto")
        }
    }

    pub(super) fn many_routes() -> Self {
        Self { name: "edged-100k-routes".to_owned(), routes: MANY, ..Self::tier("auto") }
    }

    /// Traced: each system call costs two more context switches. This simulates a wasteful datapath without a
    /// line in the product; the bench must distinguish it from the daemon itself.
    pub(super) fn slowed() -> Self {
        Self { name: "edged-slowed".to_owned(), slowed: true, ..Self::tier("copy") }
    }

    fn launch<'a>(&self, rig: &'a Rig, access_log: &str) -> Result<Running<'a>> {
        let stem = self.name.replace('/', "-");
        let directory = rig.lab.directory().join(&stem);
        fs::create_dir_all(directory.join("state"))?;
        let config = directory.join("edge.toml");
        fs::write(&config, self.text(rig, &directory.display().to_string(), access_log))?;
        if self.slowed {
            rig.put_under(Instrument::Slow);
        }
        let mut command = rig.edge_command(self.program()?);
        command.arg("--config").arg(&config).arg("--pins").arg(rig.lab.pins());
        // Flows outlive the daemon: the next system must not meet them.
        let mut uninstall = Command::new(self.program()?);
        uninstall.arg("--uninstall").arg("--pins").arg(rig.lab.pins());
        Ok(Running::program(rig, &stem, command)?.undone_by(uninstall))
    }

    fn program(&self) -> Result<PathBuf> {
        self.program.clone().map_or_else(|| release("edged"), Ok)
    }

    fn text(&self, rig: &Rig, directory: &str, access_log: &str) -> String {
        let (orders, handshakes) = home(rig);
        let edge = rig.lab.edge.v4;
        let mut text = format!(
            "[daemon]\ndatapath = \"{}\"\nstate_dir = \"{directory}/state\"\n\
             control = \"{directory}/control.sock\"\naccess_log = \"{access_log}\"\n\n\
             [limits]\nconnections_per_source = 0\n\n\
             [[listener]]\nname = \"https\"\nbind = [\"{edge}:443\"]\nprotocol = \"tls\"\n\n\
             [[route]]\nhost = \"{WEB}\"\nto = \"{orders}\"\n\n\
             [[route]]\nhost = \"{TLS}\"\nto = \"{handshakes}\"\n",
            self.datapath
        );
        for index in 0..self.routes {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n[[route]]\nhost = \"host-{index}.example\"\nto = \"{orders}\"\n");
        }
        text
    }

    /// The tier that carries when this one is asked for; only the daemon's own account knows.
    fn tier_in_use(&self, rig: &Rig) -> Result<String> {
        let log = rig.lab.directory().join(format!("{}.json", self.name));
        let running = self.launch(rig, &log.display().to_string())?;
        rig.drive(running.orders, &Job::Bulk { streams: 1, direction: Direction::Down, millis: LOOK })?;
        let record = lab::wait::until("a line of the access log", SOON, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                // The connection of the job: those that only check whether the service answers end
                // immediately.
                .find(|record| record["sni"] == WEB && record["bytes_down"].as_u64() > Some(1 << 16))
        })?;
        Ok(record["datapath"].as_str().context("no datapath in the access log")?.to_owned())
    }
}

impl System for Edged {
    fn name(&self) -> &str {
        &self.name
    }

    fn about(&self) -> String {
        let datapath = self.datapath;
        match (self.routes, self.slowed) {
            (0, false) => format!("edged with datapath = \"{datapath}\""),
            (0, true) => "edged under strace: deliberately slowed".to_owned(),
            (routes, _) => format!("edged with datapath = \"{datapath}\" and {routes} more routes"),
        }
    }

    fn missing(&self, rig: &Rig) -> Option<String> {
        if self.slowed {
            return debian("strace", "strace");
        }
        if let Some(path) = &self.program {
            return absent(path);
        }
        if !["sockmap", "flow"].contains(&self.datapath) {
            return None;
        }
        match self.tier_in_use(rig) {
            // The only connection of this trial ends before its hand-over; without the tier, edged does not
            // start.
            Ok(_) if self.datapath == "flow" => None,
            Ok(tier) if tier == self.datapath => None,
            Ok(tier) => Some(format!("this build carries by {tier} when asked for {}", self.datapath)),
            Err(error) => Some(format!("does not start: {error:#}")),
        }
    }

    fn start<'a>(&self, rig: &'a Rig) -> Result<Running<'a>> {
        self.launch(rig, "off")
    }

    fn version(&self) -> Option<String> {
        version_of(&self.program().ok()?, "--version")
    }

    fn configuration(&self, rig: &Rig) -> String {
        // The other routes are a hundred thousand times the same.
        Self { routes: 0, ..Self::tier(self.datapath) }.text(rig, "/var/lib/edge", "off")
    }
}
