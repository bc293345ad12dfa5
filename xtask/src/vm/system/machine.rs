//! A machine with a disk, which may be turned off and on again.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use lab::wait;

use super::{
    agent::{Agent, PORT},
    image::Image,
    network::{Clients, TAP},
};
use crate::{command::run, vm::emulator::Emulator};

/// As a cheap VPS has it.
const MEMORY: &str = "1G";
const NICENESS: u8 = 5;
/// Queues of its network device, a pair each.
const QUEUES: u32 = 2;
/// How long it may take to boot, emulated.
const BOOT: Duration = Duration::from_mins(15);

/// A machine that is on. Dropping it turns it off.
pub(super) struct Machine {
    emulator: Emulator,
    image: Image,
    /// This run's copy of the disk, and what is laid into it.
    disk: PathBuf,
    parcel: PathBuf,
    folder: PathBuf,
    pub(super) clients: Clients,
    qemu: Child,
    pub(super) agent: Agent,
}

impl Machine {
    /// Boots a fresh copy of `image`. `parcel`, a tar archive, is its second disk.
    pub(super) fn boot(emulator: Emulator, image: Image, parcel: &Path, folder: &Path) -> Result<Self> {
        let disk = folder.join("disk");
        run(Command::new("cp").args(["--sparse=always", "--reflink=auto"]).arg(&image.disk).arg(&disk))?;
        let clients = Clients::new()?;
        let (qemu, agent) = start(&emulator, &image, &disk, parcel, folder, &clients)?;
        let (parcel, folder) = (parcel.to_owned(), folder.to_owned());
        Ok(Self { emulator, image, disk, parcel, folder, clients, qemu, agent })
    }

    /// Reboots it: orderly, and back with what is on its disk.
    pub(super) fn reboot(&mut self) -> Result<()> {
        self.agent.send("systemctl reboot")?;
        let qemu = &mut self.qemu;
        wait::until_true("the machine to be off", BOOT, || matches!(qemu.try_wait(), Ok(Some(_))))?;
        let started =
            start(&self.emulator, &self.image, &self.disk, &self.parcel, &self.folder, &self.clients)?;
        (self.qemu, self.agent) = started;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn start(
    emulator: &Emulator,
    image: &Image,
    disk: &Path,
    parcel: &Path,
    folder: &Path,
    clients: &Clients,
) -> Result<(Child, Agent)> {
    let socket = folder.join("agent.sock");
    let _ = fs::remove_file(&socket);
    // A reboot ends the emulator, so that the console of each boot is seen to end.
    let mut qemu = emulator.command(NICENESS);
    qemu.args(["-m", MEMORY]);
    let console = image.architecture.console();
    qemu.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    let line = format!("root=/dev/vda rw console={console} panic=-1 net.ifnames=0 mitigations=off nokaslr");
    qemu.args(["-append", &line]);
    qemu.arg("-serial").arg(format!("file:{}", folder.join("console.log").display()));
    qemu.args(["-drive", &format!("file={},format=raw,if=virtio,cache=unsafe", disk.display())]);
    qemu.args(["-drive", &format!("file={},format=raw,if=virtio,readonly=on", parcel.display())]);
    // Checksums, TSO and GRO are the device's by default.
    let net = format!("tap,id=net,ifname={TAP},script=no,downscript=no,queues={QUEUES},vhost=off");
    qemu.args(["-netdev", &net]);
    let vectors = 2 * QUEUES + 2;
    // An empty `romfile`: Debian's qemu for aarch64 does not come with the option ROM for network boot.
    let card = format!("virtio-net-pci,netdev=net,mq=on,vectors={vectors},host_mtu=9000,romfile=");
    qemu.args(["-device", &card]);
    qemu.args([
        "-device",
        "virtio-serial-pci",
        "-device",
        &format!("virtserialport,chardev=agent,name={PORT}"),
    ]);
    qemu.args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", socket.display())]);
    let complaints = File::create(folder.join("qemu.log"))?;
    qemu.stdin(Stdio::null()).stdout(complaints.try_clone()?).stderr(complaints);
    let qemu = clients.namespace().within(|| qemu.spawn())?.context("starting the emulator")?;
    wait::until_true("the machine's network device", wait::SOON, || clients.plug_in().is_ok())?;
    let agent = Agent::connect(&socket, BOOT)?;
    Ok((qemu, agent))
}
