//! The keeper's side: it does what it is asked for until the daemon is gone.
#![expect(unsafe_code, reason = "signals that go to the whole service are not for the keeper")]

use std::{collections::BTreeMap, io, os::fd::OwnedFd, path::Path, process};

use rustix::process::{Signal, set_parent_process_death_signal};

use super::{
    channel::Channel,
    protocol::{Answer, Refused, Reply, Request},
};
use crate::kernel::{
    Conntrack, IpsecSource, KernelError, Objects,
    flow::FlowLinks,
    interfaces,
    older::OlderPins,
    sandbox::{self, Keeping},
    shield::ShieldLinks,
    sockmap::Programs,
};

/// Reads the WireGuard peers of a device with the keeper's rights, and serialises them without secrets.
pub type AskPeers = fn(device: &str) -> io::Result<String>;

/// The longest description of peers.
const PEERS: usize = 900_000;

/// The keeper, about to run.
#[derive(Debug)]
pub struct Server {
    channel: Channel,
}

/// The programs and links that the keeper holds.
#[derive(Debug)]
pub struct Wards {
    pub(in crate::kernel) flow: Option<FlowLinks>,
    pub(in crate::kernel) shield: Option<ShieldLinks>,
    pub(in crate::kernel) older: Vec<OlderPins>,
    pub(in crate::kernel) objects: Objects,
}

impl Server {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Drops the rights that a keeper does not need, and serves until the daemon has ended. `pins` is the
    /// directory of all pins.
    pub fn run(mut self, wards: Wards, pins: &Path, ask_peers: AskPeers) -> ! {
        // Signals to the whole service are meant for the daemon: it drains, and may need the keeper for it.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
            // SAFETY: ignoring a signal installs no handler.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
        // Belt and braces beside the end of the channel.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        let _ = rustix::thread::set_name(c"edged-keeper");
        let mut keeper = Served {
            wards,
            sockmap: None,
            tracks: Conntrack::open(),
            policies: IpsecSource::open(),
            ask_peers,
        };
        sandbox::enter_keeper(&Keeping { pins, objects: keeper.wards.objects.path() });
        let status = loop {
            match self.channel.receive_request() {
                Ok(Some(request)) => {
                    let (answer, descriptors) = match request {
                        Ok(request) => keeper.serve(request),
                        Err(error) => (refuse(format!("not a request: {error}")), Vec::new()),
                    };
                    if self.channel.send_answer(&answer, &descriptors).is_err() {
                        // Too long for the socket, or nobody is there: then the next turn ends the loop.
                        let _ = self.channel.send_answer(&refuse("the answer cannot be sent"), &[]);
                    }
                }
                Ok(None) => break 0,
                Err(error) => {
                    tracing::error!(%error, "the privileged process of edged ends");
                    break 1;
                }
            }
        };
        // Links that are not pinned end with the process; nothing else is to be undone.
        process::exit(status)
    }
}

struct Served {
    wards: Wards,
    /// Kept for the programs, which are detached with it.
    sockmap: Option<Programs>,
    tracks: io::Result<Conntrack>,
    policies: IpsecSource,
    ask_peers: AskPeers,
}

impl Served {
    fn serve(&mut self, request: Request) -> (Answer, Vec<OwnedFd>) {
        tracing::debug!(?request, "the keeper was asked");
        if request == Request::LoadSockmap {
            return match self.load_sockmap() {
                Ok(descriptors) => (Ok(Reply::Done), descriptors),
                Err(error) => (Err(error.into()), Vec::new()),
            };
        }
        (self.answer(request), Vec::new())
    }

    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::WatchHandshakes => {
                self.flow()?.watch_handshakes()?;
                Ok(Reply::Done)
            }
            Request::AdoptFlows => {
                self.flow()?.adopt()?;
                self.flows()
            }
            Request::AttachFlows { index } => {
                self.flow()?.attach(index)?;
                self.flows()
            }
            Request::ForgetGone => {
                self.flow()?.forget_gone()?;
                self.flows()
            }
            Request::DetachOlder { layout } => {
                self.older(&layout)?.detach()?;
                Ok(Reply::Done)
            }
            Request::UnpinOlder { layout } => {
                self.older(&layout)?.unpin()?;
                Ok(Reply::Done)
            }
            Request::SucceedShield => {
                self.shield()?.succeed()?;
                self.shielded()
            }
            Request::AttachShield => {
                self.shield()?.attach();
                self.shielded()
            }
            Request::DetachShield => {
                self.shield()?.detach()?;
                self.shielded()
            }
            Request::WatchShield { devices } => {
                let watched = interfaces()?.into_iter().filter(|found| devices.contains(found.index));
                self.shield()?.watch(watched.collect())?;
                self.shielded()
            }
            Request::ForgetTracks { connections } => {
                self.track(|tracks| tracks.forget(connections.as_slice()).map(drop))
            }
            Request::LoosenTracks { connections } => {
                self.track(|tracks| tracks.loosen(connections.as_slice()))
            }
            Request::AdmitTrack { connection } => self.track(|tracks| tracks.admit(&connection)),
            Request::Policies => match self.policies.read() {
                Ok(policies) => Ok(Reply::Policies(policies)),
                Err(error) => Err(refused("reading the IPsec policies", error)),
            },
            Request::Peers { device } => match (self.ask_peers)(device.as_str()) {
                Ok(peers) if peers.len() <= PEERS => Ok(Reply::Peers(peers)),
                Ok(_) => refuse("too many peers"),
                Err(error) => refuse(error),
            },
            Request::LoadSockmap => refuse("answered elsewhere"),
        }
    }

    fn track(&mut self, change: impl FnOnce(&mut Conntrack) -> io::Result<()>) -> Answer {
        const CALL: &str = "changing connection tracking";
        let tracks = match &mut self.tracks {
            Ok(tracks) => tracks,
            Err(error) => return Err(refused(CALL, io::Error::new(error.kind(), error.to_string()))),
        };
        change(tracks).map_err(|error| refused(CALL, error))?;
        Ok(Reply::Done)
    }

    fn flow(&mut self) -> Result<&mut FlowLinks, Refused> {
        self.wards.flow.as_mut().ok_or_else(|| missing("the flow programs are not loaded"))
    }

    fn shield(&mut self) -> Result<&mut ShieldLinks, Refused> {
        self.wards.shield.as_mut().ok_or_else(|| missing("the shield is not loaded"))
    }

    /// One of the layouts that were found at the start, by its name.
    fn older(&self, layout: &str) -> Result<&OlderPins, Refused> {
        let found = self.wards.older.iter().find(|older| older.layout == layout);
        found.ok_or_else(|| missing("there is no such layout"))
    }

    fn flows(&mut self) -> Answer {
        Ok(Reply::Flows(
            self.flow()?.devices().map(|(index, name)| (index, name.to_owned())).collect::<BTreeMap<_, _>>(),
        ))
    }

    fn shielded(&mut self) -> Answer {
        Ok(Reply::Shield(self.shield()?.hooks()))
    }

    fn load_sockmap(&mut self) -> Result<Vec<OwnedFd>, KernelError> {
        let programs = match &mut self.sockmap {
            Some(programs) => programs,
            none => none.insert(Programs::load(&self.wards.objects)?),
        };
        programs.maps()
    }
}

fn refused(call: &'static str, source: io::Error) -> Refused {
    KernelError::Call { call, source }.into()
}

fn missing(words: &str) -> Refused {
    Refused { words: words.into(), is_denied: false }
}

fn refuse(words: impl std::fmt::Display) -> Answer {
    Err(Refused { words: format!("{words}"), is_denied: false })
}
