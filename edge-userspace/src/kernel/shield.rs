//! The shield's program and maps as a typed handle: blocked prefixes, the limit on SYNs, counters, and the
//! interfaces it is attached to. What to block and for how long is decided in `shield`, not here.
//!
//! Minimum kernel: 5.9.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use aya::{
    Ebpf,
    maps::{Array, LpmTrie, MapData, MapType, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use edge_common::shield::{Block, Counters, PORT_WORDS, SynLimit};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::{info, warn};

use super::{
    KernelError, Objects,
    load::{Shape, load, map, take},
    pin::Pins,
};

const OBJECT: &str = "shield";
const BLOCKS: &str = "BLOCKS";
const BLOCK_PACKETS: &str = "BLOCK_PACKETS";
const COUNTERS: &str = "COUNTERS";
const SYN_LIMIT: &str = "SYN_LIMIT";
const SYN_PORTS: &str = "SYN_PORTS";
const MAPS: [Shape; 6] = [
    Shape::of::<Key<[u8; 16]>, Block>(BLOCKS, MapType::LpmTrie),
    Shape::of::<u32, u64>(BLOCK_PACKETS, MapType::PerCpuArray),
    Shape::of::<u32, Counters>(COUNTERS, MapType::PerCpuArray),
    Shape::of::<u32, SynLimit>(SYN_LIMIT, MapType::Array),
    Shape::of::<u32, u32>(SYN_PORTS, MapType::Array),
    Shape::of::<u64, u64>("SOURCES", MapType::LruHash),
];
/// The pin of a link is called so, with the interface's name behind it.
const LINK: &str = "link-";

/// A prefix of either family as the kernel's trie holds it: IPv4 mapped into `::ffff:0:0/96`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    octets: [u8; 16],
    length: u8,
}

impl Prefix {
    /// Its length in bits of the mapped address.
    pub const fn length(&self) -> u8 {
        self.length
    }

    fn key(&self) -> Key<[u8; 16]> {
        Key::new(self.length.into(), self.octets)
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        match net.trunc() {
            IpNet::V4(net) => {
                Self { octets: net.addr().to_ipv6_mapped().octets(), length: 96 + net.prefix_len() }
            }
            IpNet::V6(net) => Self { octets: net.addr().octets(), length: net.prefix_len() },
        }
    }
}

impl From<Prefix> for IpNet {
    fn from(prefix: Prefix) -> Self {
        let address = Ipv6Addr::from(prefix.octets);
        let (address, length) = match (address.to_ipv4_mapped(), prefix.length.checked_sub(96)) {
            (Some(address), Some(length)) => (IpAddr::V4(address), length),
            _ => (IpAddr::V6(address), prefix.length),
        };
        // The length is at most 128, or 32 after the subtraction: both families accept it.
        match address {
            IpAddr::V4(address) => Ipv4Net::new_assert(address, length.min(32)).into(),
            IpAddr::V6(address) => Ipv6Net::new_assert(address, length.min(128)).into(),
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", IpNet::from(*self))
    }
}

/// The loaded program. Dropping it leaves everything pinned in place: the kernel goes on dropping packets, and
/// the next daemon adopts it.
pub struct ShieldProgram {
    ebpf: Ebpf,
    blocks: LpmTrie<MapData, [u8; 16], Block>,
    packets: PerCpuArray<MapData, u64>,
    counters: PerCpuArray<MapData, Counters>,
    limit: Array<MapData, SynLimit>,
    ports: Array<MapData, u32>,
    directory: PathBuf,
    interfaces: Vec<String>,
    attached: Vec<Attachment>,
    cpus: usize,
}

struct Attachment {
    interface: String,
    pin: PathBuf,
    /// Kept for its descriptor; the pin keeps the program attached.
    _link: FdLink,
}

impl ShieldProgram {
    /// Loads the program, adopts the maps and links of an earlier daemon, and lets its links run this program.
    /// It is attached to `interfaces` by [`Self::attach`], not before: an attached program costs something.
    pub(super) fn load(objects: &Objects, pins: &Pins, interfaces: Vec<String>) -> Result<Self, KernelError> {
        let directory = pins.of(OBJECT)?;
        let mut ebpf = load(OBJECT, &objects.shield()?, &directory, &MAPS)?;
        program(&mut ebpf)?.load().map_err(failed("loading"))?;
        let cpus = aya::util::nr_cpus().map_err(|(call, source)| KernelError::Call { call, source })?;
        let mut shield = Self {
            blocks: take(&mut ebpf, OBJECT, BLOCKS)?,
            packets: take(&mut ebpf, OBJECT, BLOCK_PACKETS)?,
            counters: take(&mut ebpf, OBJECT, COUNTERS)?,
            limit: take(&mut ebpf, OBJECT, SYN_LIMIT)?,
            ports: take(&mut ebpf, OBJECT, SYN_PORTS)?,
            ebpf,
            directory,
            interfaces,
            attached: Vec::new(),
            cpus,
        };
        shield.adopt()?;
        Ok(shield)
    }

