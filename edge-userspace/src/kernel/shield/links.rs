//! Where the shield's programs are attached: adopted from an earlier daemon, put on devices, taken off them.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::XdpLink,
    },
};
use tracing::{info, warn};

use super::{Hook, OBJECT};
use crate::kernel::{Framing, Interface, KernelError, interfaces, link_device::device_of, pin_name};

/// For devices with an Ethernet header and without.
pub(super) const XDP: [&str; 2] = ["shield", "shield_l3"];
/// The same in tc.
pub(super) const TC: [&str; 2] = ["shield_tc", "shield_tc_l3"];

/// The programs and where they are attached.
pub(in crate::kernel) struct ShieldLinks {
    pub(super) ebpf: Ebpf,
    pub(super) directory: PathBuf,
    pub(super) watched: Vec<Interface>,
    /// By index.
    pub(super) attached: BTreeMap<u32, Attachment>,
    /// Why a device that is watched takes none of the programs, by index.
    pub(super) refused: BTreeMap<u32, String>,
    /// Where shields of other layouts are pinned, which drop packets until [`Self::succeed`].
    pub(super) predecessors: Vec<PathBuf>,
}

pub(super) struct Attachment {
    pub(super) hook: Hook,
    pub(super) pin: PathBuf,
    /// Kept for its descriptor; the pin keeps the program attached.
    pub(super) _link: FdLink,
}

impl ShieldLinks {
    /// By index: where packets are dropped, or why nowhere.
    pub(in crate::kernel) fn hooks(&self) -> BTreeMap<u32, Result<Hook, String>> {
        let refused = self.refused.iter().map(|(index, why)| (*index, Err(why.clone())));
        refused.chain(self.attached.iter().map(|(index, attached)| (*index, Ok(attached.hook)))).collect()
    }

    /// Takes over the links that are pinned, whatever their devices are called by now; those of devices that are gone
    /// end here.
    pub(super) fn adopt(&mut self) -> Result<(), KernelError> {
        let error = |source| KernelError::File { call: "reading", path: self.directory.clone(), source };
        let links = pin_name::links(&self.directory, None).map_err(error)?;
        let devices = interfaces()?;
        for pin_name::Found { path: pin, device } in links {
            let found = devices.iter().find(|found| found.index == device);
            if let Some(found) = found
                && let Some((hook, link)) = self.take_over(found.framing, &pin)
            {
                info!(device = found.name, "adopted the shield that was attached");
                self.attached.insert(device, Attachment { hook, pin, _link: link });
                // Until it is said which are.
                self.watched.push(found.clone());
            } else {
                info!(pin = %pin.display(), "took away a shield whose device is gone");
                remove(&pin)?;
            }
        }
        Ok(())
    }

    /// Lets a pinned link run the program for its hook and device; `None` when the kernel refuses, because its device
    /// is gone.
    pub(super) fn take_over(&mut self, framing: Framing, pin: &Path) -> Option<(Hook, FdLink)> {
        let open = || PinnedLink::from_pin(pin).ok().map(FdLink::from);
        if let Ok(link) = XdpLink::try_from(open()?) {
            let program = program::<Xdp>(&mut self.ebpf, of(XDP, framing)?).ok()?;
            let link = program.attach_to_link(link).ok()?;
            return Some((Hook::Xdp, program.take_link(link).ok()?.try_into().ok()?));
        }
        let link = SchedClassifierLink::try_from(open()?).ok()?;
        let program = program::<SchedClassifier>(&mut self.ebpf, of(TC, framing)?).ok()?;
        let link = program.attach_to_link(link).ok()?;
        Some((Hook::Tc, program.take_link(link).ok()?.try_into().ok()?))
    }

    /// Changes the devices to watch; takes effect with the next [`Self::attach`] for those that are new or others than
    /// before, at once for those that are left out.
    pub(in crate::kernel) fn watch(&mut self, watched: Vec<Interface>) -> Result<(), KernelError> {
        self.watched = watched;
        let is_watched = |index: u32| self.watched.iter().any(|watched| watched.index == index);
        self.refused.retain(|index, _| is_watched(*index));
        let dropped: Vec<_> = self
            .attached
            // Another device may have the index by now: what the link says counts.
            .extract_if(.., |index, attached| {
                !is_watched(*index) || device_of(&attached.pin).ok() != Some(*index)
            })
            .collect();
        for (index, attachment) in dropped {
            info!(index, "the shield is taken off a device");
            remove(&attachment.pin)?;
        }
        Ok(())
    }

