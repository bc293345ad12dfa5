//! The systems that are measured side by side: each starts on the lab's edge and routes two server names to
//! home.

mod edged;
mod haproxy;
mod kernel;
mod nginx;
mod sniproxy;

use std::{net::SocketAddr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use lab::{netns, process::Process, wait};
use rustix::process::{Signal, kill_process};

use super::rig::{HANDSHAKES, ORDERS, Rig};

/// One way from client to home.
pub(crate) trait System {
    /// As `--systems` and all tables have it.
    fn name(&self) -> &str;

    /// A description in one line.
    fn about(&self) -> String;

    /// Why it cannot be measured on this machine.
    fn missing(&self, rig: &Rig) -> Option<String>;

    /// Starts it and waits until it serves.
    fn start<'a>(&self, rig: &'a Rig) -> Result<Running<'a>>;

    /// Its version, where it is a program.
    fn version(&self) -> Option<String>;

    /// Its exact configuration.
    fn configuration(&self, rig: &Rig) -> String;
}

/// A system that serves. Dropping it stops it.
pub(crate) struct Running<'a> {
    rig: &'a Rig,
    /// Where a client asks for [`ORDERS`].
    pub(crate) orders: SocketAddr,
    /// Where a client asks for [`HANDSHAKES`].
    pub(crate) handshakes: SocketAddr,
    process: Option<Process>,
    undo: Option<Command>,
}

impl<'a> Running<'a> {
    /// Removes the state that it leaves behind when it is stopped.
    fn undone_by(self, undo: Command) -> Self {
        let mut running = self;
        running.undo = Some(undo);
        running
    }

    /// Whether it is a program, and not the kernel alone.
    pub(crate) fn is_a_program(&self) -> bool {
        self.process.is_some()
    }

    /// A program that accepts at port 443 of the edge.
    fn program(rig: &'a Rig, name: &str, command: Command) -> Result<Self> {
        let at = rig.lab.edge.at(443);
        let mut process = rig.lab.edge.spawn(name, command)?;
        process.wait_ready(wait::SOON, || rig.answers(at).is_ok())?;
        Ok(Self { rig, orders: at, handshakes: at, process: Some(process), undo: None })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        drop(self.process.take());
        // Workers whose parent is gone.
        let namespace = self.rig.lab.edge.namespace();
        let stopped = wait::until_true("the edge to be empty", Duration::from_secs(5), || {
            let left = netns::processes(namespace.name());
            for &process in &left {
                let _ = kill_process(process, Signal::KILL);
            }
            left.is_empty()
        });
        let undone = match self.undo.take() {
            Some(command) => self.rig.lab.edge.text_of(command).map(drop),
            None => Ok(()),
        };
        if let Err(error) = stopped.and(undone) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// The systems of these names; none given: all but those that must be asked for.
pub(super) fn select(names: &[String]) -> Result<Vec<Box<dyn System>>> {
    if names.is_empty() {
        return Ok(known().into_iter().filter(|(_, usual)| *usual).map(|(system, _)| system).collect());
    }
    names
        .iter()
        .map(|name| {
            if let Some(path) = name.strip_prefix("path:") {
                return by_path(Path::new(path));
            }
            let found = known().into_iter().find(|(system, _)| system.name() == name);
            found.map(|(system, _)| system).with_context(|| {
                let all: Vec<_> = known().iter().map(|(system, _)| system.name().to_owned()).collect();
                format!("no system {name}; there are {} and path:/of/another/build", all.join(", "))
            })
        })
        .collect()
}

/// Programs of which other builds can be measured.
const KNOWN: [&str; 4] = ["haproxy", "nginx", "sniproxy", "edged"];

/// Another build of a program, known by its file name.
fn by_path(path: &Path) -> Result<Box<dyn System>> {
    ensure!(path.is_absolute(), "path:{}: the path has to begin with /", path.display());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(match KNOWN.into_iter().find(|known| name.contains(known)) {
        Some("haproxy") => Box::new(haproxy::Haproxy::binary(path)),
        Some("nginx") => Box::new(nginx::Nginx::binary(path)),
        Some("sniproxy") => Box::new(sniproxy::Sniproxy::binary(path)),
        Some(_) => Box::new(edged::Edged::binary(path)),
        None => bail!("{}: its file name has to say what it is: {}", path.display(), KNOWN.join(", ")),
    })
}

/// Every system, and whether a run without `--systems` has it.
fn known() -> Vec<(Box<dyn System>, bool)> {
    vec![
        (Box::new(kernel::Forwarding), true),
        (Box::new(kernel::Dnat), true),
        (Box::new(edged::Edged::tier("copy")), true),
        (Box::new(edged::Edged::tier("splice")), true),
        (Box::new(edged::Edged::tier("sockmap")), true),
        (Box::new(edged::Edged::tier("flow")), true),
        (Box::new(edged::Edged::tier("auto")), true),
        (Box::new(edged::Edged::many_routes()), false),
        (Box::new(edged::Edged::slowed()), false),
        (Box::new(haproxy::Haproxy::defaults()), true),
        (Box::new(haproxy::Haproxy::tuned()), true),
        (Box::new(nginx::Nginx::buffers("16k")), true),
        (Box::new(nginx::Nginx::buffers("64k")), true),
        (Box::new(sniproxy::Sniproxy::debian()), true),
    ]
}

/// The first line that a program says when it is asked for its version, on either output.
fn version_of(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).lines().find(|line| !line.is_empty())?.trim().to_owned())
}

/// Why a program of Debian is not there, and how to get it.
pub(super) fn debian(program: &'static str, package: &'static str) -> Option<String> {
    lab::require::Need::Program(program, package).missing()
}

/// Why a program that was given by its path cannot run.
fn absent(path: &Path) -> Option<String> {
    (!path.is_file()).then(|| format!("there is no {}", path.display()))
}

/// Home's addresses as a configuration has them: for orders and for handshakes.
fn home(rig: &Rig) -> (SocketAddr, SocketAddr) {
    (rig.lab.home.at(ORDERS), rig.lab.home.at(HANDSHAKES))
}
