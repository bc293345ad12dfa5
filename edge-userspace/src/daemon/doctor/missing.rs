//! `edgectl doctor` on missing parts: addresses and ports of listeners, the admin address, files.

use std::time::SystemTime;

use crate::{
    connection::Running,
    control::api::{Check, CheckStatus},
    daemon::{
        Daemon, clock,
        troubles::{Part, Trouble},
    },
};

impl Daemon {
    pub(super) fn missing(&self, running: &Running) -> Vec<Check> {
        let mut listeners: Vec<_> = running.listeners.keys().collect();
        listeners.sort();
        let mut checks = Vec::new();
        for name in listeners {
            for (address, trouble) in self.troubles.of(name) {
                let check = format!("address {address} of {name}");
                checks.push(match trouble {
                    Trouble::Away => Check::new(check, CheckStatus::Warn, trouble.to_string()).remedy(
                        "bring its device or tunnel up, or correct `bind`; clients are accepted as soon as it is there",
                    ),
                    Trouble::Closed(_) => Check::new(check, CheckStatus::Fail, trouble.to_string())
                        .remedy("edged tries again every few seconds; nothing else is needed once the cause is gone"),
                });
            }
        }
        let parts = [
            (Part::Admin, "see that nothing else listens there, or set daemon.admin to another address"),
            (Part::AdminToken, "mend the file and restart edged; until then the dashboard only shows"),
            (Part::Control, "make its directory one that edged may write to; edged tries again by itself"),
            (Part::State, "routes, drains and blocks can be changed again once state_dir can be written to"),
        ];
        for (part, remedy) in parts {
            checks.extend(
                self.troubles
                    .part(part)
                    .map(|trouble| Check::new(part.name(), CheckStatus::Fail, trouble).remedy(remedy)),
            );
        }
        if let Some(trouble) = self.edge.accounts.access_log().trouble() {
            checks.push(
                Check::new("access log", CheckStatus::Fail, trouble)
                    .remedy("edged tries again by itself; under systemd, write below /var/log/edge"),
            );
        }
        if !clock::is_plausible(SystemTime::now()) {
            let message = "this machine's clock is before this edged was written: certificates seem not to be valid yet";
            checks.push(
                Check::new("clock", CheckStatus::Warn, message)
                    .remedy("have it set by NTP (systemd-timesyncd, chrony); edged takes the change up"),
            );
        }
        checks
    }
}
