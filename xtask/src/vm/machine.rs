//! One boot of a virtual machine without the processor's help, and what it says.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lab::wait::{self, SOON};

use super::{emulator::Emulator, kernel::Kernel};

/// Memory of the machine.
const MEMORY: &str = "3G";
/// Other work on this machine has priority.
const NICENESS: u8 = 10;

/// A machine that runs. Dropping it turns it off.
pub(super) struct Machine {
    qemu: Child,
    files: Child,
    lines: Receiver<String>,
    until: Instant,
}

/// How a machine came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was turned off, or failed.
    Off,
    /// Its time was over.
    Late,
}

impl Machine {
    /// Boots `kernel` with this first file system. Messages of the kernel go to `console`.
    pub(super) fn boot(
        emulator: &Emulator,
        kernel: &Kernel,
        initramfs: &Path,
        console: &Path,
        limit: Duration,
    ) -> Result<Self> {
        let socket = kernel.folder.join("files.sock");
        let _ = fs::remove_file(&socket);
        let files = share(emulator, &socket, &kernel.folder.join("files.log"))?;
        let _ = fs::remove_file(console);
        let mut qemu = emulator.command(NICENESS);
        qemu.args(["-m", MEMORY, "-numa", "node,memdev=memory"]);
        qemu.args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on")]);
        qemu.args(["-chardev", &format!("socket,id=files,path={}", escaped(&socket))]);
        qemu.args(["-device", "vhost-user-fs-pci,chardev=files,tag=host"]);
        qemu.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initramfs);
        qemu.args(["-append", "console=ttyS0 panic=-1 mitigations=off nokaslr"]);
        qemu.args(["-serial", &format!("file:{}", console.display()), "-serial", "stdio"]);
        // The emulator's complaints about missing features of that processor model are harmless.
        let complaints = File::create(kernel.folder.join("qemu.log"))?;
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(complaints);
        let mut qemu = qemu.spawn().context("starting the emulator")?;
        let lines = listen(qemu.stdout.take().context("no standard output")?);
        Ok(Self { qemu, files, lines, until: Instant::now() + limit })
    }

    /// The next line that the tests print; `Err` when there is none any more.
    pub(super) fn line(&self) -> Result<String, Ended> {
        let rest = self.until.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(rest).map_err(|error| match error {
            RecvTimeoutError::Timeout => Ended::Late,
            RecvTimeoutError::Disconnected => Ended::Off,
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.files] {
            // One that has ended by itself cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn share(emulator: &Emulator, socket: &Path, log: &Path) -> Result<Child> {
    let log = File::create(log)?;
    let mut command = emulator.virtiofsd()?;
    command.arg(format!("--socket-path={}", socket.display()));
    command.args(["-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always", "-o", "xattr"]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let files = command.spawn().context("starting virtiofsd")?;
    wait::until_true("virtiofsd", SOON, || socket.exists())?;
    Ok(files)
}

fn listen(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// A path inside an option of qemu's, where a comma ends it.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
