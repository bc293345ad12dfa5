//! The system calls that remain allowed once the daemon serves.
//!
//! This is an allow list. A call that is not on it, or that a later kernel adds, returns `ENOSYS`, as on a
//! kernel without it; C libraries and runtimes then fall back to older calls. No process is killed: a
//! forgotten call makes one operation fail, with an error in the log, and the audit log names the call
//! (`SECCOMP_FILTER_FLAG_LOG`).
#![expect(unsafe_code, reason = "the seccomp system call by number")]

use std::{collections::BTreeMap, io};

use seccompiler::{
    BackendError, BpfProgram, SeccompAction,
    SeccompCmpArgLen::{Dword, Qword},
    SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// `linux/seccomp.h`.
const SET_MODE_FILTER: libc::c_ulong = 1;
/// Disables the slower branches that older kernels impose on a filtered process (before 5.16,
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`).
const QUIET: libc::c_ulong = 4;
/// The same, and logs what is refused (`SECCOMP_FILTER_FLAG_LOG`).
const LOGGED: libc::c_ulong = QUIET | 2;

/// Commands of `bpf(2)` on maps that the process holds (`linux/bpf.h`): lookup, update, delete, next key,
/// information, lookup and delete, and their batches.
const MAP_COMMANDS: [u64; 10] = [1, 2, 3, 4, 15, 21, 24, 25, 26, 27];
/// `clone(2)` for a thread and nothing else: no process, no namespace.
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;
/// Queries of sockets and terminals. Requests that change devices, addresses and routes are not on the list.
#[allow(clippy::unnecessary_cast, reason = "C libraries differ in the type of these numbers")]
const IOCTLS: [u64; 10] = [
    libc::FIONREAD as u64,
    libc::FIONBIO as u64,
    libc::TIOCOUTQ as u64,
    libc::TCGETS as u64,
    libc::TIOCGWINSZ as u64,
    libc::SIOCGIFINDEX as u64,
    libc::SIOCGIFHWADDR as u64,
    libc::SIOCGIFNAME as u64,
    // SIOCATMARK and SIOCOUTQNSD.
    0x8905,
    0x894b,
];
/// From this number on, options of IPv4 sockets change the tables of iptables, ebtables, arptables and IPVS.
const IP_TABLES: u64 = 64;
/// The same of IPv6, up to 65; what follows are options again.
const IP6_TABLES: [u64; 2] = [64, 65];

/// Whom a filter is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// The daemon, which reads what the network sends.
    Daemon,
    /// The keeper, which loads and attaches programs.
    Keeper,
}

/// Installs the filter for this thread and those that it starts. Needs `no_new_privs`.
pub(super) fn enter(whom: For) -> io::Result<()> {
    let unknown = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    // C libraries try it for each thread before clone(2), and its flags are in memory that a filter does not
    // see. The stricter of two filters applies, so a filter of its own keeps this call out of the log.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    install(SeccompFilter::new(clone3, SeccompAction::Allow, unknown.clone(), architecture()?), QUIET)?;
    let rules = rules(whom).map_err(io::Error::other)?;
    install(SeccompFilter::new(rules, unknown, SeccompAction::Allow, architecture()?), LOGGED)
}

/// In addition to the other filter: this thread, and those that it starts, can neither open netlink sockets
/// nor send to an explicit address.
pub(super) fn enter_admin() -> io::Result<()> {
    let rules = admin_rules().map_err(io::Error::other)?;
    let refusal = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    install(SeccompFilter::new(rules, SeccompAction::Allow, refusal, architecture()?), LOGGED)
}

fn admin_rules() -> Result<Rules, BackendError> {
    let netlink = condition(0, SeccompCmpOp::Eq, libc::AF_NETLINK as u64)?;
    let named = SeccompCondition::new(4, Qword, SeccompCmpOp::Ne, 0)?;
    Ok(BTreeMap::from([
        (libc::SYS_socket, vec![SeccompRule::new(vec![netlink])?]),
        (libc::SYS_sendto, vec![SeccompRule::new(vec![named])?]),
        // Their addresses are in memory, which a filter does not see.
        (libc::SYS_sendmsg, Vec::new()),
        (libc::SYS_sendmmsg, Vec::new()),
    ]))
}

fn architecture() -> io::Result<TargetArch> {
    std::env::consts::ARCH.try_into().map_err(io::Error::other)
}

fn install(filter: Result<SeccompFilter, BackendError>, flags: libc::c_ulong) -> io::Result<()> {
    let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `struct sock_fprog` with a program of this length, whose instructions have the kernel's layout (eight
    // octets, `repr(C)` in seccompiler); the kernel copies it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn condition(argument: u8, compare: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Dword, compare, value)
}

/// All calls, those with conditions among them.
fn rules(whom: For) -> Result<Rules, BackendError> {
    use SeccompCmpOp::{Eq, Gt, Lt, MaskedEq, Ne};

    let is = |argument, value| condition(argument, Eq, value).and_then(|is| SeccompRule::new(vec![is]));
    let mut rules: Rules = CALLS.iter().map(|&call| (call, Vec::new())).collect();
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    rules.insert(
        libc::SYS_socket,
        families.iter().map(|&family| is(0, u64::from(family.cast_unsigned()))).collect::<Result<_, _>>()?,
    );
    rules.insert(libc::SYS_ioctl, IOCTLS.iter().map(|&request| is(1, request)).collect::<Result<_, _>>()?);
    if whom == For::Daemon {
        let commands = MAP_COMMANDS.iter().map(|&command| is(0, command));
        rules.insert(libc::SYS_bpf, commands.collect::<Result<_, _>>()?);
    } else {
        rules.insert(libc::SYS_bpf, Vec::new());
    }
    rules.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![
            SeccompCondition::new(0, Qword, MaskedEq(THREAD), THREAD)?,
            SeccompCondition::new(0, Qword, MaskedEq(NAMESPACES), 0)?,
        ])?],
    );
    // Nothing is made executable that was not when the filter came.
    for call in [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        let plain = SeccompCondition::new(2, Qword, MaskedEq(libc::PROT_EXEC as u64), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![plain])?]);
    }
    // Limits are read and not set.
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![SeccompCondition::new(2, Qword, Eq, 0)?])?]);
    // More filters are welcome.
    rules.insert(libc::SYS_seccomp, vec![is(0, SET_MODE_FILTER)?]);
    // Signals to itself.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![is(0, own)?]);
    rules.insert(
        libc::SYS_setsockopt,
        vec![
            SeccompRule::new(vec![
                condition(1, Ne, libc::IPPROTO_IP as u64)?,
                condition(1, Ne, libc::IPPROTO_IPV6 as u64)?,
            ])?,
            SeccompRule::new(vec![condition(1, Eq, libc::IPPROTO_IP as u64)?, condition(2, Lt, IP_TABLES)?])?,
            SeccompRule::new(vec![
                condition(1, Eq, libc::IPPROTO_IPV6 as u64)?,
                condition(2, Lt, IP6_TABLES[0])?,
            ])?,
            SeccompRule::new(vec![
                condition(1, Eq, libc::IPPROTO_IPV6 as u64)?,
                condition(2, Gt, IP6_TABLES[1])?,
            ])?,
        ],
    );
    Ok(rules)
}

/// Calls without conditions (`clone3` has its own filter): those that std, tokio, aya, the C libraries and
/// this program's own code need on x86-64 and aarch64.
const CALLS: &[i64] = &[
    // Files and directories, as far as user and Landlock let.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_umask,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    // Descriptors, pipes, readiness.
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_pipe2,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Sockets.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    // Threads, time, signals within the process.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_prctl,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_wait4,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_times,
    // Older forms that C libraries of x86-64 still use.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_create,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    // `renameat`, which musl uses and libc's crate has not for glibc (asm-generic/unistd.h).
    #[cfg(target_arch = "aarch64")]
    38,
];
