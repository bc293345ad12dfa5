//! The command line of `edgectl`.

mod filters;
mod first_steps;

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCandidates;
use ipnet::IpNet;

pub(super) use self::{
    filters::{BackendFilterArgs, ConnectionFilterArgs, RouteFilterArgs},
    first_steps::{Import, Init},
};
use super::{
    live,
    shell::{Program, ShellArg},
    style::ColourArg,
};
use crate::{
    control::api::parse_prefix,
    spec::{
        BackendAddress, Choice, ClientProtocol, HostName, HostNameError, HostPattern, ProxyProtocol,
        ProxyTlv, Redirect,
    },
};

/// Where the daemon listens unless told otherwise.
pub(super) const CONTROL: &str = "/run/edge/control.sock";
/// Where the configuration is unless told otherwise.
pub(super) const CONFIG: &str = "/etc/edge/edge.toml";

/// Steers edged, the SNI edge in front of home.
#[derive(Debug, Parser)]
#[command(name = "edgectl", version, arg_required_else_help = true, max_term_width = 120)]
#[command(
    after_help = "Exit status: 0 done; 1 refused, or the check found something; 2 wrong usage; 3 edged cannot be reached."
)]
pub(super) struct Arguments {
    /// Print JSON, as the control API has it
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// When to use colours
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(super) color: ColourArg,
    /// The control socket of the daemon
    #[arg(long, global = true, value_name = "PATH", default_value = CONTROL)]
    pub(super) control: PathBuf,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Which host leads where
    #[command(subcommand)]
    Routes(Routes),
    /// Who answers at home
    #[command(subcommand)]
    Backends(Backends),
    /// Who is connected now
    #[command(subcommand)]
    Connections(Connections),
    /// The daemon at a glance
    Status,
    /// The daemon live, with the connections that carry most
    Top {
        /// Time between two looks
        #[arg(long, value_name = "TIME", default_value = "1s", value_parser = span)]
        interval: Duration,
        /// Stop after this many looks; by default it goes on until interrupted
        #[arg(long, value_name = "N")]
        count: Option<u64>,
    },
    /// Connections as they end: the last lines of the access log, and with --follow those that come
    Log {
        /// Go on with lines as they come
        #[arg(long, short)]
        follow: bool,
        /// Only clients that asked for this name, or for one that the pattern matches
        #[arg(long, value_name = "HOST", add = ArgValueCandidates::new(live::hosts_asked_for))]
        host: Option<HostPattern>,
        /// Only clients in this prefix
        #[arg(long, value_name = "CIDR", value_parser = parse_prefix)]
        client: Option<IpNet>,
        /// Only clients that were refused
        #[arg(long)]
        refused: bool,
        /// How many of the last lines to begin with; the daemon keeps some hundreds
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        lines: usize,
    },
    /// What the kernel does with a client's packets, live; edged must run with --trace-ebpf
    Trace {
        /// The client: an address or a prefix
        #[arg(value_parser = parse_prefix)]
        client: IpNet,
    },
    /// Looks for what is wrong, and says how to mend it
    Doctor(DoctorArgs),
    /// Sources whose packets are dropped before they cost anything
    #[command(subcommand)]
    Block(Block),
    /// The configuration file
    #[command(subcommand)]
    Config(Config),
    /// Makes the daemon read its configuration again (the same as `config reload`)
    Reload(ReloadArgs),
    /// Writes the first configuration: finds tunnels and home, asks two questions, starts edged
    Init(Init),
    /// Translates a configuration of HAProxy, nginx, sniproxy or Traefik
    ///
    /// The translation goes to standard output. What has none is listed on standard error, line by line.
    Import(Import),
    /// Prints a shell's completion script, which also completes names of the running daemon
    #[command(after_help = "Bash, in ~/.bashrc:         source <(edgectl completions bash)\n\
                      zsh, in ~/.zshrc:           source <(edgectl completions zsh)\n\
                      fish, in config.fish:       edgectl completions fish | source\n\
                      The Debian package installs these scripts.")]
    Completions {
        /// The shell
        shell: ShellArg,
        /// The program whose arguments the script completes
        #[arg(default_value = "edgectl")]
        program: Program,
    },
    /// Writes the manual pages of edgectl and edged into a directory
    Man {
        /// The directory, such as ./man; `man` looks for the pages in man1 and man8 of /usr/local/share/man
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The configuration to look at where the daemon cannot be asked
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    pub(super) config: PathBuf,
    /// List what is in order, too
    #[arg(short, long)]
    pub(super) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Routes {
    /// All routes, with their account
    List(RouteFilterArgs),
    /// Prints the routes that were added at run time as TOML for the configuration file
    Export,
    /// Adds a route: in effect at once, and again after a restart
    Add(AddRoute),
    /// Removes a route that was added
    Remove(RemoveRoute),
    /// Says which route a client would get, and why
    Test(TestRoute),
}

#[derive(Debug, Args)]
pub(super) struct AddRoute {
    /// A name, `*.suffix` for every name below, `.suffix` for both, or `*`
    #[arg(value_parser = hosts)]
    pub(super) host: Hosts,
    /// A pool, an address, `unix:/PATH`, `{label}.suffix`, several addresses that make a pool of their own, or `refuse`
    #[arg(required = true, add = ArgValueCandidates::new(live::targets))]
    pub(super) to: Vec<String>,
    #[command(flatten)]
    pub(super) when: When,
    /// Only clients in this prefix may use it; the others are refused (may be given again)
    #[arg(long, value_name = "CIDR", value_parser = parse_prefix)]
    pub(super) allow: Vec<IpNet>,
    /// Clients in this prefix are refused (may be given again)
    #[arg(long, value_name = "CIDR", value_parser = parse_prefix)]
    pub(super) deny: Vec<IpNet>,
    /// `https` redirects requests in clear text, except for ACME challenges
    #[arg(long, value_name = "SCHEME", default_value = "off")]
    pub(super) redirect: RedirectArg,
    /// The most connections at the same time; 0 = no limit
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(super) connections: usize,
    /// The PROXY header for a target that is an address
    #[arg(long, value_name = "VERSION", default_value = "off")]
    pub(super) proxy_protocol: ProxyProtocolArg,
    #[arg(
        long,
        value_name = "TLV",
        help = "What a header of version 2 has beside addresses (may be given again): authority, alpn, unique_id, \
                crc32c, received"
    )]
    pub(super) proxy_tlv: Vec<ProxyTlv>,
    /// The fastest datapath tier allowed
    #[arg(long, value_name = "TIER", default_value = "auto")]
    pub(super) datapath: DatapathArg,
    /// Take the place of an added route for the same clients
    #[arg(long)]
    pub(super) replace: bool,
}

