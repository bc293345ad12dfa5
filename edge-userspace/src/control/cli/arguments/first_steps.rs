//! `edgectl init` and `edgectl import` on the command line.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{CONFIG, Hosts, hosts};
use crate::{import::Format, spec::BackendAddress};

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub(in super::super) struct Init {
    /// Asks nothing, as with `--json`: takes the arguments, and guesses for what they leave out
    #[arg(long, short)]
    pub(in super::super) yes: bool,
    /// A name that home serves, `*.suffix`, `.suffix` for both, or `*` for all (may be given again)
    #[arg(long, value_name = "HOST", value_parser = hosts)]
    pub(in super::super) host: Vec<Hosts>,
    /// Home's address in the tunnel
    #[arg(long, value_name = "ADDRESS")]
    pub(in super::super) to: Option<BackendAddress>,
    /// The file to write
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    pub(in super::super) config: PathBuf,
    /// Replace a file that has settings; the old one is kept beside it, with `.old` behind its name
    #[arg(long)]
    pub(in super::super) force: bool,
    /// Print the file, and change nothing
    #[arg(long, visible_alias = "dry-run", conflicts_with = "force")]
    pub(in super::super) print: bool,
    /// Do not enable and start the service
    #[arg(long)]
    pub(in super::super) no_start: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct Import {
    /// haproxy.cfg, nginx.conf, sniproxy.conf, or files of Traefik; several are read as one configuration
    #[arg(required = true, value_name = "FILE")]
    pub(in super::super) files: Vec<PathBuf>,
    /// The program whose configuration it is; by default its contents tell
    #[arg(long)]
    pub(in super::super) format: Option<FormatArg>,
    /// Write the translation to this file, which must not exist
    #[arg(long, short, value_name = "FILE")]
    pub(in super::super) output: Option<PathBuf>,
}

/// [`Format`] on a command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in super::super) enum FormatArg {
    Haproxy,
    Nginx,
    Sniproxy,
    Traefik,
}

impl From<FormatArg> for Format {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Haproxy => Self::Haproxy,
            FormatArg::Nginx => Self::Nginx,
            FormatArg::Sniproxy => Self::Sniproxy,
            FormatArg::Traefik => Self::Traefik,
        }
    }
}
