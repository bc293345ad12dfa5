//! The protocol names of ALPN (RFC 7301 §3.1), as offered by a client.

use std::fmt;

/// The most names of a list that are kept and logged. A browser offers two; a hello full of one-letter names
/// would take many times its size in the access log.
pub const MAX_NAMES: usize = 64;
/// The most octets of a list in wire form that are kept and logged, for the same reason.
pub const MAX_LIST: usize = 4096;

/// A validated `ProtocolNameList` without its outer length: each name is one octet of length and 1–255 octets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AlpnList(Box<[u8]>);

impl AlpnList {
    /// Takes the wire form of the list; `None` when a name is empty or cut.
    pub fn from_wire(list: &[u8]) -> Option<Self> {
        let mut rest = list;
        while let Some((&length, tail)) = rest.split_first() {
            if length == 0 {
                return None;
            }
            rest = tail.get(usize::from(length)..)?;
        }
        Some(Self(list.into()))
    }

    /// The first names, as many as are kept for a connection: at most [`MAX_NAMES`], in at most [`MAX_LIST`]
    /// bytes. `None` if these are all.
    pub fn start(&self) -> Option<Self> {
        if self.0.len() <= MAX_LIST && self.iter().nth(MAX_NAMES).is_none() {
            return None;
        }
        Some(self.iter().collect())
    }

    /// The wire form of the list, without its outer length.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// The names in the order of the client's preference.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (&length, tail) = rest.split_first()?;
            let (name, tail) = tail.split_at_checked(usize::from(length))?;
            rest = tail;
            Some(name)
        })
    }

    /// Whether the client offers nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names as text, with bytes that are not printable ASCII escaped.
    pub fn to_strings(&self) -> Vec<String> {
        self.iter().map(|name| name.escape_ascii().to_string()).collect()
    }
}

impl fmt::Debug for AlpnList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.to_strings()).finish()
    }
}

impl<'a> FromIterator<&'a [u8]> for AlpnList {
    /// Names that are empty or longer than 255 bytes cannot be offered and are left out, as is everything
    /// beyond the limits of a list.
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(names: I) -> Self {
        let mut list = Vec::new();
        for name in names.into_iter().filter(|name| !name.is_empty()).take(MAX_NAMES) {
            if let Ok(length) = u8::try_from(name.len())
                && list.len() + 1 + name.len() <= MAX_LIST
            {
                list.push(length);
                list.extend_from_slice(name);
            }
        }
        Self(list.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_bad_ones_refused() {
        let list = AlpnList::from_wire(b"\x02h2\x08http/1.1").unwrap();
        assert_eq!(list.iter().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
        assert_eq!(list.iter().collect::<AlpnList>(), list);
        assert!(AlpnList::from_wire(b"").unwrap().is_empty());
        assert_eq!(AlpnList::from_wire(b"\x00"), None);
        assert_eq!(AlpnList::from_wire(b"\x03h2"), None);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let most = b"\x01a".repeat(MAX_NAMES);
        assert_eq!(AlpnList::from_wire(&most).unwrap().start(), None);
        let more = AlpnList::from_wire(&b"\x01a".repeat(2000)).unwrap();
        assert_eq!(more.iter().count(), 2000);
        assert_eq!(more.start().unwrap().as_wire(), most);
        let name = [255].repeat(256);
        assert_eq!(AlpnList::from_wire(&name.repeat(16)).unwrap().start(), None);
        assert_eq!(
            AlpnList::from_wire(&name.repeat(17)).unwrap().start().unwrap().as_wire(),
            name.repeat(16)
        );

        let collected: AlpnList = std::iter::repeat_n(&b"a"[..], 1000).collect();
        assert_eq!(collected.as_wire(), most);
        let collected: AlpnList = std::iter::repeat_n(&name[1..], 1000).collect();
        assert_eq!(collected.as_wire().len(), MAX_LIST);
    }
}