    /// Takes over the links that are pinned; those of interfaces that are gone or no longer watched end here.
    fn adopt(&mut self) -> Result<(), KernelError> {
        let error = |source| KernelError::File { call: "reading", path: self.directory.clone(), source };
        for entry in fs::read_dir(&self.directory).map_err(error)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(interface) = name.strip_prefix(LINK) else { continue };
            let pin = entry.path();
            if self.interfaces.iter().any(|watched| watched == interface)
                && let Some(link) = self.take_over(&pin)
            {
                info!(interface, "adopted the shield that was attached");
                self.attached.push(Attachment { interface: interface.to_owned(), pin, _link: link });
            } else {
                info!(interface, "took away a shield that no longer belongs there");
                fs::remove_file(&pin).map_err(|source| KernelError::File {
                    call: "removing",
                    path: pin,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Lets a pinned link run this program; `None` when the kernel refuses, because its interface is gone.
    fn take_over(&mut self, pin: &PathBuf) -> Option<FdLink> {
        let link = PinnedLink::from_pin(pin).ok()?;
        let link = XdpLink::try_from(FdLink::from(link)).ok()?;
        let program = program(&mut self.ebpf).ok()?;
        let link = program.attach_to_link(link).ok()?;
        program.take_link(link).ok()?.try_into().ok()
    }

    /// Changes the interfaces to watch; takes effect with the next [`Self::attach`] for those that are new, at
    /// once for those that are left out.
    pub fn watch(&mut self, interfaces: Vec<String>) -> Result<(), KernelError> {
        self.interfaces = interfaces;
        let (kept, dropped) =
            self.attached.drain(..).partition(|attachment| self.interfaces.contains(&attachment.interface));
        self.attached = kept;
        dropped.into_iter().try_for_each(Attachment::end)
    }

    /// Attaches the program to every interface watched, in the driver where it can, else before the stack.
    ///
    /// An interface that refuses is warned about; an error is returned only when no interface takes it.
    pub fn attach(&mut self) -> Result<(), KernelError> {
        let mut refusal = None;
        for interface in self.interfaces.clone() {
            if self.attached.iter().any(|attachment| attachment.interface == interface) {
                continue;
            }
            match self.attach_to(&interface) {
                Ok(attachment) => self.attached.push(attachment),
                Err(error) => {
                    warn!(interface, "the shield cannot be attached: {}", error.words());
                    refusal = Some(error);
                }
            }
        }
        if !self.attached.is_empty() {
            return Ok(());
        }
        Err(refusal.unwrap_or(KernelError::Call {
            call: "looking for an interface to shield",
            source: io::Error::other("none is up, Ethernet and with an address"),
        }))
    }

    fn attach_to(&mut self, interface: &str) -> Result<Attachment, KernelError> {
        let program = program(&mut self.ebpf)?;
        let mut mode = "as the driver prefers";
        let link = program.attach(interface, XdpMode::Default).or_else(|error| {
            // Drivers refuse for want of queues or for a large MTU; the generic hook takes it all the same.
            if !matches!(error, ProgramError::SyscallError(_)) {
                return Err(error);
            }
            mode = "generic";
            program.attach(interface, XdpMode::Skb)
        });
        let link = link.and_then(|link| program.take_link(link)).map_err(failed("attaching"))?;
        let link = FdLink::try_from(link).map_err(|_| KernelError::Call {
            call: "attaching the shield program",
            source: io::Error::other("this kernel has no XDP links (they came with 5.9)"),
        })?;
        let pin = self.directory.join(format!("{LINK}{interface}"));
        let link = link
            .pin(&pin)
            .map_err(|source| KernelError::Pin { path: pin.clone(), source: Box::new(source) })?;
        info!(interface, mode, "the shield is attached");
        Ok(Attachment { interface: interface.to_owned(), pin, _link: link.into() })
    }

    /// Takes the program off every interface; the maps stay.
    pub fn detach(&mut self) -> Result<(), KernelError> {
        self.attached.drain(..).try_for_each(Attachment::end)
    }

    /// The interfaces that it is attached to.
    pub fn attached(&self) -> impl Iterator<Item = &str> {
        self.attached.iter().map(|attachment| attachment.interface.as_str())
    }

    /// Every blocked prefix.
    pub fn blocks(&self) -> Result<Vec<(Prefix, Block)>, KernelError> {
        let entries = self.blocks.iter().map(|entry| {
            let (key, block) = entry?;
            // What is longer was not written by this program.
            let length = u8::try_from(key.prefix_len()).unwrap_or(128).min(128);
            Ok((Prefix { octets: key.data(), length }, block))
        });
        entries.collect::<Result<_, _>>().map_err(map("reading", BLOCKS))
    }

    /// Blocks a prefix, or changes how it is blocked.
    pub fn put(&mut self, prefix: Prefix, block: &Block) -> Result<(), KernelError> {
        self.blocks.insert(&prefix.key(), block, 0).map_err(map("writing to", BLOCKS))
    }

    /// Lets a prefix in again; one that is not blocked is an error.
    pub fn remove(&mut self, prefix: Prefix) -> Result<(), KernelError> {
        self.blocks.remove(&prefix.key()).map_err(map("removing from", BLOCKS))
    }

    /// Packets dropped, by [`Block::counter`].
    pub fn packets(&self, counter: u32) -> Result<u64, KernelError> {
        let values = self.packets.get(&counter, 0).map_err(map("reading", BLOCK_PACKETS))?;
        Ok(values.iter().sum())
    }

    /// Sets a counter of dropped packets to nothing.
    pub fn reset_packets(&mut self, counter: u32) -> Result<(), KernelError> {
        let zeroes = PerCpuValues::try_from(vec![0; self.cpus])
            .map_err(|source| KernelError::Call { call: "counting CPUs", source })?;
        self.packets.set(counter, zeroes, 0).map_err(map("writing to", BLOCK_PACKETS))
    }

    /// What all CPUs counted since the maps were made.
    pub fn counters(&self) -> Result<Counters, KernelError> {
        let values = self.counters.get(&0, 0).map_err(map("reading", COUNTERS))?;
        Ok(values.iter().fold(Counters::default(), |sum, cpu| Counters {
            seen: sum.seen + cpu.seen,
            blocked: sum.blocked + cpu.blocked,
            blocked_bytes: sum.blocked_bytes + cpu.blocked_bytes,
            limited: sum.limited + cpu.limited,
        }))
    }

    /// Sets the limit on SYNs of a source.
    pub fn set_limit(&mut self, limit: SynLimit) -> Result<(), KernelError> {
        self.limit.set(0, limit, 0).map_err(map("writing to", SYN_LIMIT))
    }

    /// The ports that the limit applies to, and no others.
    pub fn set_ports(&mut self, ports: impl IntoIterator<Item = u16>) -> Result<(), KernelError> {
        let mut words = vec![0_u32; PORT_WORDS as usize];
        for port in ports {
            words[usize::from(port) / 32] |= 1 << (port % 32);
        }
        for (index, word) in (0..).zip(words) {
            self.ports.set(index, word, 0).map_err(map("writing to", SYN_PORTS))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ShieldProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShieldProgram")
            .field("attached", &self.attached().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Attachment {
    fn end(self) -> Result<(), KernelError> {
        info!(interface = self.interface, "the shield is taken off");
        match fs::remove_file(&self.pin) {
            // Whoever took the pin away before has let go of the link too.
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(KernelError::File { call: "removing", path: self.pin, source })
            }
            _ => Ok(()),
        }
    }
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Xdp, KernelError> {
    let found =
        ebpf.program_mut(OBJECT).ok_or(KernelError::Incomplete { object: OBJECT, part: "program" })?;
    found.try_into().map_err(failed("taking"))
}

fn failed(call: &'static str) -> impl FnOnce(ProgramError) -> KernelError {
    move |source| KernelError::Program { call, program: OBJECT, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_keeps_its_family_and_loses_its_host_bits() {
        for (given, kept, length) in [
            ("192.0.2.9/32", "192.0.2.9/32", 128),
            ("192.0.2.9/24", "192.0.2.0/24", 120),
            ("0.0.0.0/0", "0.0.0.0/0", 96),
            ("2001:db8::1/32", "2001:db8::/32", 32),
            ("::/0", "::/0", 0),
        ] {
            let prefix = Prefix::from(given.parse::<IpNet>().unwrap());
            assert_eq!(IpNet::from(prefix).to_string(), kept);
            assert_eq!(prefix.length(), length);
        }
    }
}
