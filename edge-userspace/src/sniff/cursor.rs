//! Reads a byte string from front to back, for formats of big-endian numbers and length-prefixed vectors.
//!
//! This module knows no protocol. A step returns `None` if the bytes do not suffice, and then does not
//! advance.

/// The bytes left to read.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    /// A vector with one octet of length before it.
    pub(crate) fn vector8(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let length = ahead.u8()?;
        let vector = ahead.take(length.into())?;
        *self = ahead;
        Some(vector)
    }

    /// A vector with two octets of length before it.
    pub(crate) fn vector16(&mut self) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let length = ahead.u16()?;
        let vector = ahead.take(length.into())?;
        *self = ahead;
        Some(vector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_does_not_fit_moves_nowhere() {
        let mut cursor = Cursor::new(b"\x01a\x00\x03bc");
        assert_eq!(cursor.vector8(), Some(&b"a"[..]));
        assert_eq!(cursor.vector16(), None);
        assert_eq!(cursor.take(5), None);
        assert_eq!(cursor.u16(), Some(3));
        assert_eq!(cursor.take(2), Some(&b"bc"[..]));
        assert!(cursor.is_empty());
        assert_eq!(cursor.u8(), None);
        assert_eq!(cursor.u16(), None);
    }
}
