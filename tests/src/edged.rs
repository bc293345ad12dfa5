//! The built programs: the daemon on the edge, and `edgectl`, which talks to it.

use std::{
    env, fs,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    Host, Lab,
    access_log::AccessLog,
    process::{self, Process},
    wait::{self, SOON},
};

/// The environment variable with the directory of `edged` and `edgectl`; without it, the newest build of the
/// workspace is used.
pub const PROGRAMS: &str = "EDGE_PROGRAMS";

/// A daemon that is ready, on the lab's edge.
#[derive(Debug)]
pub struct Edged {
    process: Process,
    edgectl: Edgectl,
    files: Files,
    /// Its access log.
    pub access_log: AccessLog,
}

/// The settings that the daemon is started with.
#[derive(Clone, Debug)]
pub struct EdgedPlan<'a> {
    lab: &'a Lab,
    files: Files,
    daemon: String,
    body: String,
    before: Vec<String>,
    programs: Option<PathBuf>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
}

/// The files of one daemon. A second daemon with the same files takes the first one's place.
#[derive(Clone, Debug)]
struct Files {
    config: PathBuf,
    control: PathBuf,
    state: PathBuf,
    access_log: PathBuf,
}

impl Files {
    fn of(lab: &Lab) -> Self {
        let file = |name| lab.directory().join(name);
        Self {
            config: file("edge.toml"),
            control: file("control.sock"),
            state: file("state"),
            access_log: file("access-log.json"),
        }
    }
}