#[derive(Debug, Args)]
pub(super) struct RemoveRoute {
    /// Its host, as `routes list` shows it, or `.suffix` as it was added
    #[arg(value_parser = hosts, add = ArgValueCandidates::new(live::added_hosts))]
    pub(super) host: Hosts,
    #[command(flatten)]
    pub(super) when: When,
    /// End its live connections too
    #[arg(long)]
    pub(super) close: bool,
}

/// The hosts that an argument stands for: `.suffix` for two.
#[derive(Clone, Debug)]
pub(super) struct Hosts(pub(super) Vec<HostPattern>);

fn hosts(text: &str) -> Result<Hosts, HostNameError> {
    HostPattern::several(text).map(Hosts)
}

/// The conditions of a route beside its host.
#[derive(Debug, Args)]
pub(super) struct When {
    /// Only on this listener (may be given again)
    #[arg(long, value_name = "L", add = ArgValueCandidates::new(live::listeners))]
    pub(super) listener: Vec<Arc<str>>,
    /// Only for clients that speak this (may be given again); without it, for TLS and HTTP
    #[arg(long, value_name = "P")]
    pub(super) protocol: Vec<ClientProtocolArg>,
    /// Only for clients that offer this protocol (may be given again)
    #[arg(long, value_name = "A")]
    pub(super) alpn: Vec<Arc<str>>,
    /// Only for clients in this prefix (may be given again)
    #[arg(long, value_name = "CIDR", value_parser = parse_prefix)]
    pub(super) from: Vec<IpNet>,
}

#[derive(Debug, Args)]
pub(super) struct TestRoute {
    /// The name that the client asks for; an address or `-` for one that names no usable host
    #[arg(value_parser = asked, add = ArgValueCandidates::new(live::exact_hosts))]
    pub(super) host: TestedHost,
    /// What the client speaks; by default what the listener takes
    #[arg(long, value_name = "P")]
    pub(super) protocol: Option<ClientProtocolArg>,
    /// What the client offers (may be given again)
    #[arg(long, value_name = "A")]
    pub(super) alpn: Vec<Arc<str>>,
    /// The client's address
    #[arg(long, value_name = "IP")]
    pub(super) from: Option<IpAddr>,
    /// The listener that the client comes to
    #[arg(long, value_name = "L", add = ArgValueCandidates::new(live::listeners))]
    pub(super) listener: Option<Arc<str>>,
    /// Walk the way to the backends with a real ClientHello
    #[arg(long)]
    pub(super) probe: bool,
}

/// The name that a client asks for, if it has one.
#[derive(Clone, Debug)]
pub(super) struct TestedHost(pub(super) Option<HostName>);

