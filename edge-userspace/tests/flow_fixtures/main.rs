//! Packets through the programs of the flow tier by `BPF_PROG_TEST_RUN`: bytes in, expected bytes out, no network.
//!
//! A reference implementation computes the expected packets. It rewrites by meaning and computes every
//! checksum in full; it shares nothing with the programs but the types of the map.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails the test")]

mod lab;
mod packet;
mod path_mtu;
mod random;
mod refused;
mod rewriting;
mod speed;
mod tracking;
