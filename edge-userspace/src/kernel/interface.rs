//! The network interfaces of this machine, as far as attaching programs to them needs it.
#![expect(unsafe_code, reason = "getifaddrs hands out a linked list of C structures")]

use std::{
    collections::BTreeMap,
    ffi::CStr,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    path::Path,
    ptr,
};

use rustix::net::netdevice::name_to_index;
use socket2::{Domain, Socket, Type};

use super::KernelError;

/// `linux/if_arp.h`: a device that takes IP packets and nothing else.
const ARPHRD_RAWIP: u16 = 519;
/// `linux/sockios.h`. libc gives it the type that glibc's `ioctl` takes; musl's takes an int.
const SIOCGIFHWADDR: libc::Ioctl = 0x8927;

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts that stand side by side")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Whether its packets begin with an Ethernet header and it is not the loopback.
    pub is_ethernet: bool,
    /// Whether its packets begin with the IP header: WireGuard, tun.
    pub is_raw_ip: bool,
    /// Whether a process stands behind it (tun or tap): a tunnel, then.
    pub is_tun: bool,
}

impl Interface {
    /// Whether clients are likely to come in here: up, Ethernet, with an address, and no tunnel.
    pub fn faces_the_world(&self) -> bool {
        self.is_up && self.is_ethernet && !self.is_tun && !self.addresses.is_empty()
    }
}

impl Interface {
    /// Takes note of the kind of its link (`ARPHRD_*`).
    fn has_kind(&mut self, kind: u16) {
        self.is_ethernet = kind == libc::ARPHRD_ETHER;
        self.is_raw_ip = matches!(kind, libc::ARPHRD_NONE | ARPHRD_RAWIP);
    }
}

/// All interfaces of this network namespace, by name.
pub fn interfaces() -> Result<Vec<Interface>, KernelError> {
    let mut first = ptr::null_mut();
    // SAFETY: `first` is valid for a pointer to be written to it.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(KernelError::Call { call: "getifaddrs", source: io::Error::last_os_error() });
    }
    let mut found = BTreeMap::<String, Interface>::new();
    let mut next = first;
    // SAFETY: `next` is null or an entry of the list, which stays as it is until freeifaddrs below.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: every entry has a name that ends in NUL.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        let interface = found.entry(name).or_default();
        interface.is_up = entry.ifa_flags & libc::IFF_UP.cast_unsigned() != 0;
        // SAFETY: the address is null or as long as its family says.
        unsafe { read_address(entry.ifa_addr, interface) };
        next = entry.ifa_next;
    }
    // SAFETY: the list that getifaddrs made, freed once.
    unsafe { libc::freeifaddrs(first) };
    let questions = Socket::new(Domain::IPV4, Type::DGRAM, None)
        .map_err(|source| KernelError::Call { call: "opening a socket", source })?;
    Ok(found
        .into_iter()
        .map(|(name, mut interface)| {
            if interface.index == 0 {
                ask(&questions, &name, &mut interface);
            }
            interface.is_tun = Path::new("/sys/class/net").join(&name).join("tun_flags").exists();
            Interface { name, ..interface }
        })
        .collect())
}

/// Asks for what getifaddrs leaves out where a device has no hardware address: index and kind of a tunnel.
fn ask(questions: &Socket, name: &str, interface: &mut Interface) {
    // One that is gone meanwhile has neither.
    interface.index = name_to_index(questions, name).unwrap_or(0);
    // SAFETY: all zeros are a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last octet stays zero.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        // `c_char` is signed on x86-64 and unsigned on aarch64.
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the call reads the name and writes the hardware address of the request.
    let kind = unsafe {
        if libc::ioctl(questions.as_raw_fd(), SIOCGIFHWADDR, &raw mut request) != 0 {
            return;
        }
        request.ifr_ifru.ifru_hwaddr.sa_family
    };
    interface.has_kind(kind);
}

/// # Safety
///
/// `address` is null or points to a socket address of the size that its family has.
unsafe fn read_address(address: *const libc::sockaddr, interface: &mut Interface) {
    if address.is_null() {
        return;
    }
    // SAFETY: not null, and every socket address starts with its family.
    let family = i32::from(unsafe { (*address).sa_family });
    match family {
        libc::AF_INET => {
            // SAFETY: AF_INET addresses are sockaddr_in; the copy needs no alignment.
            let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            interface.addresses.push(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into());
        }
        libc::AF_INET6 => {
            // SAFETY: AF_INET6 addresses are sockaddr_in6.
            let address = unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            interface.addresses.push(Ipv6Addr::from(address.sin6_addr.s6_addr).into());
        }
        libc::AF_PACKET => {
            // SAFETY: AF_PACKET addresses are sockaddr_ll.
            let address = unsafe { address.cast::<libc::sockaddr_ll>().read_unaligned() };
            interface.index = address.sll_ifindex.cast_unsigned();
            interface.has_kind(address.sll_hatype);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_found_and_does_not_face_the_world() {
        let all = interfaces().unwrap();
        let loopback = all.iter().find(|interface| interface.name == "lo").unwrap();
        assert_eq!(loopback.index, 1);
        assert!(!loopback.is_ethernet && !loopback.faces_the_world());
        assert!(!loopback.is_up || loopback.addresses.contains(&Ipv4Addr::LOCALHOST.into()), "{loopback:?}");
    }
}
