//! What goes along with a flow for its account.

/// What is known of a connection beside its packets, as the daemon wrote it: for lists and the access log. Flows
/// of the same route, backend and host share one; where labels are scarce, those of the same route and backend do.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Text, padded with zeros. With key and bookkeeping it fills a 512-byte allocation.
    pub text: [u8; LABEL_BYTES],
}

/// Bytes of a [`Label`].
pub const LABEL_BYTES: usize = 440;

impl Default for Label {
    fn default() -> Self {
        Self { text: [0; LABEL_BYTES] }
    }
}
