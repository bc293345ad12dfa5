//! The TLVs behind the addresses of a version 2 header (§2.2): one byte of type, two of length, the value.

/// The ALPN protocol that the client offers.
pub const ALPN: u8 = 0x01;
/// The host name that the client asks for.
pub const AUTHORITY: u8 = 0x02;
/// A checksum of the whole header.
pub const CRC32C: u8 = 0x03;
/// Padding.
pub const NOOP: u8 = 0x04;
/// The first proxy's id of the connection.
pub const UNIQUE_ID: u8 = 0x05;
/// Type and length.
pub(crate) const TLV_HEADER: usize = 3;
/// The longest unique id (§2.2.5).
pub const MAX_UNIQUE_ID: usize = 128;

/// The type and value of each TLV of a block; it ends at the first that is cut.
pub fn iter(block: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = block;
    std::iter::from_fn(move || {
        let (kind, value, behind) = split_first(rest)?;
        rest = behind;
        Some((kind, value))
    })
}

/// The value of the first TLV of this type.
pub fn find(block: &[u8], kind: u8) -> Option<&[u8]> {
    iter(block).find(|tlv| tlv.0 == kind).map(|tlv| tlv.1)
}

/// Whether no TLV of a block is cut.
pub fn is_whole(mut block: &[u8]) -> bool {
    while let Some((_, _, behind)) = split_first(block) {
        block = behind;
    }
    block.is_empty()
}

fn split_first(block: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[kind, high, low], rest) = block.split_first_chunk::<TLV_HEADER>()?;
    let (value, behind) = rest.split_at_checked(u16::from_be_bytes([high, low]).into())?;
    Some((kind, value, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_walked_to_the_first_cut() {
        let block = b"\x02\0\x01a\xe0\0\0\x05\0\x02id";
        assert_eq!(iter(block).collect::<Vec<_>>(), [(2, &b"a"[..]), (0xe0, b""), (5, b"id")]);
        assert_eq!(find(block, UNIQUE_ID), Some(&b"id"[..]));
        assert_eq!(find(block, ALPN), None);
        assert!(is_whole(block) && is_whole(b""));
        for end in [1, 2, 3, 5, 6, 8, 9, 10, 11] {
            assert!(!is_whole(&block[..end]), "{end}");
        }
    }
}
