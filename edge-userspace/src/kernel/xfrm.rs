//! IPsec policies (`NETLINK_XFRM`): whether the kernel would encrypt the packets of a connection, or expects them
//! encrypted. A flow's packets are redirected below that.
//!
//! Policies of an xfrm interface are left out: such a device encrypts what is sent through it, a flow's packets too.
//!
//! Sources: `linux/xfrm.h`, `net/xfrm/xfrm_user.c`.

use std::{
    fmt, io,
    net::IpAddr,
    time::{Duration, Instant},
};

use rtnetlink::sys::{Socket, protocols::NETLINK_XFRM};
use serde::{Deserialize, Serialize};

use super::{
    conntrack::Ends,
    keeper::keeper,
    netlink_message::{self as netlink, DONE, DUMP, ERROR, REQUEST, Writer},
};

/// `XFRM_MSG_GETPOLICY` and its answer, `XFRM_MSG_NEWPOLICY`.
const GET_POLICY: u16 = 0x15;
const NEW_POLICY: u16 = 0x13;
/// `struct xfrm_userpolicy_id`: a dump looks at none of it.
const POLICY_ID: usize = 64;
/// `struct xfrm_userpolicy_info`, and where its action is.
const POLICY: usize = 168;
const ACTION: usize = 161;
/// `XFRM_POLICY_ALLOW`.
const ALLOW: u8 = 0;
/// `XFRMA_TMPL`: what to encrypt with; a policy without one lets packets through as they are.
const TEMPLATES: u16 = 5;
/// `XFRMA_IF_ID`.
const INTERFACE_ID: u16 = 31;

/// How long what was found counts: policies come and go with their peers.
const FRESH: Duration = Duration::from_secs(2);
/// Policies that are looked at. Where there are more, none is told from another.
const MOST: usize = 1024;

/// The policies of this network namespace, as they were a moment ago.
pub struct Policies {
    /// Where no keeper reads them.
    source: Option<IpsecSource>,
    known: IpsecPolicies,
    read: Option<Instant>,
}

/// Which packets the policies of a network namespace are for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpsecPolicies {
    selectors: Vec<Selector>,
    /// There are more than [`MOST`].
    is_cut: bool,
}

/// The kernel's policies. To read them takes `CAP_NET_ADMIN`.
pub struct IpsecSource(
    /// `None` where the kernel has no IPsec.
    Option<Socket>,
);

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").field("known", &self.known.selectors.len()).finish_non_exhaustive()
    }
}

/// Which packets a policy is for (`struct xfrm_selector`), as far as a TCP connection can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Selector {
    is_ipv4: bool,
    destination: ([u8; 16], u8),
    source: ([u8; 16], u8),
    /// Port and mask.
    destination_port: (u16, u16),
    source_port: (u16, u16),
    protocol: u8,
}

impl Policies {
    /// Those of the network namespace of this thread.
    pub fn open() -> Self {
        let source = keeper().is_none().then(IpsecSource::open);
        Self { source, known: IpsecPolicies::default(), read: None }
    }

    /// Whether a policy is for packets of this connection, in either direction.
    pub fn covers(&mut self, ends: &Ends) -> io::Result<bool> {
        self.refresh()?;
        Ok(self.known.is_cut
            || self.known.selectors.iter().any(|selector| {
                selector.is_for(ends) || selector.is_for(&Ends { local: ends.peer, peer: ends.local })
            }))
    }

    /// How many policies there are.
    pub fn count(&mut self) -> io::Result<usize> {
        self.refresh()?;
        Ok(self.known.selectors.len())
    }

    fn refresh(&mut self) -> io::Result<()> {
        if self.read.is_some_and(|read| read.elapsed() < FRESH) {
            return Ok(());
        }
        self.known = match (&self.source, keeper()) {
            (Some(source), _) => source.read()?,
            (None, Some(keeper)) => keeper.policies()?,
            (None, None) => IpsecPolicies::default(),
        };
        self.read = Some(Instant::now());
        Ok(())
    }
}

impl IpsecSource {
    /// Opens the socket, in the network namespace of this thread.
    pub fn open() -> Self {
        Self(netlink::open(NETLINK_XFRM).ok())
    }

    /// The policies as they are now.
    pub fn read(&self) -> io::Result<IpsecPolicies> {
        let Some(socket) = &self.0 else { return Ok(IpsecPolicies::default()) };
        let mut writer = Writer::default();
        writer.message(GET_POLICY, REQUEST | DUMP, &[0; POLICY_ID], |_| {});
        writer.send(socket)?;
        let mut selectors = Vec::new();
        let is_cut = loop {
            // A dump goes on as it is read, so it never blocks.
            let (octets, _) = socket.recv_from_full()?;
            let mut is_over = false;
            for (kind, payload) in netlink::messages(&octets) {
                match kind {
                    NEW_POLICY => selectors.extend(Selector::of_policy(payload)),
                    DONE => is_over = true,
                    ERROR => {
                        return netlink::error(payload).map_or_else(|| Ok(IpsecPolicies::default()), Err);
                    }
                    _ => {}
                }
            }
            if is_over {
                break selectors.len() > MOST;
            }
        };
        selectors.truncate(MOST);
        Ok(IpsecPolicies { selectors, is_cut })
    }
}

