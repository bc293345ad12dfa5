//! The examination for `edgectl doctor`: the daemon looks at itself and its environment.

mod backends;
mod blocks;
mod certificates;
mod firewall;
mod headers;
mod missing;
mod ways;

use std::sync::Arc;

use super::Daemon;
use crate::{
    connection::Running,
    control::api::{Check, CheckStatus, Guard, GuardedBy, OtherLayout},
    datapath::{LARGER_PIPES, SMALL_PIPES, are_pipes_large},
    kernel::{self, Finding, keeper},
};

impl Daemon {
    /// Looks at everything, what costs no waiting first, and passes on each finding at once.
    pub(super) async fn examine(&self, mut found: impl FnMut(Check) + Send) {
        let running = self.edge.running.load_full();
        self.at_a_glance(&running).into_iter().for_each(&mut found);
        self.blocks_that_cut().await.into_iter().for_each(&mut found);
        let backends: Vec<_> = running.backends().map(Arc::clone).collect();
        ways::devices(&backends).await.into_iter().for_each(&mut found);
        let homes = backends::homes(&running);
        let blocked = self.shielding.shield().blocked().unwrap_or_default();
        backends::walks(&homes, &blocked, &mut found).await;
        certificates::look(&homes).await.into_iter().for_each(&mut found);
    }

    /// The checks that are answered from memory and from files of the kernel.
    fn at_a_glance(&self, running: &Running) -> Vec<Check> {
        let mut checks = Vec::new();
        let glance = self.glance();
        checks.push(match glance.config.last_reload {
            Some(reload) if !reload.successful => {
                Check::new("configuration", CheckStatus::Fail, reload.error.unwrap_or_default()).remedy(
                    "mend the file and run `edgectl reload`; the old configuration goes on until then",
                )
            }
            _ => Check::new(
                "configuration",
                CheckStatus::Ok,
                format!("{} is in effect", glance.config.path.display()),
            ),
        });
        checks.push(Check::new(
            "connections",
            if glance.connections.now < glance.connections.limit {
                CheckStatus::Ok
            } else {
                CheckStatus::Warn
            },
            format!("{} of at most {}", glance.connections.now, glance.connections.limit),
        ));
        let mut listeners: Vec<_> = running.listeners.keys().collect();
        listeners.sort();
        checks
            .extend(listeners.into_iter().map(|name| ways::announced(name, self.segments.of(name).as_ref())));
        checks.extend(self.missing(running));
        checks.extend(headers::sizes(running));
        checks.push(firewall::conntrack());
        if let Some(flows) = &self.edge.flows {
            checks.extend(firewall::hindrances(flows));
        }
        checks.extend(shield(&super::blocks::guards(&self.shielding)));
        checks.push(pipes());
        checks.extend(self.left_by_others().iter().filter(|other| other.readable).map(older_check));
        checks.extend(self.findings.iter().cloned().map(kernel_check));
        checks.extend(keeper());
        checks
    }
}

/// Where blocked sources cost no more than a packet, and where they cost a connection.
fn shield(guards: &[Guard]) -> Vec<Check> {
    let check = |guard: &Guard| {
        let name = format!("shield on {}", guard.device);
        match (guard.by, &guard.reason) {
            (GuardedBy::Accept, reason) => {
                let reason = reason.as_deref().unwrap_or("its packets are not dropped");
                Check::new(
                    name,
                    CheckStatus::Warn,
                    format!("blocked sources are refused at accept alone: {reason}"),
                )
            }
            (by, _) => Check::new(
                name,
                CheckStatus::Ok,
                format!("packets of blocked sources are dropped ({})", by.name()),
            ),
        }
    };
    guards.iter().map(check).collect()
}

/// In order: they go by themselves.
fn older_check(other: &OtherLayout) -> Check {
    let flows = other.flows.unwrap_or(0);
    let message =
        format!("{flows} flows go on in layout {} and end there; new ones are beside them", other.layout);
    Check::new("flows of an earlier version", CheckStatus::Ok, message)
}

/// Whether the process is there that attaches programs to devices that come.
fn keeper() -> Option<Check> {
    let is_gone = keeper::keeper()?.is_gone();
    Some(if is_gone {
        Check::new(
            "privileged process",
            CheckStatus::Fail,
            "it has ended: devices that come from now on carry no flows and drop nothing",
        )
        .remedy("restart edged; its connections that are flows outlive that")
    } else {
        Check::new("privileged process", CheckStatus::Ok, "keeps the rights for programs and devices")
    })
}

fn pipes() -> Check {
    match are_pipes_large() {
        Ok(true) => Check::new("pipes", CheckStatus::Ok, "splice gets pipes of 1 MiB"),
        Ok(false) => Check::new("pipes", CheckStatus::Warn, SMALL_PIPES).remedy(LARGER_PIPES),
        Err(error) => Check::new("pipes", CheckStatus::Warn, format!("no pipe can be made: {error}"))
            .remedy("raise LimitNOFILE of the service"),
    }
}

fn kernel_check(finding: Finding) -> Check {
    let status = match finding.state {
        kernel::State::Good => CheckStatus::Ok,
        kernel::State::Unknown => CheckStatus::Skip,
        kernel::State::Limited => CheckStatus::Warn,
        kernel::State::Missing => CheckStatus::Fail,
    };
    let check = Check::new(finding.name, status, finding.message);
    match finding.remedy {
        Some(remedy) => check.remedy(remedy),
        None => check,
    }
}
