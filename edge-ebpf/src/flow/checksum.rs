//! Updates Internet checksums incrementally (RFC 1624): sums the words that were removed and added, and passes the sum
//! to the kernel.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_PSEUDO_HDR},
    helpers::generated::bpf_l4_csum_replace,
};

/// `BPF_F_IPV6` (`net/core/filter.c`): the pseudo header is that of IPv6, where no checksum of the IP header offsets a
/// change of addresses. Kernels before 6.16 do not know the flag and refuse the call.
const BPF_F_IPV6: u64 = 1 << 7;

/// A ones' complement sum of 32-bit words in memory order. 64 bits are enough for more words than a header has.
#[derive(Clone, Copy)]
pub(crate) struct Sum(u64);

impl Sum {
    pub(crate) const ZERO: Self = Self(0);

    #[inline(always)]
    pub(crate) fn add(self, word: u32) -> Self {
        Self(self.0 + u64::from(word))
    }

    /// Subtracts a word.
    #[inline(always)]
    pub(crate) fn remove(self, word: u32) -> Self {
        Self(self.0 + u64::from(!word))
    }

    #[inline(always)]
    pub(crate) fn replace(self, old: u32, new: u32) -> Self {
        self.remove(old).add(new)
    }

    /// Adds all words.
    #[inline(always)]
    pub(crate) fn add_all<const N: usize>(self, words: &[u32; N]) -> Self {
        let mut sum = self;
        let mut at = 0;
        while at < N {
            sum = sum.add(words[at]);
            at += 1;
        }
        sum
    }

    #[inline(always)]
    pub(crate) fn remove_all<const N: usize>(self, words: &[u32; N]) -> Self {
        let mut sum = self;
        let mut at = 0;
        while at < N {
            sum = sum.remove(words[at]);
            at += 1;
        }
        sum
    }

    /// Folded to 32 bits, as `bpf_l4_csum_replace` expects it.
    #[inline(always)]
    fn wide(self) -> u64 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        (once & 0xffff_ffff) + (once >> 32)
    }

    /// Folded to 16 bits, in memory order.
    #[inline(always)]
    pub(crate) fn folded(self) -> u16 {
        let wide = self.wide();
        let once = (wide & 0xffff) + (wide >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        ((twice & 0xffff) + (twice >> 16)) as u16
    }
}

/// Corrects the TCP checksum at `offset`. `header` is the difference in the header, `pseudo` the difference in the
/// pseudo header, which alone changes a checksum that the device will complete (`CHECKSUM_PARTIAL`).
///
/// Packet pointers are invalid afterwards.
#[inline(always)]
pub(crate) fn correct_tcp<const V6: bool>(skb: *mut __sk_buff, offset: usize, header: Sum, pseudo: Sum) {
    let (offset, addresses) = (offset as u32, pseudo.wide());
    let flags = u64::from(BPF_F_PSEUDO_HDR);
    // SAFETY: helpers that check the offset. The first cannot fail where the second does not.
    unsafe {
        bpf_l4_csum_replace(skb, offset, 0, header.wide(), 0);
        if !V6 || bpf_l4_csum_replace(skb, offset, 0, addresses, flags | BPF_F_IPV6) != 0 {
            bpf_l4_csum_replace(skb, offset, 0, addresses, flags);
        }
    }
}

/// Corrects the checksum at `offset` for a change in the header or data that it covers.
#[inline(always)]
pub(crate) fn correct(skb: *mut __sk_buff, offset: usize, header: Sum) {
    // SAFETY: a helper that checks the offset.
    unsafe { bpf_l4_csum_replace(skb, offset as u32, 0, header.wide(), 0) };
}
