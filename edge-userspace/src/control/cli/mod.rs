//! `edgectl`: arguments in, calls of the control API, tables or JSON out, and the exit status that scripts rely on.

mod arguments;
mod config;
mod doctor;
mod export;
mod filter;
mod import;
mod init;
mod lists;
mod live;
mod log;
mod manual;
mod progress;
mod routes;
mod shell;
mod status;
mod style;
mod table;
mod top;
mod trace;
mod units;

use std::{
    ffi::OsString,
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use serde::de::DeserializeOwned;

use self::{
    arguments::{Arguments, BackendArgs, Backends, Block, Command, Config, Connections, ReloadArgs},
    progress::Progress,
    style::{ColourArg, Output},
    table::Table,
};
use super::{
    api::{
        self, AddBlock, BackendSelector, ClosedConnection, ClosedConnections, ErrorBody, ErrorDetail,
        LogRequest, RemoveBlock,
    },
    client::{Answer, Client, ClientError},
};

/// Runs the command line. 0: done; 1: the daemon refused, or a check found something; 2: wrong usage; 3: the
/// daemon cannot be reached. `edged` is the daemon's own command line, for its completions and manual page.
pub fn main(arguments: impl IntoIterator<Item = OsString>, edged: clap::Command) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    match shell::answer(&arguments) {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => {}
        Err(error) => error.exit(),
    }
    ColourArg::find(&arguments).apply();
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Where even that cannot be written nobody is left to be told.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    arguments.color.apply();
    let output = Output::new(arguments.json);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::Output(error).report(output),
    };
    match runtime.block_on(run(arguments, output, edged)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(output),
    }
}

