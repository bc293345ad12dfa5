//! Whether a backend expects another PROXY header than it gets. If so, clients see a connection that breaks, and the
//! backend logs garbage.

use std::time::Duration;

use crate::{
    pool::{
        Backend,
        check::{CheckError, Plan, check},
    },
    spec::{Ask, HealthSpec, ProxyProtocol},
};

/// How long one question may take: the backend has just accepted a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// The header that a backend answers with, asked after it did not answer with that of the plan. `None` if it answers
/// with none, or nothing can be concluded.
pub(super) async fn expected(backend: &Backend, plan: &Plan) -> Option<ProxyProtocol> {
    // Without a question there is no answer.
    if plan.asks.iter().all(|&ask| ask == Ask::Connect) {
        return None;
    }
    for header in [ProxyProtocol::Off, ProxyProtocol::V2, ProxyProtocol::V1] {
        if header == plan.proxy_protocol {
            continue;
        }
        let health = HealthSpec { timeout: plan.health.timeout.min(PATIENCE), ..plan.health };
        match check(backend, &Plan { proxy_protocol: header, health, ..plan.clone() }).await {
            Ok(_) => return Some(header),
            Err(CheckError::Connect(_)) => return None,
            Err(_) => {}
        }
    }
    None
}

pub(super) fn mismatch(sent: ProxyProtocol, expected: ProxyProtocol) -> String {
    format!("is sent {}, but answers with {} only", word(sent), word(expected))
}

pub(super) fn taken(sent: ProxyProtocol) -> String {
    format!("is sent {}, and takes it", word(sent))
}

fn word(header: ProxyProtocol) -> &'static str {
    match header {
        ProxyProtocol::Off => "no PROXY header",
        ProxyProtocol::V1 => "a PROXY header of version 1",
        ProxyProtocol::V2 => "a PROXY header of version 2",
    }
}