impl Selector {
    /// Of a policy that encrypts or forbids.
    fn of_policy(policy: &[u8]) -> Option<Self> {
        let (fixed, attributes) = policy.split_at_checked(POLICY)?;
        let has = |wanted| {
            netlink::attributes(attributes)
                .any(|(kind, value)| kind == wanted && value.iter().any(|&o| o != 0))
        };
        let changes = *fixed.get(ACTION)? != ALLOW || has(TEMPLATES);
        (changes && !has(INTERFACE_ID)).then(|| Self::read(fixed)).flatten()
    }

    fn read(octets: &[u8]) -> Option<Self> {
        let address = |at: usize| -> Option<[u8; 16]> { octets.get(at..at + 16)?.try_into().ok() };
        let port = |at: usize| Some(u16::from_be_bytes(octets.get(at..at + 2)?.try_into().ok()?));
        let family = u16::from_ne_bytes(octets.get(40..42)?.try_into().ok()?);
        Some(Self {
            is_ipv4: i32::from(family) == libc::AF_INET,
            destination: (address(0)?, *octets.get(42)?),
            source: (address(16)?, *octets.get(43)?),
            destination_port: (port(32)?, port(34)?),
            source_port: (port(36)?, port(38)?),
            protocol: *octets.get(44)?,
        })
    }

    fn is_for(&self, ends: &Ends) -> bool {
        let port = |(port, mask): (u16, u16), actual: u16| (port ^ actual) & mask == 0;
        let address = |(net, length): ([u8; 16], u8), actual: IpAddr| match actual {
            IpAddr::V4(v4) => self.is_ipv4 && begins_alike(&net[..4], &v4.octets(), length),
            IpAddr::V6(v6) => !self.is_ipv4 && begins_alike(&net, &v6.octets(), length),
        };
        matches!(self.protocol, 0 | 6)
            && address(self.destination, ends.peer.ip())
            && address(self.source, ends.local.ip())
            && port(self.destination_port, ends.peer.port())
            && port(self.source_port, ends.local.port())
    }
}

/// Whether the first `length` bits are the same.
fn begins_alike(a: &[u8], b: &[u8], length: u8) -> bool {
    let (whole, rest) = (usize::from(length / 8), length % 8);
    if a.get(..whole) != b.get(..whole) {
        return false;
    }
    let mask = !0xff_u8.checked_shr(rest.into()).unwrap_or(0);
    match (a.get(whole), b.get(whole)) {
        (Some(a), Some(b)) => (a ^ b) & mask == 0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector() -> Selector {
        let mut net = [0; 16];
        net[..4].copy_from_slice(&[198, 18, 2, 0]);
        Selector {
            is_ipv4: true,
            destination: (net, 24),
            source: ([0; 16], 0),
            destination_port: (443, 0xffff),
            source_port: (0, 0),
            protocol: 0,
        }
    }

    fn ends(local: &str, peer: &str) -> Ends {
        Ends { local: local.parse().unwrap(), peer: peer.parse().unwrap() }
    }

    #[test]
    fn a_policy_is_for_what_its_selector_says() {
        let is_for = |selector: Selector, peer: &str| selector.is_for(&ends("198.18.2.1:20000", peer));
        assert!(is_for(selector(), "198.18.2.2:443"));
        assert!(!is_for(selector(), "198.18.2.2:444") && !is_for(selector(), "198.18.3.2:443"));
        assert!(is_for(Selector { protocol: 6, ..selector() }, "198.18.2.2:443"));
        assert!(!is_for(Selector { protocol: 17, ..selector() }, "198.18.2.2:443"));
        assert!(!is_for(Selector { source_port: (1, 0xffff), ..selector() }, "198.18.2.2:443"));
        assert!(!selector().is_for(&ends("[fd00::1]:20000", "[fd00::2]:443")));
    }

    #[test]
    fn prefixes_end_within_an_octet() {
        assert!(
            begins_alike(&[0b1010_0000], &[0b1011_1111], 3)
                && !begins_alike(&[0b1010_0000], &[0b1011_1111], 4)
        );
        assert!(begins_alike(&[1, 2], &[3, 4], 0) && begins_alike(&[1, 2], &[1, 2], 16));
    }

    #[test]
    fn a_policy_is_read_as_the_kernel_writes_it() {
        let mut octets = [0; POLICY + 8];
        octets[..4].copy_from_slice(&[198, 18, 2, 2]);
        octets[32..36].copy_from_slice(&[1, 187, 255, 255]);
        octets[40..42].copy_from_slice(&2_u16.to_ne_bytes());
        (octets[42], octets[44]) = (32, 6);
        assert_eq!(Selector::of_policy(&octets), None, "without a template it changes nothing");
        octets[POLICY..].copy_from_slice(&[8, 0, 5, 0, 10, 0, 0, 1]);
        let selector = Selector::of_policy(&octets).unwrap();
        assert!(selector.is_for(&ends("198.18.2.1:20000", "198.18.2.2:443")));
        assert!(!selector.is_for(&ends("198.18.2.1:20000", "198.18.2.3:443")));
        assert_eq!(Selector::of_policy(&octets[..100]), None);
    }
}