    /// Attaches the programs to every device watched: in XDP, in the driver where it can, else at the ingress of tc.
    /// A device that refuses both is warned about, once for each reason.
    pub(in crate::kernel) fn attach(&mut self) {
        for device in self.watched.clone() {
            if self.attached.contains_key(&device.index) {
                continue;
            }
            match self.attach_to(&device) {
                Ok(attachment) => {
                    info!(device = device.name, hook = ?attachment.hook, "the shield is attached");
                    self.refused.remove(&device.index);
                    self.attached.insert(device.index, attachment);
                }
                Err(error) => {
                    let words = error.words();
                    if self.refused.get(&device.index) != Some(&words) {
                        warn!(
                            device = device.name,
                            "the shield cannot be attached, blocked sources are refused at accept: {words}"
                        );
                        self.refused.insert(device.index, words);
                    }
                }
            }
        }
    }

    fn attach_to(&mut self, device: &Interface) -> Result<Attachment, KernelError> {
        let pin = self.directory.join(pin_name::link(device.index, None));
        // Not adopted and not noted: it belongs to a device that is gone.
        remove(&pin)?;
        let (hook, link) = match self.attach_xdp(device) {
            Ok(link) => (Hook::Xdp, link),
            // The reason that counts is that of XDP: tc links may just be too new for this kernel.
            Err(error) => (Hook::Tc, self.attach_tc(device).map_err(|_| error)?),
        };
        let link = link
            .pin(&pin)
            .map_err(|source| KernelError::Pin { path: pin.clone(), source: Box::new(source) })?;
        Ok(Attachment { hook, pin, _link: link.into() })
    }

    fn attach_xdp(&mut self, device: &Interface) -> Result<FdLink, KernelError> {
        let name = of(XDP, device.framing).ok_or_else(|| unknown_header(device))?;
        let program = program::<Xdp>(&mut self.ebpf, name)?;
        let link = program.attach_to_if_index(device.index, XdpMode::Default).or_else(|error| {
            // Drivers refuse for want of queues or for a large MTU; the generic hook takes it all the same.
            if !matches!(error, ProgramError::SyscallError(_)) {
                return Err(error);
            }
            program.attach_to_if_index(device.index, XdpMode::Skb)
        });
        let link = link.and_then(|link| program.take_link(link)).map_err(failed("attaching", name))?;
        FdLink::try_from(link).map_err(|_| KernelError::Call {
            call: "attaching the shield program",
            source: io::Error::other("this kernel has no XDP links (they came with 5.9)"),
        })
    }

    /// Before all other programs of tc: one of them may hand the packet on.
    fn attach_tc(&mut self, device: &Interface) -> Result<FdLink, KernelError> {
        let name = of(TC, device.framing).ok_or_else(|| unknown_header(device))?;
        let program = program::<SchedClassifier>(&mut self.ebpf, name)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program
            .attach_with_options(&device.name, TcAttachType::Ingress, options)
            .and_then(|link| program.take_link(link))
            .map_err(failed("attaching", name))?;
        FdLink::try_from(link).map_err(|_| KernelError::Call {
            call: "attaching the shield program",
            source: io::Error::other("this kernel has no tc links"),
        })
    }

    /// Takes the programs off every device; the maps stay.
    pub(in crate::kernel) fn detach(&mut self) -> Result<(), KernelError> {
        self.refused.clear();
        while let Some((_, attachment)) = self.attached.pop_first() {
            remove(&attachment.pin)?;
        }
        Ok(())
    }
}

impl fmt::Debug for ShieldLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShieldLinks").field("attached", &self.attached.keys()).finish_non_exhaustive()
    }
}

/// Removes a pin, and with it the link, be it there or not.
fn remove(pin: &Path) -> Result<(), KernelError> {
    match fs::remove_file(pin) {
        // If somebody has removed the pin, the link is released too.
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::File { call: "removing", path: pin.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The program for a device, of those with a header and without.
const fn of([ethernet, bare]: [&'static str; 2], framing: Framing) -> Option<&'static str> {
    match framing {
        Framing::Ethernet => Some(ethernet),
        Framing::RawIp | Framing::Encapsulated => Some(bare),
        Framing::Other => None,
    }
}

fn unknown_header(device: &Interface) -> KernelError {
    KernelError::Call {
        call: "attaching the shield program",
        source: io::Error::other(format!("{} has a link header that is not Ethernet's", device.name)),
    }
}

pub(super) fn program<'e, P>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut P, KernelError>
where
    &'e mut P: TryFrom<&'e mut Program, Error = ProgramError>,
{
    let found = ebpf.program_mut(name).ok_or(KernelError::Incomplete { object: OBJECT, part: name })?;
    found.try_into().map_err(failed("taking", name))
}

pub(super) fn failed(call: &'static str, program: &'static str) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Program { call, program, source: Box::new(source) }
}
