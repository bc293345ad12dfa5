//! The description of a flow, for lists and the access log.

/// The daemon's description of a connection, for lists and the access log. Flows of the same route, backend and host
/// share a label; when labels are scarce, all flows of a route and backend do.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Text, padded with zeros. With its key and bookkeeping it fills a 512-byte allocation.
    pub text: [u8; LABEL_BYTES],
}

/// Bytes of a [`Label`].
pub const LABEL_BYTES: usize = 440;

impl Default for Label {
    fn default() -> Self {
        Self { text: [0; LABEL_BYTES] }
    }
}
