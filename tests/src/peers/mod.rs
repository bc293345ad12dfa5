//! Real servers and proxies that run on hosts of the lab, each with a configuration written for the case.

mod apache;
mod caddy;
mod haproxy;
mod lego;
mod mariadb;
mod nginx;
mod pebble;
mod postfix;
mod postgres;
mod prometheus;
mod sshd;

pub use apache::Apache;
pub use caddy::Caddy;
pub use haproxy::Haproxy;
pub use lego::Lego;
pub use mariadb::Mariadb;
pub use nginx::Nginx;
pub use pebble::Pebble;
pub use postfix::Postfix;
pub use postgres::Postgres;
pub use prometheus::Prometheus;
pub use sshd::Sshd;

use anyhow::{Context, Result};

/// The words of each whole line of a log that begins with `mark`.
fn words_after<const N: usize>(log: &str, mark: &str) -> Result<Vec<[String; N]>> {
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    let lines = whole.lines().filter_map(|line| line.strip_prefix(mark));
    let words = |line: &str| {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        words.try_into().ok().with_context(|| format!("not {N} words: {line}"))
    };
    lines.map(words).collect()
}
