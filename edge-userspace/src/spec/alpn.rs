//! The protocol names of ALPN (RFC 7301 §3.1), as offered by a client.

use std::fmt;

/// The most names that are taken from a client. A browser offers two; each name read from a hello is written to
/// the access log again, so that a hello full of one-letter names would be many times its size there.
pub const MAX_NAMES: usize = 64;
/// The most octets of a list in wire form, for the same reason.
pub const MAX_LIST: usize = 4096;

/// A validated `ProtocolNameList` without its outer length: each name is one octet of length and 1–255 octets.
///
/// At most [`MAX_NAMES`] names and [`MAX_LIST`] octets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AlpnList(Box<[u8]>);

impl AlpnList {
    /// Takes the wire form of the list; `None` when a name is empty or cut, or the list is over its limits.
    pub fn from_wire(list: &[u8]) -> Option<Self> {
        let mut names = 0;
        let mut rest = list;
        while let Some((&length, tail)) = rest.split_first() {
            names += 1;
            if length == 0 || names > MAX_NAMES {
                return None;
            }
            rest = tail.get(usize::from(length)..)?;
        }
        (list.len() <= MAX_LIST).then(|| Self(list.into()))
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
    /// Names that are empty or longer than 255 octets cannot be offered and are left out, as is what goes beyond
    /// the limits of a list.
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
    fn lists_are_bounded() {
        let most = b"\x01a".repeat(MAX_NAMES);
        assert_eq!(AlpnList::from_wire(&most).unwrap().iter().count(), MAX_NAMES);
        assert_eq!(AlpnList::from_wire(&[&most[..], b"\x01a"].concat()), None);
        let name = [255].repeat(256);
        assert!(AlpnList::from_wire(&name.repeat(16)).is_some());
        assert_eq!(AlpnList::from_wire(&name.repeat(17)), None);

        let collected: AlpnList = std::iter::repeat_n(&b"a"[..], 1000).collect();
        assert_eq!(collected.as_wire(), most);
        let collected: AlpnList = std::iter::repeat_n(&name[1..], 1000).collect();
        assert_eq!(collected.as_wire().len(), MAX_LIST);
    }
}