/// Why the exit status is not 0.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// An argument that is wrong in a way that only shows together with others.
    #[error("{0}")]
    Usage(String),
    /// No answer, or a refusal.
    #[error(transparent)]
    Call(#[from] ClientError),
    /// The configuration file is wrong.
    #[error("{0}")]
    Invalid(crate::config::ConfigError),
    /// A file that was given cannot be used.
    #[error("{0}")]
    File(String),
    /// A check found something; it is on standard output already.
    #[error("the check found something")]
    Found,
    /// The daemon cannot be reached; what can be said without it is on standard output already.
    #[error("edged cannot be reached")]
    Unreachable,
    /// Standard output is closed, or this process is out of something.
    #[error("{0}")]
    Output(#[from] io::Error),
}

impl Failure {
    fn report(&self, output: Output) -> ExitCode {
        let detail =
            |code: &str| ErrorDetail { code: code.to_owned(), message: self.to_string(), hint: None };
        let (status, detail) = match self {
            Self::Found => return ExitCode::from(1),
            Self::Unreachable => return ExitCode::from(3),
            // The reader of a pipe has seen enough.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => return ExitCode::SUCCESS,
            Self::Output(_) => (1, detail("output")),
            Self::Invalid(_) => (1, detail("config_invalid")),
            Self::File(_) => (1, detail("file")),
            Self::Usage(_) => (2, detail("usage")),
            Self::Call(ClientError::Refused(refused)) => (1, refused.clone()),
            Self::Call(_) => (3, detail("unreachable")),
        };
        let text = if output.json {
            serde_json::to_string(&ErrorBody { error: detail }).unwrap_or_default()
        } else {
            let hint = detail.hint.map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
            let prefix = if matches!(self, Self::Invalid(_)) { "" } else { "edgectl: " };
            format!("{prefix}{}{hint}", detail.message)
        };
        let _ = writeln!(io::stderr(), "{text}");
        ExitCode::from(status)
    }
}

async fn run(arguments: Arguments, output: Output, edged: clap::Command) -> Result<(), Failure> {
    let daemon = Client::new(arguments.control);
    match arguments.command {
        Command::Routes(command) => routes::run(command, &daemon, output).await,
        Command::Backends(command) => backends(command, &daemon, output).await,
        Command::Connections(command) => connections(command, &daemon, output).await,
        Command::Block(command) => block(command, &daemon, output).await,
        Command::Status => status::run(&daemon, output).await,
        Command::Top { interval, count } => top::run(&daemon, output, interval, count).await,
        Command::Log { follow, host, client, refused, lines } => {
            log::run(&daemon, output, LogRequest { host, client, refused, lines, follow }).await
        }
        Command::Trace { client } => trace::run(&daemon, output, client).await,
        Command::Doctor(arguments) => doctor::run(&daemon, output, &arguments).await,
        Command::Config(Config::Check { file }) => config::check(&file, output),
        Command::Init(arguments) => init::run(arguments, &daemon, output).await,
        Command::Import(arguments) => import::run(&arguments, output),
        Command::Config(Config::Reload(ReloadArgs { dry_run: true }))
        | Command::Reload(ReloadArgs { dry_run: true }) => config::plan(&daemon, output).await,
        Command::Config(Config::Reload(_)) | Command::Reload(_) => config::reload(&daemon, output).await,
        Command::Completions { shell, program } => Ok(shell::completions(shell, program, edged)?),
        Command::Man { directory } => Ok(manual::write(&directory, edged)?),
    }
}

/// The answer as the daemon wrote it, or in words.
fn show<T: DeserializeOwned>(
    output: Output,
    answer: &Answer,
    words: impl FnOnce(&T) -> Vec<String>,
) -> Result<(), Failure> {
    if output.json {
        style::write(answer.json())?;
    } else {
        style::write_lines(words(&answer.read()?))?;
    }
    Ok(())
}

/// The answer as the daemon wrote it, or as a table.
fn list<T: DeserializeOwned>(
    output: Output,
    answer: &Answer,
    table: impl FnOnce(&[T]) -> Table,
) -> Result<(), Failure> {
    show(output, answer, |items: &Vec<T>| table(items).lines(output.colours, output.width))
}

async fn backends(command: Backends, daemon: &Client, output: Output) -> Result<(), Failure> {
    let selector = |BackendArgs { to, pool }| BackendSelector { to, pool };
    let answer = match command {
        Backends::List(filter) => {
            let answer = daemon.get("/v1/backends").await?;
            let wanted = |backend: &api::Backend| filter.takes(backend);
            return filter::show(output, &answer, wanted, filter.limit, lists::backends);
        }
        Backends::Drain { backend, wait } => {
            let selector = selector(backend);
            let answer = daemon.post("/v1/backends/drain", &selector).await?;
            if wait { drained(daemon, &selector, output).await? } else { answer }
        }
        Backends::Ready(backend) => daemon.post("/v1/backends/ready", &selector(backend)).await?,
    };
    show(output, &answer, |backends: &Vec<api::Backend>| {
        let mut lines = lists::backends(backends).lines(output.colours, output.width);
        let left = backends.iter().filter(|backend| backend.state == api::BackendState::Drained);
        let left: u64 = left.map(|backend| backend.connections).sum();
        if left > 0 {
            lines.push(format!("{} there until they end", units::count(left, "connection")));
        }
        lines
    })
}

/// The backends that are meant, once none has a connection left.
async fn drained(daemon: &Client, meant: &BackendSelector, output: Output) -> Result<Answer, Failure> {
    const EVERY: Duration = Duration::from_millis(500);
    let progress = Progress::new(output);
    loop {
        let all: Vec<api::Backend> = daemon.get("/v1/backends").await?.read()?;
        let is_meant = |backend: &&api::Backend| {
            backend.to == meant.to && meant.pool.as_ref().is_none_or(|pool| *pool == backend.pool)
        };
        let left: u64 = all.iter().filter(is_meant).map(|backend| backend.connections).sum();
        if left == 0 {
            // The same again: it changes nothing, and answers with those that are meant.
            return Ok(daemon.post("/v1/backends/drain", meant).await?);
        }
        let what = format!("draining: {} left", units::count(left, "connection"));
        progress.during(&what, tokio::time::sleep(EVERY)).await;
    }
}

async fn connections(command: Connections, daemon: &Client, output: Output) -> Result<(), Failure> {
    match command {
        Connections::List { filter, limit } => {
            let filter = filter.with_limit(limit);
            if filter.is_empty() && limit == 0 {
                let answer = daemon.get("/v1/connections").await?;
                return list(output, &answer, lists::connections);
            }
            let answer = daemon.select("/v1/connections", &filter).await?;
            // Earlier daemons list everything.
            let wanted = |connection: &api::Connection| filter.takes(connection);
            filter::show(output, &answer, wanted, Some(limit), lists::connections)
        }
        Connections::Close { id: Some(id), .. } => {
            let answer = daemon.delete(&format!("/v1/connections/{id}"), &()).await?;
            show(output, &answer, |closed: &ClosedConnection| {
                vec![format!("closed connection {}", closed.id)]
            })
        }
        Connections::Close { id: None, filter } => {
            let answer = daemon.delete("/v1/connections", &filter.with_limit(0)).await?;
            show(output, &answer, |closed: &ClosedConnections| {
                vec![format!("closed {}", units::count(closed.closed, "connection"))]
            })
        }
    }
}

async fn block(command: Block, daemon: &Client, output: Output) -> Result<(), Failure> {
    match command {
        Block::List => {
            let answer = daemon.get("/v1/blocks").await?;
            list(output, &answer, lists::blocks)?;
            if !output.json {
                let status: api::Status = daemon.get("/v1/status").await?.read()?;
                if !status.shield.is_empty() {
                    style::write_lines([String::new(), status::guards(&status.shield, output)])?;
                }
            }
            Ok(())
        }
        Block::Add { cidr, duration, force } => {
            let protect = own_address().into_iter().collect();
            let answer = daemon.post("/v1/blocks", &AddBlock { cidr, duration, protect, force }).await?;
            show(output, &answer, |block: &api::Block| {
                let until = block.until.map(|until| format!(" until {until}")).unwrap_or_default();
                let ended = match block.closed {
                    0 => String::new(),
                    closed => format!("; {} ended", units::count(closed, "connection")),
                };
                let mut lines = vec![format!("blocked {}{until}{ended}", block.cidr)];
                lines.extend((!block.devices.is_empty()).then(|| status::guards(&block.devices, output)));
                lines
            })
        }
        Block::Remove { cidr } => {
            let answer = daemon.delete("/v1/blocks", &RemoveBlock { cidr }).await?;
            show(output, &answer, |block: &api::Block| {
                vec![format!("let {} in again; {} packets were dropped", block.cidr, block.packets)]
            })
        }
    }
}

/// Where the operator is logged in from, as sshd(8) says it.
fn own_address() -> Option<IpAddr> {
    let connection = std::env::var("SSH_CONNECTION").or_else(|_| std::env::var("SSH_CLIENT")).ok()?;
    connection.split(' ').next()?.parse().ok()
}