impl EdgedPlan<'_> {
    /// Adds a line to `[daemon]`, like `datapath = "copy"`.
    #[must_use]
    pub fn daemon(mut self, line: &str) -> Self {
        self.daemon.push_str(line);
        self.daemon.push('\n');
        self
    }

    /// Runs the daemon by another program that becomes it, like `prlimit --nofile=64`.
    #[must_use]
    pub fn by(mut self, program: &[&str]) -> Self {
        self.before = program.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Runs the daemon of this directory, as [`older::programs`](crate::older::programs) gives one.
    #[must_use]
    pub fn programs(mut self, directory: &Path) -> Self {
        self.programs = Some(directory.to_owned());
        self
    }

    /// Keeps state and access log in this directory instead of the lab's own.
    #[must_use]
    pub fn on_disk(mut self, directory: &Path) -> Self {
        self.files.state = directory.join("state");
        self.files.access_log = directory.join("access-log.json");
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds an argument of the command line, like `--trace-ebpf`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// The configuration file's text.
    fn text(&self, body: &str) -> String {
        format!(
            "[daemon]\ncontrol = \"{}\"\nstate_dir = \"{}\"\naccess_log = \"{}\"\n{}\n{body}",
            self.files.control.display(),
            self.files.state.display(),
            self.files.access_log.display(),
            self.daemon
        )
    }

    /// Starts the daemon without waiting for anything.
    pub fn spawn(&self) -> Result<Process> {
        fs::create_dir_all(&self.files.state)?;
        fs::write(&self.files.config, self.text(&self.body))?;
        let edged = match &self.programs {
            Some(directory) => directory.join("edged"),
            None => program("edged")?,
        };
        let mut words = self.before.iter().map(PathBuf::from).chain([edged]);
        let mut command = Command::new(words.next().context("no program")?);
        command.args(words).arg("--config").arg(&self.files.config);
        // All namespaces of the machine share bpffs, so each daemon gets its own directory for pins.
        command.arg("--pins").arg(self.lab.pins());
        command.args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.lab.edge.spawn("edged", command)
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(self) -> Result<Edged> {
        // A killed daemon leaves a socket that nobody serves; it must not make the next one look ready.
        let _ = fs::remove_file(&self.files.control);
        let mut process = self.spawn()?;
        let control = self.files.control.clone();
        process.wait_ready(SOON, || answers(&control))?;
        let edgectl = Edgectl { program: program("edgectl")?, control };
        let access_log = AccessLog::new(self.files.access_log.clone());
        Ok(Edged { process, edgectl, files: self.files, access_log })
    }
}

impl Edged {
    /// A daemon with this configuration; the lab writes `[daemon]`, see [`EdgedPlan::daemon`].
    pub fn plan<'a>(lab: &'a Lab, body: &str) -> EdgedPlan<'a> {
        EdgedPlan {
            lab,
            files: Files::of(lab),
            daemon: String::new(),
            body: body.to_owned(),
            before: Vec::new(),
            programs: None,
            environment: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// Starts a daemon with this configuration and waits until it answers.
    pub fn start(lab: &Lab, body: &str) -> Result<Self> {
        Self::plan(lab, body).start()
    }

    /// The command that talks to it.
    pub fn edgectl(&self) -> &Edgectl {
        &self.edgectl
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process, to look at.
    pub fn as_process(&self) -> &Process {
        &self.process
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.files.config
    }

    /// Where it keeps routes added at run time.
    pub fn state(&self) -> &Path {
        &self.files.state
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        self.process.resident()
    }

    /// Replaces everything but `[daemon]` in the configuration file, without telling the daemon.
    pub fn rewrite(&self, body: &str) -> Result<()> {
        let old = fs::read_to_string(&self.files.config)?;
        let daemon = old.split_once("\n\n").context("the [daemon] part ends with an empty line")?.0;
        let new = self.files.config.with_extension("new");
        fs::write(&new, format!("{daemon}\n\n{body}"))?;
        Ok(fs::rename(&new, &self.files.config)?)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Waits until its log contains this; gives the whole log.
    pub fn wait_for_log(&self, part: &str) -> Result<String> {
        wait::until_ok(&format!("{part:?} in the log"), SOON, || {
            let log = self.process.whole_log()?;
            ensure!(log.contains(part), "no {part:?} in {log}");
            Ok(log)
        })
    }

    /// SIGTERM, and waits for its end; gives the exit code.
    pub fn terminate(&mut self) -> Result<Option<i32>> {
        self.signal(Signal::TERM)?;
        Ok(self.process.wait(SOON)?.code())
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.process.wait(SOON)?;
        Ok(())
    }

    /// Waits until it has this many connections.
    pub fn wait_for_connections(&self, count: usize) -> Result<Vec<Value>> {
        wait::until_ok(&format!("{count} connections"), SOON, || {
            let list = self.edgectl.list("connections")?;
            ensure!(list.len() == count, "{} connections, not {count}", list.len());
            Ok(list)
        })
    }
}

/// `edgectl` for one daemon.
#[derive(Clone, Debug)]
pub struct Edgectl {
    program: PathBuf,
    control: PathBuf,
}

impl Edgectl {
    /// `edgectl` for a daemon with this control socket, which need not exist.
    pub fn new(control: &Path) -> Result<Self> {
        Ok(Self { program: program("edgectl")?, control: control.to_owned() })
    }

    /// The control socket.
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// Runs it with `--control`, whatever its exit status.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--control").arg(&self.control);
        process::run(command, b"", SOON)
    }

    /// Runs it and wants success; gives its standard output.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        ensure!(
            output.status.success(),
            "edgectl {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts it, with `--control`, and leaves it running; what it writes goes to a file in this directory.
    pub fn spawn(&self, arguments: &[&str], directory: &Path) -> Result<Process> {
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--control").arg(&self.control);
        Process::spawn(
            "edgectl",
            command,
            directory.join(format!("edgectl-{}.log", arguments.join("-").replace('/', "_"))),
        )
    }

    /// Runs it with `--json`, wants success, and reads what it says.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.text(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("edgectl {} said {text}", arguments.join(" ")))
    }

    /// The entries of `edgectl WHAT list --json`.
    pub fn list(&self, what: &str) -> Result<Vec<Value>> {
        match self.json(&[what, "list"])? {
            Value::Array(entries) => Ok(entries),
            other => bail!("edgectl {what} list --json is no array: {other}"),
        }
    }

    /// Asks with `--json` until the answer is as wanted; what is wanted of it says so by an error.
    pub fn until(&self, arguments: &[&str], wanted: impl Fn(&Value) -> Result<()>) -> Result<Value> {
        wait::until_ok(&format!("edgectl {} to say so", arguments.join(" ")), SOON, || {
            let answer = self.json(arguments)?;
            wanted(&answer)?;
            Ok(answer)
        })
    }

    /// Runs it and wants this exit status; gives its standard error.
    pub fn refused(&self, code: i32, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        let complaint = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(code),
            "edgectl {} ended with {}, not {code}: {complaint}",
            arguments.join(" "),
            output.status
        );
        Ok(complaint)
    }
}

/// Runs `edged --check` on a whole configuration file of this text.
pub fn check(host: &Host, text: &str) -> Result<Output> {
    let file = host.directory().join("check.toml");
    fs::write(&file, text)?;
    let mut command = Command::new(program("edged")?);
    command.arg("--check").arg("--config").arg(&file);
    host.output(command)
}

/// Whether a daemon answers on this control socket, which is there before anything else is ready.
fn answers(control: &Path) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(control)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// A built program of the project.
pub fn program(name: &str) -> Result<PathBuf> {
    if let Some(directory) = env::var_os(PROGRAMS) {
        let path = PathBuf::from(directory).join(name);
        ensure!(path.is_file(), "{PROGRAMS} is set, but there is no {}", path.display());
        return Ok(path);
    }
    let own = env::current_exe()?;
    let profiles = own
        .ancestors()
        .find(|directory| directory.join("release").is_dir() || directory.join("debug").is_dir())
        .with_context(|| format!("{} is in no target directory", own.display()))?;
    ["release", "debug"]
        .map(|profile| profiles.join(profile).join(name))
        .into_iter()
        .filter_map(|path| Some((fs::metadata(&path).and_then(|file| file.modified()).ok()?, path)))
        .max()
        .map(|(_, path)| path)
        .with_context(|| format!("{name} is not built: cargo build --release"))
}
