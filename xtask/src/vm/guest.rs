//! The programs inside the machine: its first process, and the script that runs the tests.

use std::{env, path::Path};

use super::{
    kernel::Kernel,
    suite::{Suite, Wanted},
};

/// Where the tests are heard; the kernel has the first.
const TTY: &str = "/dev/ttyS1";

/// Told before each suite, with its name, and once at the end.
pub(super) const BEGIN: &str = "== suite ";
pub(super) const END: &str = "== end";

/// The factor for deadlines: emulation is ten to thirty times as slow.
const PATIENCE: u32 = 4;

/// Kernel modules that the daemon and the tests use. A kernel loads some of them by itself, others only on
/// request.
const MODULES: &str = "veth tun wireguard sch_netem sch_ingress cls_bpf 8021q bonding bridge macvlan";

/// The first process: the host's files, read only, below what is written here; then `script`.
pub(super) fn init(script: &Path) -> String {
    format!(
        "#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do insmod $module; done
mount -t virtiofs -o ro host /lower
mount -t tmpfs -o size=80% files /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root || poweroff -f
mount -t proc proc /root/proc
mount -t sysfs sys /root/sys
mount -t bpf bpf /root/sys/fs/bpf
mount -t cgroup2 cgroup /root/sys/fs/cgroup
mount -t devtmpfs dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts pts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
umount /proc /sys
exec switch_root /root /bin/sh {}
",
        quoted(script)
    )
}

/// Runs the suites one after the other and turns the machine off.
pub(super) fn script(kernel: &Kernel, suites: &[Suite], wanted: &Wanted, programs: &Path) -> String {
    let mut text = format!(
        "exec >{TTY} 2>&1 </dev/null
stty -F {TTY} -opost
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/run/lab
export EDGE_PROGRAMS={} EDGE_LAB_STRICT=kernel EDGE_LAB_PATIENCE={PATIENCE} RUST_BACKTRACE=0
mkdir -p $TMPDIR /lib/modules
mount --bind {} /lib/modules
for module in {MODULES}; do modprobe $module; done
ip link set lo up
ulimit -n 1048576
uname -r
",
        quoted(programs),
        quoted(&kernel.modules()),
    );
    // For one who looks for what a daemon does there.
    if let Some(level) = env::var_os("EDGE_LOG") {
        text.extend(["export EDGE_LOG=", &quoted(Path::new(&level)), "\n"]);
    }
    text.extend(suites.iter().map(|suite| {
        let arguments = suite.arguments(wanted).join(" ");
        let program = quoted(&suite.program);
        format!("echo '{BEGIN}{}'\n{program} --color=never {arguments}\n", suite.name)
    }));
    text + "echo '" + END + "'\necho o >/proc/sysrq-trigger\nread end <" + TTY + "\n"
}

/// A path as the shell takes it.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
