//! Tries the rights of an attacker who controls the daemon. A thread that has dropped the daemon's rights tries each
//! row of the table in docs/security.md. Rights, filters and the view of files belong to threads, so a thread
//! of this program can stand for the daemon.
//!
//! A program of its own: the thread that keeps `CAP_NET_ADMIN` is one a process.
#![expect(unsafe_code, reason = "system calls that no library should make")]
#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    panic::AssertUnwindSafe,
    path::Path,
    sync::Arc,
    thread,
};

use edge::kernel::{
    Kernel, State, Wanted, admin,
    sandbox::{self, Account, Confines},
};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
    },
    sys::{Socket as Netlink, SocketAddr as Port, protocols::NETLINK_ROUTE},
};
use socket2::{Domain, Protocol, Socket, Type};

/// Root's access in a row of the table, before anything is dropped: the attempt must be able to succeed.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// The error of a system call with these arguments, which must not succeed.
fn error_of(call: libc::c_long, arguments: [libc::c_long; 5]) -> io::Error {
    let [first, second, third, fourth, fifth] = arguments;
    // SAFETY: the callers pass no address but null or one of memory that outlives the call.
    let result = unsafe { libc::syscall(call, first, second, third, fourth, fifth) };
    assert_eq!(result, -1, "call {call} with {arguments:?} succeeded");
    io::Error::last_os_error()
}

/// The filter knows no such call.
fn is_filtered(call: libc::c_long, arguments: [libc::c_long; 5]) {
    let error = error_of(call, arguments);
    assert_eq!(error.raw_os_error(), Some(libc::ENOSYS), "call {call} with {arguments:?}: {error}");
}

fn is_denied<T>(what: &str, result: io::Result<T>) {
    let error = result.err().unwrap_or_else(|| panic!("{what} is possible"));
    let expected = [libc::EACCES, libc::EPERM, libc::EROFS, libc::ENOSYS, libc::ENOENT, libc::ENODEV];
    assert!(error.raw_os_error().is_some_and(|code| expected.contains(&code)), "{what}: {error}");
}

fn write_to(path: impl AsRef<Path>) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn new() -> Self {
        let scene = Self { directory: tempfile::tempdir().unwrap() };
        fs::set_permissions(scene.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["etc", "state", "run", "log", "elsewhere"] {
            fs::create_dir(scene.path(directory)).unwrap();
            // File modes that allow the access leave only the confinement to refuse it.
            fs::set_permissions(scene.path(directory), fs::Permissions::from_mode(0o777)).unwrap();
            fs::write(scene.path(directory).join("file"), "text").unwrap();
            let open = fs::Permissions::from_mode(0o666);
            fs::set_permissions(scene.path(directory).join("file"), open).unwrap();
        }
        scene
    }

    /// Runs `attack` as the daemon does.
    fn attack(self, attack: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let account = Account::find();
        let attacked = thread::spawn(move || {
            let (config, state_dir) = (self.path("etc/file"), self.path("state"));
            let (control, access_log) = (self.path("run/control.sock"), self.path("log/access.log"));
            let confines = Confines {
                config: &config,
                state_dir: &state_dir,
                control: &control,
                access_log: Some(&access_log),
                lists: &[],
                has_keeper: true,
            };
            if let Some(account) = &account {
                sandbox::give(&confines, account);
            }
            for finding in sandbox::enter(&confines, account.as_ref()) {
                assert_eq!(finding.state, State::Good, "{}: {}", finding.name, finding.message);
            }
            attack(&Arc::new(self));
        });
        attacked.join().unwrap();
    }
}

#[test]
fn the_table_of_the_guide_holds() {
    if !rustix::process::geteuid().is_root() || Account::find().is_none() {
        let reason = "giving up rights needs root and a user `edge`";
        assert!(std::env::var_os("EDGE_LAB_STRICT").is_none(), "{reason}");
        eprintln!("skipped: {reason}");
        return;
    }
    // Root can: otherwise the rows below show nothing.
    write_to(CORE_PATTERN).unwrap();
    File::open("/etc/shadow").unwrap();
    Scene::new().attack(|scene| {
        everything(scene);
        orders_by_netlink();
        what_it_can(scene);
        // And the worker threads, which have CAP_NET_ADMIN.
        let scene = Arc::clone(scene);
        let attacked = admin::run(move || std::panic::catch_unwind(AssertUnwindSafe(|| as_worker(&scene))));
        attacked.unwrap().unwrap();
    });
}

