//! Connections: listed, closed.

use std::{net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::BackendState;
use crate::spec::{HostName, SocketName, Tier};

/// `GET /v1/connections`: one live connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    /// Its number, the same as in the access log.
    pub id: u64,
    /// The client, behind a believed PROXY header the one it names.
    pub client: SocketAddr,
    /// The listener that accepted it.
    pub listener: Arc<str>,
    /// The name the client asked for.
    pub host: Option<HostName>,
    /// The client's ALPN list.
    pub alpn: Vec<Arc<str>>,
    /// The host of the route; `null` before there is one and on a tcp listener.
    pub route: Option<Arc<str>>,
    /// The address of the backend; `null` before it is connected.
    pub backend: Option<SocketName>,
    /// The tunnel that the backend is bound to; `null` for a flow whose backend has left the configuration.
    #[serde(default)]
    pub device: Option<Arc<str>>,
    /// The backend's current state; `null` before it is connected, and for a flow whose backend has left the
    /// configuration. A connection stays with its backend when that goes down.
    #[serde(default)]
    pub backend_state: Option<BackendState>,
    /// The tier that carries; `null` before the backend is connected.
    pub datapath: Option<Tier>,
    /// Seconds since it was accepted.
    pub age_seconds: f64,
    /// Seconds since the last byte either way.
    pub idle_seconds: f64,
    /// Bytes from the client to the backend.
    pub bytes_up: u64,
    /// Bytes from the backend to the client.
    pub bytes_down: u64,
    /// A sockmap connection that user space carries; absent where it does not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub spilled: bool,
}

/// The answer to `DELETE /v1/connections/{id}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedConnection {
    /// The connection that was ended.
    pub id: u64,
}
