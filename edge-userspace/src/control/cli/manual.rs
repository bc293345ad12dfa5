//! `edgectl man`: the manual pages of both programs, from the definitions of their arguments.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::arguments::Arguments;

const MANUAL: &str = "edge";
/// What follows the options of edged, whose behaviour is in its configuration.
const EDGED: &str = "\
Signals: SIGHUP reads the configuration again; SIGTERM stops accepting, waits for connections at most \
daemon.drain_timeout, and exits with 0; a second SIGTERM exits at once.

Files: /etc/edge/edge.toml, the configuration; /var/lib/edge, routes and blocks that edgectl added; \
/run/edge/control.sock, the socket of the control API; /sys/fs/bpf/edge, pinned BPF programs and maps.

See also: edgectl(1); /usr/share/doc/edge/guide.md, for every setting.";

/// Writes `edged.8`, `edgectl.1` and a page for each of edgectl's commands into a directory, which is made.
pub(super) fn write(directory: &Path, edged: Command) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let edged = edged.after_help(EDGED);
    Man::new(edged).section("8").manual(MANUAL).generate_to(directory)?;
    let mut edgectl = Arguments::command().disable_help_subcommand(true);
    edgectl.build();
    pages(&edgectl, directory)
}

fn pages(command: &Command, directory: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below, directory)?;
    }
    let source = format!("edge {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).manual(MANUAL).source(source).generate_to(directory).map(drop)
}
