//! Connections that rest.

use std::{
    io::{Write, stdout},
    net::TcpStream,
    thread,
};

use anyhow::{Context, Result};

use super::{open, wait_for_go};
use crate::{
    job::{Errand, HELD, Report},
    opening::Order,
};

/// Opened and not yet answered at the same time; more would overflow backlogs.
const AT_ONCE: usize = 128;

pub(super) fn run(errand: &Errand, connections: usize) -> Result<Report> {
    let mut held: Vec<TcpStream> = Vec::with_capacity(connections);
    while held.len() < connections {
        let from = held.len();
        for _ in 0..AT_ONCE.min(connections - from) {
            held.push(
                open(errand, Order::Hold).with_context(|| format!("after {} connections", held.len()))?,
            );
        }
        for stream in &mut held[from..] {
            wait_for_go(stream).context("a connection that was not answered")?;
        }
    }
    writeln!(stdout(), "{HELD}")?;
    loop {
        // Until the process is killed.
        thread::park();
    }
}