fn everything(scene: &Scene) {
    files(scene);
    processes();
    programs_of_the_kernel(scene);
    network();
}

fn as_worker(scene: &Scene) {
    let effective = caps::read(None, caps::CapSet::Effective).unwrap();
    assert!(effective.contains(&caps::Capability::CAP_NET_ADMIN));
    everything(scene);
    for protocol in [libc::NETLINK_ROUTE, libc::NETLINK_NETFILTER, libc::NETLINK_GENERIC] {
        let opened = error_of(
            libc::SYS_socket,
            [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), protocol.into(), 0, 0],
        );
        assert_eq!(opened.raw_os_error(), Some(libc::EPERM));
    }
    // With an address, the kernel would not ask who opened the socket.
    for (call, place) in [(libc::SYS_sendto, 1), (libc::SYS_sendmsg, 0), (libc::SYS_sendmmsg, 0)] {
        let error = error_of(call, [-1, 0, 0, 0, place]);
        assert_eq!(error.raw_os_error(), Some(libc::EPERM), "call {call}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _far = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    edge::kernel::tcp::enter_repair(&listener.accept().unwrap().0).unwrap();
}

/// Rows: the network's configuration, by sockets that one thread opens and another one uses.
fn orders_by_netlink() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let order = handle.address().add(1, Ipv4Addr::new(127, 9, 9, 9).into(), 32).execute().await;
        match order {
            Err(rtnetlink::Error::NetlinkError(error)) => assert_eq!(error.raw_code(), -libc::EPERM),
            other => panic!("an address could be added: {other:?}"),
        }
    });
    assert!(!edge::kernel::interfaces().unwrap().is_empty());
    let mut opened = Netlink::new(NETLINK_ROUTE).unwrap();
    opened.bind_auto().unwrap();
    opened.connect(&Port::new(0, 0)).unwrap();
    let order = address_order();
    let answer = admin::run(move || {
        opened.send(&order, 0).unwrap();
        opened.recv_from_full().unwrap().0
    });
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer.unwrap()).unwrap();
    match answer.payload {
        NetlinkPayload::Error(error) => assert_eq!(error.raw_code(), -libc::EPERM),
        other => panic!("an address could be added: {other:?}"),
    }
}

/// `ip address add 127.9.9.9/32 dev lo`.
fn address_order() -> Vec<u8> {
    let mut order = AddressMessage::default();
    order.header.family = AddressFamily::Inet;
    order.header.prefix_len = 32;
    order.header.index = 1;
    let address = Ipv4Addr::new(127, 9, 9, 9).into();
    order.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewAddress(order));
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    octets
}

/// Rows: other people's files, kernel settings, devices.
fn files(scene: &Scene) {
    is_denied("reading /etc/shadow", File::open("/etc/shadow"));
    is_denied("writing /etc/shadow", write_to("/etc/shadow"));
    is_denied("setting core_pattern", write_to(CORE_PATTERN));
    // File modes would allow this to a thread with CAP_NET_ADMIN.
    is_denied("setting ip_forward", write_to("/proc/sys/net/ipv4/ip_forward"));
    for memory in ["/proc/kcore", "/dev/mem", "/dev/kmem", "/proc/1/mem"] {
        is_denied(memory, File::open(memory));
    }
    is_denied("a tunnel device", write_to("/dev/net/tun"));
    is_denied("its own configuration", write_to(scene.path("etc/file")));
    is_denied("a new configuration", File::create(scene.path("etc/new")));
    is_denied("any file elsewhere", File::open(scene.path("elsewhere/file")));
    is_denied("writing elsewhere", write_to(scene.path("elsewhere/file")));
    is_denied("a file in /tmp", File::create(std::env::temp_dir().join("edge-rights-probe")));
    is_denied("a symbolic link", std::os::unix::fs::symlink("/etc/shadow", scene.path("state/link")));
    is_denied("/root", fs::read_dir("/root"));
}

