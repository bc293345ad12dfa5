//! `edgectl init`: what a machine that has no configuration yet has (tunnels, peers, addresses, ports, firewall), and the
//! first configuration that follows from it. `look` reads the machine; everything else is pure.

#![forbid(unsafe_code)]

mod findings;
mod first_file;
mod look;

pub use findings::{Findings, Home, PortHolder, Record, Tunnel, TunnelKind, is_public};
pub use first_file::{Answers, is_blank, write_new};
pub use look::look;