fn asked(text: &str) -> Result<TestedHost, HostNameError> {
    match HostName::from_text(text) {
        Err(HostNameError::IpLiteral) => Ok(TestedHost(None)),
        _ if text == "-" => Ok(TestedHost(None)),
        name => name.map(|name| TestedHost(Some(name))),
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Backends {
    /// All backends, with their health
    List(BackendFilterArgs),
    /// No new connections for a backend; those it has go on
    Drain {
        #[command(flatten)]
        backend: BackendArgs,
        /// Wait until its last connection has ended
        #[arg(long)]
        wait: bool,
    },
    /// New connections for a backend again
    Ready(BackendArgs),
}

#[derive(Debug, Args)]
pub(super) struct BackendArgs {
    /// The backend, as `backends list` shows it
    #[arg(add = ArgValueCandidates::new(live::backends))]
    pub(super) to: BackendAddress,
    /// Only in this pool
    #[arg(long, value_name = "P", add = ArgValueCandidates::new(live::pools))]
    pub(super) pool: Option<Arc<str>>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Connections {
    /// All live connections
    List {
        #[command(flatten)]
        filter: ConnectionFilterArgs,
        /// At most this many, the oldest
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        limit: usize,
    },
    /// Ends a connection, or all that meet every condition
    Close {
        /// Its number, as `connections list` shows it
        #[arg(add = ArgValueCandidates::new(live::connections), required_unless_present = "conditions",
            conflicts_with = "conditions")]
        id: Option<u64>,
        #[command(flatten)]
        filter: ConnectionFilterArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Block {
    /// Drops what comes from a prefix
    Add {
        /// A prefix or an address
        #[arg(value_parser = parse_prefix)]
        cidr: IpNet,
        /// For how long, like `10m`; by default until it is removed
        #[arg(long = "for", value_name = "DURATION", value_parser = span)]
        duration: Option<Duration>,
        /// Even where it cuts off this session or a tunnel
        #[arg(long)]
        force: bool,
    },
    /// Lets a blocked prefix in again
    Remove {
        /// The prefix, as `block list` shows it
        #[arg(value_parser = parse_prefix, add = ArgValueCandidates::new(live::blocks))]
        cidr: IpNet,
    },
    /// All blocked prefixes
    List,
}

#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Says what is wrong with a file; asks no daemon
    Check {
        /// The file
        #[arg(default_value = CONFIG)]
        file: PathBuf,
    },
    /// Makes the daemon read its configuration again
    Reload(ReloadArgs),
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct ReloadArgs {
    /// Say what would change, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// [`ProxyProtocol`] on a command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ProxyProtocolArg {
    Off,
    V1,
    V2,
}

impl From<ProxyProtocolArg> for ProxyProtocol {
    fn from(arg: ProxyProtocolArg) -> Self {
        match arg {
            ProxyProtocolArg::Off => Self::Off,
            ProxyProtocolArg::V1 => Self::V1,
            ProxyProtocolArg::V2 => Self::V2,
        }
    }
}

/// [`Redirect`] on a command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RedirectArg {
    Off,
    Https,
}

impl From<RedirectArg> for Redirect {
    fn from(arg: RedirectArg) -> Self {
        match arg {
            RedirectArg::Off => Self::Off,
            RedirectArg::Https => Self::Https,
        }
    }
}

/// [`Choice`] on a command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum DatapathArg {
    Auto,
    Flow,
    Sockmap,
    Splice,
    Copy,
}

impl From<DatapathArg> for Choice {
    fn from(arg: DatapathArg) -> Self {
        match arg {
            DatapathArg::Auto => Self::Auto,
            DatapathArg::Flow => Self::Flow,
            DatapathArg::Sockmap => Self::Sockmap,
            DatapathArg::Splice => Self::Splice,
            DatapathArg::Copy => Self::Copy,
        }
    }
}

/// [`ClientProtocol`] on a command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ClientProtocolArg {
    Tls,
    Http,
    Ssh,
    Openvpn,
    Postgres,
    Any,
}

impl From<ClientProtocolArg> for ClientProtocol {
    fn from(arg: ClientProtocolArg) -> Self {
        match arg {
            ClientProtocolArg::Tls => Self::Tls,
            ClientProtocolArg::Http => Self::Http,
            ClientProtocolArg::Ssh => Self::Ssh,
            ClientProtocolArg::Openvpn => Self::Openvpn,
            ClientProtocolArg::Any => Self::Any,
            ClientProtocolArg::Postgres => Self::Postgres,
        }
    }
}

fn span(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(span) if !span.is_zero() => Ok(span),
        _ => Err("expected a time like \"10m\" or \"1h 30m\"".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_agree_with_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn json_and_control_may_stand_anywhere() {
        let arguments =
            Arguments::try_parse_from(["edgectl", "routes", "list", "--json", "--control", "/x"]).unwrap();
        assert!(arguments.json);
        assert_eq!(arguments.control.to_str(), Some("/x"));
    }

    #[test]
    fn a_client_without_a_usable_name_can_be_asked_for() {
        assert!(asked("-").unwrap().0.is_none());
        assert!(asked("192.0.2.1").unwrap().0.is_none());
        assert_eq!(asked("A.example").unwrap().0.unwrap().as_str(), "a.example");
        asked("a..b").unwrap_err();
    }
}
