//! The shield's programs and maps as a typed handle: blocked prefixes, the limit on SYNs, counters, and the
//! devices they are attached to. `shield` decides what to block, for how long and on which devices.
//!
//! Minimum kernel: 5.9; tc links, for a device whose XDP hook is taken, came with 6.6.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr},
};

use aya::{
    maps::{Array, LpmTrie, MapData, MapType, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{SchedClassifier, Xdp},
};
use edge_common::shield::{Block, Counters, PORT_WORDS, SynLimit};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use tracing::warn;

mod links;
mod predecessor;

pub(super) use self::links::ShieldLinks;
use self::links::{TC, XDP, failed, program};
use super::{
    Interface, KernelError, Objects,
    keeper::{Indexes, Reply, Request, keeper},
    load::{Shape, load, map, take},
    pin::Pins,
    trace::Tracer,
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
/// Layouts whose shield is as this one's: the same maps with the same meaning. A change of `edge_common::shield` empties it.
const ALIKE: [&str; 1] = ["v2"];

/// A prefix of either family as the kernel's trie holds it: IPv4 mapped into `::ffff:0:0/96`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    octets: [u8; 16],
    length: u8,
}

impl Prefix {
    /// The first and the last of its addresses, mapped, as numbers.
    pub fn range(&self) -> (u128, u128) {
        let first = u128::from_be_bytes(self.octets);
        let host = u128::MAX.checked_shr(self.length.into()).unwrap_or(0);
        (first & !host, first | host)
    }

    /// Its length in bits of the mapped address.
    pub const fn length(&self) -> u8 {
        self.length
    }

    pub(super) fn key(&self) -> Key<[u8; 16]> {
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

/// The loaded programs. Dropping them leaves everything pinned in place: the kernel goes on dropping packets, and
/// the next daemon adopts it.
pub struct ShieldProgram {
    blocks: LpmTrie<MapData, [u8; 16], Block>,
    packets: PerCpuArray<MapData, u64>,
    counters: PerCpuArray<MapData, Counters>,
    limit: Array<MapData, SynLimit>,
    ports: Array<MapData, u32>,
    cpus: usize,
    hands: Hands,
}

/// Whose hands attach the programs.
enum Hands {
    Own(ShieldLinks),
    Keeper(Entrusted),
}

/// The state of the devices while the keeper attaches to them.
#[derive(Default)]
struct Entrusted {
    watched: Vec<Interface>,
    /// By index: where packets are dropped, or why nowhere.
    hooks: BTreeMap<u32, Result<Hook, String>>,
}

/// Where packets are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// XDP: before the stack, in the driver where it can.
    Xdp,
    /// The ingress of tc: before netfilter and routing.
    Tc,
}

impl ShieldProgram {
    /// Loads the programs, adopts the maps and links of an earlier daemon, and lets its links run these programs.
    /// They are attached to other devices by [`Self::attach`], not before: an attached program costs something.
    pub(super) fn load(
        objects: &Objects,
        pins: &Pins,
        trace: Option<&mut Tracer>,
    ) -> Result<Self, KernelError> {
        pins.inherit(OBJECT, &ALIKE)?;
        let directory = pins.of(OBJECT)?;
        let predecessors = pins.others()?.into_iter().map(|other| other.directory.join(OBJECT));
        let mut ebpf = load(OBJECT, &objects.shield()?, &directory, &MAPS)?;
        for name in XDP {
            program::<Xdp>(&mut ebpf, name)?.load().map_err(failed("loading", name))?;
        }
        for name in TC {
            program::<SchedClassifier>(&mut ebpf, name)?.load().map_err(failed("loading", name))?;
        }
        let cpus = aya::util::nr_cpus().map_err(|(call, source)| KernelError::Call { call, source })?;
        let (blocks, packets) = (take(&mut ebpf, OBJECT, BLOCKS)?, take(&mut ebpf, OBJECT, BLOCK_PACKETS)?);
        let counters = take(&mut ebpf, OBJECT, COUNTERS)?;
        let (limit, ports) = (take(&mut ebpf, OBJECT, SYN_LIMIT)?, take(&mut ebpf, OBJECT, SYN_PORTS)?);
        trace.map_or(Ok(()), |tracer| tracer.add(&mut ebpf, OBJECT))?;
        let mut links = ShieldLinks {
            ebpf,
            directory,
            watched: Vec::new(),
            attached: BTreeMap::new(),
            refused: BTreeMap::new(),
            predecessors: predecessors.filter(|directory| directory.is_dir()).collect(),
        };
        links.adopt()?;
        Ok(Self { blocks, packets, counters, limit, ports, cpus, hands: Hands::Own(links) })
    }

    /// Gives the programs away and keeps the maps: from now on the keeper is asked.
    pub(super) fn entrust(&mut self) -> Option<ShieldLinks> {
        let entrusted = match &self.hands {
            Hands::Own(links) => Entrusted { watched: links.watched.clone(), hooks: links.hooks() },
            Hands::Keeper(_) => return None,
        };
        match std::mem::replace(&mut self.hands, Hands::Keeper(entrusted)) {
            Hands::Own(links) => Some(links),
            Hands::Keeper(_) => None,
        }
    }

    /// Changes the devices to watch; takes effect with the next [`Self::attach`] for those that are new or others than
    /// before, at once for those that are left out.
    pub fn watch(&mut self, watched: Vec<Interface>) -> Result<(), KernelError> {
        match &mut self.hands {
            Hands::Own(links) => links.watch(watched),
            Hands::Keeper(entrusted) => {
                let devices = Indexes::of(watched.iter().map(|device| device.index));
                entrusted.watched = watched;
                entrusted.ask(&Request::WatchShield { devices })
            }
        }
    }

    /// Attaches the programs to every device watched: in XDP, in the driver where it can, else at the ingress of tc.
    /// A device that refuses both is warned about, once for each reason.
    pub fn attach(&mut self) {
        match &mut self.hands {
            Hands::Own(links) => links.attach(),
            Hands::Keeper(entrusted) if entrusted.is_complete() => {}
            Hands::Keeper(entrusted) => {
                if let Err(error) = entrusted.ask(&Request::AttachShield) {
                    let words = error.words();
                    warn!("the shield cannot be attached, blocked sources are refused at accept: {words}");
                    for device in &entrusted.watched {
                        entrusted.hooks.entry(device.index).or_insert_with(|| Err(words.clone()));
                    }
                }
            }
        }
    }

    /// Takes the programs off every device; the maps stay.
    pub fn detach(&mut self) -> Result<(), KernelError> {
        match &mut self.hands {
            Hands::Own(links) => links.detach(),
            Hands::Keeper(entrusted) if entrusted.hooks.is_empty() => Ok(()),
            Hands::Keeper(entrusted) => entrusted.ask(&Request::DetachShield),
        }
    }

    /// Takes the place of the shields of other layouts. To be called when what is to be blocked is in the maps.
    pub fn succeed(&mut self) -> Result<(), KernelError> {
        match &mut self.hands {
            Hands::Own(links) => links.succeed(),
            Hands::Keeper(entrusted) => entrusted.ask(&Request::SucceedShield),
        }
    }

    /// The devices watched, with the hook at which packets are dropped, or why they are at none.
    pub fn devices(&self) -> impl Iterator<Item = (&Interface, Result<Hook, &str>)> {
        let watched = match &self.hands {
            Hands::Own(links) => &links.watched,
            Hands::Keeper(entrusted) => &entrusted.watched,
        };
        watched.iter().map(|device| {
            let nothing = Err("nothing is dropped now");
            let hook = match &self.hands {
                Hands::Own(links) => match links.attached.get(&device.index) {
                    Some(attachment) => Ok(attachment.hook),
                    None => links.refused.get(&device.index).map_or(nothing, |why| Err(why)),
                },
                Hands::Keeper(entrusted) => match entrusted.hooks.get(&device.index) {
                    Some(Ok(hook)) => Ok(*hook),
                    Some(Err(why)) => Err(why.as_str()),
                    None => nothing,
                },
            };
            (device, hook)
        })
    }

    /// Every blocked prefix.
    pub fn blocks(&self) -> Result<Vec<(Prefix, Block)>, KernelError> {
        let entries = self.blocks.iter().map(|entry| {
            let (key, block) = entry?;
            // A longer prefix was not written by this program.
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

    /// The sum over all CPUs since the maps were created.
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

impl Entrusted {
    /// Whether there is nothing left to attach to.
    fn is_complete(&self) -> bool {
        self.watched.iter().all(|device| matches!(self.hooks.get(&device.index), Some(Ok(_))))
    }

    fn ask(&mut self, request: &Request) -> Result<(), KernelError> {
        let keeper = keeper().ok_or(KernelError::Incomplete { object: OBJECT, part: "programs" })?;
        if let (Reply::Shield(hooks), _) = keeper.ask(request)? {
            self.hooks = hooks;
        }
        Ok(())
    }
}

impl fmt::Debug for ShieldProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShieldProgram").finish_non_exhaustive()
    }
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

    #[test]
    fn a_prefix_is_a_range_of_mapped_addresses() {
        let range = |text: &str| Prefix::from(text.parse::<IpNet>().unwrap()).range();
        let mapped = 0xffff_0000_0000_u128;
        assert_eq!(range("192.0.2.128/25"), (mapped | 0xc000_0280, mapped | 0xc000_02ff));
        assert_eq!(range("0.0.0.0/0"), (mapped, mapped | 0xffff_ffff));
        assert_eq!(range("::1/128"), (1, 1));
        assert_eq!(range("::/0"), (0, u128::MAX));
    }
}
