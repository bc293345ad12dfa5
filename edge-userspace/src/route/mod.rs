//! Host, ALPN and source → route. Pure; the table is immutable and swapped whole.
//!
//! What a target is, the table does not know: it gives back what it was built with.

#![forbid(unsafe_code)]

mod explain;
mod table;

pub use explain::{Considered, Outcome, Outranked, Unmet};
pub use table::{Query, Rule, Table};
