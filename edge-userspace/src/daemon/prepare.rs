//! The part of the start that needs rights: everything before the first byte from the network is read, and
//! before there is a second thread.

use std::{net::TcpListener, path::PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;

use super::{DaemonError, flows, service::notify, vital};
use crate::{
    config::Settings,
    control::{
        BindError, ControlSocket,
        admin::{Token, TokenError},
    },
    kernel::{
        self, Finding, Kernel, Objects, PinLock, State, Wanted,
        keeper::{self, Forked},
        sandbox::{self, Account, Confines},
    },
    observe::access_log::AccessLogTarget,
    tunnel,
};

/// The options of the command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// BPF objects to load instead of the embedded ones.
    pub bpf_object: Option<PathBuf>,
    /// Whether the BPF programs are to report what they do with packets.
    pub trace_ebpf: bool,
    /// The directory of pins, on a BPF filesystem.
    pub pins: PathBuf,
}

/// A daemon that has what it needs and no more rights than it needs, and is about to serve.
#[derive(Debug)]
pub struct Prepared {
    pub(super) config: PathBuf,
    pub(super) settings: Settings,
    pub(super) inherited: Vec<TcpListener>,
    /// Read with the rights of root: nobody else needs to be able to.
    pub(super) admin_token: Option<Result<Token, TokenError>>,
    pub(super) control: Result<ControlSocket, BindError>,
    pub(super) kernel: Kernel,
    pub(super) pins: Option<PinLock>,
}

/// Opens everything that needs rights, forks the keeper, and drops the rights.
///
/// Must be called before the process has any other thread, because later threads inherit the restrictions.
/// Returns in the daemon only.
pub fn prepare(options: &Options) -> Result<Prepared, DaemonError> {
    let settings = Settings::load(&options.config)?;
    let admin_token = settings.daemon.admin_token_file.as_deref().map(Token::read);
    raise_descriptor_limit();
    vital::remember_ports();
    let inherited = kernel::inherited_listeners();
    let pins = kernel::lock_pins(&options.pins)?;
    notify(&[NotifyState::Status("starting: loading the BPF programs")]);
    let mut kernel = open_kernel(options);
    if kernel.flow.is_some() {
        flows::reserve_ports(&settings.flow.ports);
    }
    let mut has_keeper = keeper::is_worthwhile();
    if has_keeper {
        match keeper::fork() {
            Ok(Forked::Daemon) => drop(kernel.wards()),
            Ok(Forked::Keeper(server)) => {
                let wards = kernel.wards();
                // Descriptors that stay open here would stay open when the daemon closes them.
                drop((inherited, kernel, pins));
                server.run(wards, &options.pins, tunnel::describe)
            }
            Err(error) => {
                has_keeper = false;
                let words = format!("cannot be started: edged keeps the rights for BPF itself ({error})");
                let finding = Finding::new("privileged process", State::Limited, words);
                say(std::slice::from_ref(&finding));
                kernel.findings.push(finding);
            }
        }
    }
    let account = if rustix::process::geteuid().is_root() { Account::find() } else { None };
    let access_log = match &settings.daemon.access_log {
        AccessLogTarget::File(path) => Some(&**path),
        _ => None,
    };
    let confines = Confines {
        config: &options.config,
        state_dir: &settings.daemon.state_dir,
        control: &settings.daemon.control,
        access_log,
        lists: &settings.shield.lists,
        has_keeper,
    };
    if let Some(account) = &account {
        sandbox::give(&confines, account);
    }
    let control = ControlSocket::bind(&settings.daemon.control);
    let found = sandbox::enter(&confines, account.as_ref());
    say(&found);
    kernel.findings.extend(found);
    let control = match control {
        // Its directory may be closed to root without CAP_DAC_OVERRIDE, but open to the daemon's user.
        Err(BindError::Io { .. }) => ControlSocket::bind(&settings.daemon.control),
        bound => bound,
    };
    match control {
        Err(error @ (BindError::InUse { .. } | BindError::NotASocket(_))) => Err(error.into()),
        // It serves all the same, and the directory may come.
        control => {
            let config = options.config.clone();
            Ok(Prepared { config, settings, inherited, admin_token, control, kernel, pins })
        }
    }
}

/// Loads the parts that the kernel supports. A refused part is missing, and reported once.
fn open_kernel(options: &Options) -> Kernel {
    let objects = options.bpf_object.clone().map_or_else(Objects::embedded, Objects::replaced_by);
    let mut kernel = Kernel::open(&Wanted {
        objects,
        pins: options.pins.clone(),
        trace: options.trace_ebpf,
        ..Wanted::default()
    });
    say(&kernel.findings);
    // Later there is no right to look.
    kernel.findings.extend(kernel::probe::probe().findings);
    kernel
}

fn say(findings: &[Finding]) {
    for finding in findings.iter().filter(|finding| finding.state > State::Good) {
        let remedy = finding.remedy.as_deref().unwrap_or("`edgectl doctor` says more");
        tracing::warn!("{}: {} ({remedy})", finding.name, finding.message);
    }
}

/// Raises the descriptor limit to the hard limit: a proxy needs two per connection. The soft limit is low for
/// the sake of poll(2), which is not used here.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
