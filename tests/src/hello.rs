//! `ClientHello` messages of any size and segmentation, and the alerts that answer them. They contain only
//! what the cases need: a message is complete and well-formed (RFC 8446 §4.1.2), but cannot finish a
//! handshake.

use std::io::Read;

use anyhow::{Result, ensure};

use crate::stream::{self, End};

/// The most that a record may hold (RFC 8446 §5.1).
pub const MAX_FRAGMENT: usize = 16_384;
/// `unrecognized_name` (RFC 6066 §3).
pub const UNRECOGNIZED_NAME: u8 = 112;
/// `internal_error` (RFC 8446 §6).
pub const INTERNAL_ERROR: u8 = 80;
/// X25519MLKEM768 and the length of its client share.
const HYBRID: (u16, usize) = (0x11ec, 1216);
/// x25519 and the length of its share.
const X25519: (u16, usize) = (0x001d, 32);

/// A `ClientHello` to be made.
#[derive(Clone, Debug)]
pub struct ClientHello {
    name: Option<String>,
    alpn: Vec<String>,
    post_quantum: bool,
    padding: usize,
}

impl ClientHello {
    /// With this server name.
    pub fn new(name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..Self::without_name() }
    }

    /// Without the server name extension.
    pub fn without_name() -> Self {
        Self { name: None, alpn: Vec::new(), post_quantum: false, padding: 0 }
    }

    /// With these protocols on offer.
    #[must_use]
    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|&protocol| protocol.to_owned()).collect();
        self
    }

    /// With a key share of X25519MLKEM768: more than a segment holds, as browsers send it.
    #[must_use]
    pub fn post_quantum(mut self) -> Self {
        self.post_quantum = true;
        // The many other extensions of a browser.
        self.padding(512)
    }

    /// With a padding extension (RFC 7685) of this length.
    #[must_use]
    pub fn padding(mut self, length: usize) -> Self {
        self.padding = length;
        self
    }

    /// The handshake message.
    pub fn message(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if let Some(name) = &self.name {
            let entry = [&[0][..], &prefixed(name.as_bytes())].concat();
            extensions.extend(extension(0, &prefixed(&entry)));
        }
        let groups: &[(u16, usize)] = if self.post_quantum { &[HYBRID, X25519] } else { &[X25519] };
        let group_list: Vec<u8> = groups.iter().flat_map(|(group, _)| group.to_be_bytes()).collect();
        extensions.extend(extension(10, &prefixed(&group_list)));
        let shares: Vec<u8> = groups
            .iter()
            .flat_map(|(group, length)| [&group.to_be_bytes()[..], &prefixed(&vec![0x5a; *length])].concat())
            .collect();
        extensions.extend(extension(51, &prefixed(&shares)));
        extensions.extend(extension(43, &[2, 3, 4]));
        extensions.extend(extension(13, &prefixed(&[4, 3, 8, 4])));
        if !self.alpn.is_empty() {
            let list: Vec<u8> = self.alpn.iter().flat_map(|name| short_prefixed(name.as_bytes())).collect();
            extensions.extend(extension(16, &prefixed(&list)));
        }
        if self.padding > 0 {
            extensions.extend(extension(21, &vec![0; self.padding]));
        }
        let mut body = vec![3, 3];
        body.extend([0x72; 32]);
        body.extend(short_prefixed(&[0x73; 32]));
        body.extend(prefixed(&[0x13, 0x01, 0x13, 0x02, 0xc0, 0x2b]));
        body.extend(short_prefixed(&[0]));
        body.extend(prefixed(&extensions));
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
        [&[1][..], &length[1..], &body].concat()
    }

    /// The message in as few records as it fits.
    pub fn records(&self) -> Vec<u8> {
        self.records_of(MAX_FRAGMENT)
    }

    /// The message in records of at most `fragment` bytes each.
    pub fn records_of(&self, fragment: usize) -> Vec<u8> {
        self.message()
            .chunks(fragment)
            .flat_map(|piece| [&[22, 3, 1][..], &prefixed(piece)].concat())
            .collect()
    }
}

fn prefixed(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], bytes].concat()
}

fn short_prefixed(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
    [&[length][..], bytes].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &prefixed(content)].concat()
}

/// Reads to the end and expects one fatal alert and then FIN.
pub fn expect_alert(stream: &mut impl Read, description: u8) -> Result<()> {
    let (bytes, end) = stream::read_to_end(stream)?;
    let is_alert = matches!(bytes.as_slice(), [21, 3, _, 0, 2, 2, got] if *got == description);
    ensure!(is_alert, "expected the fatal alert {description}, got {bytes:02x?}");
    ensure!(end == End::Fin, "the alert was followed by {end:?}, which may overtake it");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_browsers_send() {
        let plain = ClientHello::new("a.example").message().len();
        assert!((150..600).contains(&plain), "{plain}");
        let hybrid = ClientHello::new("a.example").post_quantum().message().len();
        assert!(hybrid > 1400, "{hybrid}");
        let one_byte = ClientHello::new("a.example").records_of(1);
        assert_eq!(one_byte.len(), plain * 6);
    }
}
