//! Takes up what was missing when edged started: addresses of listeners and of `daemon.admin`, ports that
//! another program had, the control socket's directory.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Daemon,
    segments::network_change,
    service::{notify, told_to_end},
    troubles::Part,
};
use crate::{
    control::{self, ControlSocket, admin},
    listener,
    pool::BackendState,
};

/// Between two attempts without an event: nobody tells when another program lets a port go.
const EVERY: Duration = Duration::from_secs(5);
/// The rest between two looks, however much happens.
const REST: Duration = Duration::from_millis(200);

impl Daemon {
    /// Retries failed binds and checks which addresses exist, for as long as the daemon lives: on kernel
    /// events about addresses and devices, and periodically.
    pub(super) async fn keep_listening(&self) {
        let mut network_changed = self.segments.network_changed();
        loop {
            sleep(REST).await;
            tokio::select! {
                () = network_change(network_changed.as_mut()) => {}
                () = sleep(EVERY) => {}
            }
            self.look_at_listeners().await;
        }
    }

    async fn look_at_listeners(&self) {
        let mut control_state = self.control_state.lock().await;
        if self.shown().draining {
            return;
        }
        let control_state = &mut *control_state;
        if control_state.sockets.retry(&control_state.settings.listeners, &self.workers) {
            self.announce();
        }
        self.note_listeners(&control_state.sockets);
    }

    /// Serves `daemon.admin` until `ended`; retries while it cannot be bound. Returns after the first
    /// attempt.
    pub(super) fn open_admin(self: &Arc<Self>, address: SocketAddr, ended: watch::Receiver<bool>) {
        let first = self.bind_admin(address);
        let daemon = Arc::clone(self);
        tokio::spawn(async move {
            let mut bound = first;
            let mut network_changed = daemon.segments.network_changed();
            let listener = loop {
                if let Some(listener) = bound {
                    break listener;
                }
                tokio::select! {
                    () = network_change(network_changed.as_mut()) => sleep(REST).await,
                    () = sleep(EVERY) => {}
                    () = told_to_end(ended.clone()) => return,
                }
                bound = daemon.bind_admin(address);
            };
            if let Err(error) = admin::serve(listener, Arc::clone(&daemon), told_to_end(ended)).await {
                daemon.troubles.note(Part::Admin, Some(error.to_string()));
            }
        });
    }

    fn bind_admin(&self, address: SocketAddr) -> Option<std::net::TcpListener> {
        let bound = listener::bind(address, 1, false, false);
        self.troubles.note(Part::Admin, bound.as_ref().err().map(ToString::to_string));
        bound.ok()?.pop()
    }

    /// Answers on the control socket until `ended`. Where it could not be made, tries again.
    pub(super) async fn serve_control(
        self: Arc<Self>,
        socket: Result<ControlSocket, control::BindError>,
        path: PathBuf,
        ended: watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        let mut bound = socket;
        let socket = loop {
            match bound {
                Ok(socket) => break socket,
                Err(error) => self.troubles.note(Part::Control, Some(error.to_string())),
            }
            if timeout(EVERY, told_to_end(ended.clone())).await.is_ok() {
                return Ok(());
            }
            bound = ControlSocket::bind(&path);
        };
        self.troubles.note(Part::Control, None);
        control::serve(socket, self, told_to_end(ended)).await
    }

    /// Keeps what the status shows, and the service manager, in step with what listens.
    pub(super) fn note_listeners(&self, sockets: &super::Sockets) {
        self.troubles.note_listeners(sockets.troubles());
        self.tell_manager();
    }

    /// `3 routes, 1 of 2 backends down, 40 connections`
    fn counts(&self) -> String {
        let running = self.edge.running.load();
        let (mut all, mut down) = (0_u64, 0_u64);
        for backend in running.backends() {
            all += 1;
            down += u64::from(backend.state() == BackendState::Down);
        }
        let backends = match (all, down) {
            (all, 0) => counted(all, "backend"),
            (all, down) => format!("{down} of {} down", counted(all, "backend")),
        };
        let flows = self.edge.flows.as_ref().map_or(0, |flows| flows.census().live);
        let connections = counted(self.edge.registry.len() as u64 + flows, "connection");
        format!("{}, {backends}, {connections}", counted(running.routes.len() as u64, "route"))
    }

    /// The line that `systemctl status` shows.
    pub(super) fn tell_manager(&self) {
        if let Some(line) = self.troubles.news(&self.counts()) {
            notify(&[NotifyState::Status(&line)]);
        }
    }
}

/// `1 route`, `3 routes`.
pub(super) fn counted(count: u64, thing: &str) -> String {
    format!("{count} {thing}{}", if count == 1 { "" } else { "s" })
}