/// Rows: programs, other processes, more rights.
fn processes() {
    is_denied("running a program", std::process::Command::new("/bin/true").status());
    for call in [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone3,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_setresuid,
        libc::SYS_setuid,
        libc::SYS_setgroups,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_open_by_handle_at,
        libc::SYS_memfd_create,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_personality,
    ] {
        is_filtered(call, [0; 5]);
    }
    let child = libc::c_long::from(libc::SIGCHLD);
    is_filtered(libc::SYS_clone, [child, 0, 0, 0, 0]);
    let thread = libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
    is_filtered(libc::SYS_clone, [libc::c_long::from(thread | libc::CLONE_NEWUSER), 0, 0, 0, 0]);
    let parent = libc::c_long::from(rustix::process::getppid().unwrap().as_raw_nonzero().get());
    is_filtered(libc::SYS_tgkill, [parent, parent, 0, 0, 0]);
    let executable = libc::c_long::from(libc::PROT_READ | libc::PROT_EXEC);
    let mapping = libc::c_long::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    is_filtered(libc::SYS_mmap, [0, 4096, executable, mapping, -1]);
    is_filtered(libc::SYS_mprotect, [0, 4096, executable, 0, 0]);
    let limit = [u64::MAX; 2];
    let new = limit.as_ptr().expose_provenance().cast_signed() as libc::c_long;
    is_filtered(libc::SYS_prlimit64, [0, libc::c_long::from(libc::RLIMIT_NOFILE), new, 0, 0]);
    assert!(caps::set(None, caps::CapSet::Permitted, &caps::all()).is_err(), "rights came back");
    assert!(!rustix::process::geteuid().is_root());
}

/// Rows: BPF, modules, the kernel's own memory.
fn programs_of_the_kernel(scene: &Scene) {
    for call in [
        libc::SYS_perf_event_open,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_reboot,
        libc::SYS_syslog,
        libc::SYS_swapon,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_sethostname,
    ] {
        is_filtered(call, [0; 5]);
    }
    // BPF_MAP_CREATE, BPF_PROG_LOAD, BPF_OBJ_PIN, BPF_OBJ_GET, BPF_PROG_ATTACH, BPF_*_GET_FD_BY_ID, BPF_LINK_CREATE
    // and _UPDATE.
    for command in [0, 5, 6, 7, 8, 13, 14, 19, 28, 29, 30] {
        is_filtered(libc::SYS_bpf, [command, 0, 0, 0, 0]);
    }
    let kernel = Kernel::open(&Wanted { pins: scene.path("state/pins"), ..Wanted::default() });
    assert!(kernel.shield.is_none() && kernel.flow.is_none());
}

/// Rows: the network's configuration, the firewall, other people's packets.
fn network() {
    let packet = Socket::new(Domain::PACKET, Type::RAW, None);
    assert_eq!(packet.unwrap_err().raw_os_error(), Some(libc::ENOSYS));
    is_denied("a raw socket", Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)));
    for family in [libc::AF_VSOCK, libc::AF_ALG, libc::AF_BLUETOOTH, libc::AF_XDP] {
        is_filtered(libc::SYS_socket, [family.into(), libc::SOCK_DGRAM.into(), 0, 0, 0]);
    }
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let descriptor = libc::c_long::from(std::os::fd::AsRawFd::as_raw_fd(&socket));
    // IPT_SO_SET_REPLACE, EBT_SO_SET_ENTRIES, IP6T_SO_SET_REPLACE.
    for (level, option) in [(libc::IPPROTO_IP, 64), (libc::IPPROTO_IP, 128), (libc::IPPROTO_IPV6, 64)] {
        is_filtered(libc::SYS_setsockopt, [descriptor, level.into(), option, 0, 0]);
    }
    for request in [libc::SIOCADDRT, libc::SIOCSIFADDR, libc::SIOCSIFFLAGS, libc::SIOCETHTOOL] {
        is_filtered(libc::SYS_ioctl, [descriptor, request.cast_signed(), 0, 0, 0]);
    }
}

/// Rows of what is left, which serving takes.
fn what_it_can(scene: &Scene) {
    assert_eq!(fs::read_to_string(scene.path("etc/file")).unwrap(), "text", "its configuration");
    fs::write(scene.path("state/state.toml.new"), "new").unwrap();
    fs::rename(scene.path("state/state.toml.new"), scene.path("state/state.toml")).unwrap();
    OpenOptions::new().append(true).open(scene.path("log/access.log")).unwrap();
    fs::rename(scene.path("log/access.log"), scene.path("log/access.log.1")).unwrap();
    File::create(scene.path("log/access.log")).unwrap();
    fs::read_to_string("/etc/hosts").unwrap();
    // A port below 1024, connections, threads.
    let listener = TcpListener::bind(("127.0.0.1", 999)).unwrap();
    drop(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
    thread::spawn(|| ()).join().unwrap();
}
